"""How the time of a PGD step of training grows: with steps, batch, width and pixels; the plain loop and ours in turns.

    python benchmarks/growth.py --out results
    python benchmarks/growth.py small --out results          # the small CNN alone, at every size of batch

One process, tuned for both sides (`--untuned` for neither). One file, growth.json, and a picture of it.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import PGD, Linf
from sparring.acceleration import AcceleratedCopy, tune_process
from sparring.bench import in_turns, step
from sparring.models import preact_resnet18, small_cnn
from sparring.runs.environment import session

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CPU = torch.device("cpu")


def plain(model: nn.Module, x: Tensor, y: Tensor, by: PGD) -> Callable[[], None]:
    """A loop of one's own: eval mode and autograd.grad for the attack, then a step of SGD."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    eps, size = by.threat.eps, by.step_size or 0.0

    def call() -> None:
        model.eval()
        z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(by.steps):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
            z = (x + (z.detach() + size * grad.sign() - x).clamp_(-eps, eps)).clamp_(0, 1)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(z), y).backward()
        optimizer.step()

    return call


def compared(make: Callable[[], nn.Module], shape: tuple[int, int, int], batch: int, steps: int, rounds: int) -> Any:
    torch.manual_seed(0)
    model, x, y = make(), torch.rand(batch, *shape), torch.arange(batch) % 10
    by = PGD(Linf("8/255"), steps=steps, step_size="2/255")
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    calls = {"plain": plain(one, x, y, by), "ours": step(other, x, y, AcceleratedCopy("auto", "off"), by)}
    taken, _ = in_turns(calls, rounds, CPU)
    return taken


SETS: dict[str, list[dict[str, Any]]] = {
    "batch": [{"batch": n} for n in (16, 32, 64, 128, 256)],
    "steps": [{"steps": n} for n in (1, 2, 5, 10, 20)],
    "width": [{"width": n} for n in (4, 8, 16, 32)],
    "pixels": [{"pixels": n, "batch": 16} for n in (16, 32, 64, 96)],
    "small": [{"small": True, "batch": n} for n in (32, 64, 128, 256, 512)],
    "small16": [{"small": True, "width": 16, "batch": n} for n in (32, 64, 128, 256, 512)],
}


def run(point: dict[str, Any], rounds: int) -> dict[str, Any]:
    batch, steps = point.get("batch", 64), point.get("steps", 10)
    if point.get("small"):
        width = point.get("width", 32)
        taken = compared(lambda: small_cnn(width=width), (1, 28, 28), batch, steps, rounds)
    else:
        width = point.get("width", 16)
        side = point.get("pixels", 32)
        taken = compared(
            lambda: preact_resnet18(10, (3, side, side), width=width / 64), (3, side, side), batch, steps, rounds
        )
    middle = {side: sorted(seconds)[len(seconds) // 2] for side, seconds in taken.items()}
    return {
        **point,
        "width": width,
        "batch": batch,
        "steps": steps,
        "seconds": taken,
        "median": middle,
        "times": middle["plain"] / middle["ours"],
    }


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3), squeeze=False)
    for ax, (name, rows) in zip(axes[0], found.items(), strict=True):
        at = [row["batch" if name.startswith("small") else name] for row in rows]
        for side, label in (("plain", "plain loop"), ("ours", "sparring")):
            ax.plot(at, [row["median"][side] for row in rows], "o-", label=label)
        ax.set(xscale="log", yscale="log", xlabel="batch" if name.startswith("small") else name, title=name)
        ax.set_xticks(at, [str(n) for n in at])
        ax.minorticks_off()
    axes[0][0].set_ylabel("seconds of a training step")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--untuned", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.untuned:
        tune_process()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.sets or SETS:
        found[name] = []
        for point in SETS[name]:
            found[name].append(run(point, args.rounds))
            row = found[name][-1]
            about = ", ".join(f"{key} {row[key]}" for key in ("pixels", "width", "batch", "steps") if key in row)
            seconds = f"plain {row['median']['plain']:.3f} s, ours {row['median']['ours']:.3f} s"
            print(f"{name}: {about}: {seconds}, {row['times']:.2f} times", flush=True)
    (args.out / "growth.json").write_text(json.dumps({"machine": session(0, CPU), "sets": found}, indent=1))
    draw(found, args.out / "growth.png")


if __name__ == "__main__":
    main()
