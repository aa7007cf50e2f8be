"""What the fast path changes, on trained nets: loss, verdicts, gradients that vanish.

    python benchmarks/parity.py runs/fashion_pgd runs/fashion_trades runs/fashion_standard --out results/parity.json

The same PGD-20 from the same starts on the model as it is and on its copies: in float32, in float32 compiled, in bf16.
All points are judged by the model itself in float32. `again` adds what evaluation does: where only the copy was fooled,
the attack runs once more on the model.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import CE, PGD, Linf, WhiteBox, evaluate, load_model
from sparring.acceleration import AcceleratedCopy, OriginalModel, tune_process
from sparring.attacks.gradients import value_and_grad
from sparring.core.modes import eval_mode, frozen
from sparring.core.rng import PerExample
from sparring.core.types import AttackBackend, TensorData, pixels
from sparring.runs.load import recipe_of

SEARCHES: dict[str, AttackBackend] = {
    "as it is": OriginalModel(),
    "copy fp32": AcceleratedCopy("fp32", "off"),
    "copy fp32 compiled": AcceleratedCopy("fp32", "on"),
    "copy bf16": AcceleratedCopy("bf16", "off"),
}


def crafted(
    model: nn.Module, x: Tensor, y: Tensor, attack: PGD, backend: AttackBackend, batch: int
) -> tuple[Tensor, Tensor]:
    """The points, and the gradients of the clean images as they are searched on."""
    points, grads = [], []
    with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
        for rows in torch.arange(len(x)).split(batch):
            loss = CE(attacked.__call__, y[rows])
            points.append(attack(loss, x[rows], PerExample(0, rows)))
            grads.append(value_and_grad(loss, x[rows]).grad)
    return torch.cat(points), torch.cat(grads)


@torch.no_grad()
def judged(model: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, float]:
    out = torch.cat([model(part) for part in z.split(250)])
    return out.argmax(1) == y, float(F.cross_entropy(out.double(), y))


def compared(run: Path, eps: float, count: int, batch: int) -> dict[str, Any]:
    model = load_model(run).eval()
    test: TensorData = recipe_of(run).data.load()[1][:count]
    x, y = pixels(test.x), test.y
    attack = PGD(Linf(eps), steps=20, step_size=eps / 4)
    rows: dict[str, Any] = {}
    wanted, before, vanished = torch.empty(0), torch.empty(0), torch.empty(0)
    for name, backend in SEARCHES.items():
        z, grads = crafted(model, x, y, attack, backend, batch)
        robust, loss = judged(model, z, y)
        if not rows:
            wanted, before, vanished = robust, grads, (grads == 0)
        sign = (grads.sign() != before.sign()) & ~vanished
        rows[name] = {
            "robust": float(robust.double().mean()),
            "loss": loss,
            "verdicts_changed": int((robust != wanted).sum()),
            "zero_gradients": float((grads == 0).double().mean()),
            "zero_only_here": float(((grads == 0) & ~vanished).double().mean()),
            "signs_changed": float(sign.double().mean()),
        }
    adversary = {"pgd": WhiteBox(PGD(Linf(eps), steps=20, step_size=eps / 4, patience=0))}
    flags = {
        name: evaluate(model, test, adversary, backend=backend).robust["pgd"] for name, backend in SEARCHES.items()
    }
    for name, robust in flags.items():
        rows[name]["again"] = {
            "robust": float(robust.mean()),
            "verdicts_changed": int((robust != flags["as it is"]).sum()),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("results/parity.json"))
    args = parser.parse_args()
    tune_process()
    found = {}
    columns = ("net", "searched on", "robust", "loss", "verdicts changed", "zero gradients", "zero only here")
    print("| " + " | ".join([*columns, "signs changed", "as evaluated"]) + " |\n" + "|---" * 9 + "|")
    for run in args.runs:
        found[run.name] = compared(run, args.eps, args.examples, args.batch)
        for name, row in found[run.name].items():
            shares = [f"{100 * row[k]:.2f} %" for k in ("zero_gradients", "zero_only_here", "signs_changed")]
            again = f"{100 * row['again']['robust']:.1f} %, {row['again']['verdicts_changed']} changed"
            figures = [
                f"{100 * row['robust']:.1f} %",
                f"{row['loss']:.6f}",
                str(row["verdicts_changed"]),
                *shares,
                again,
            ]
            print("| " + " | ".join([run.name, name, *figures]) + " |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
