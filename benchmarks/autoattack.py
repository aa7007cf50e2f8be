"""Our AutoAttack beside the published one: same net, same images, same seeds; verdicts, passes and seconds.

The published code is not part of this project: check it out from https://github.com/fra31/auto-attack and name the
folder that holds its package `autoattack`.

    python benchmarks/autoattack.py run published runs/fashion_pgd --published auto-attack --out results
    python benchmarks/autoattack.py run ours runs/fashion_pgd --out results
    python benchmarks/autoattack.py time runs/fashion_pgd --published auto-attack --rounds 3 --out results
    python benchmarks/autoattack.py table results

`run` writes one file per net, threat and seed; `table` joins those of both sides. `time` lets the sides take turns in
one process. The same
number of threads for all; `--tuned` gives all the allocator settings that the shell gives itself.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparring import L1, L2, Linf, autoattack, load_model
from sparring.acceleration import AcceleratedCopy, Precision, tune_process
from sparring.core.types import Classifier, TensorData, pixels
from sparring.runs.load import recipe_of

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
Threat = Linf | L2 | L1
THREATS: dict[str, type[Threat]] = {"Linf": Linf, "L2": L2, "L1": L1}


class Passes:
    """Forward and backward passes through a model and its copies, in examples."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = self.backward = 0
        body = model.body if isinstance(model, Classifier) else model
        self.handle = body.register_forward_hook(self._seen)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passes":
        return self

    def _seen(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self._back)

    def _back(self, grad: Tensor) -> None:
        self.backward += len(grad)

    def take(self) -> tuple[int, int]:
        seen = self.forward, self.backward
        self.forward = self.backward = 0
        return seen


class Sheet:
    """What one side did to one net: standing flags, seconds and passes after each stage."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.started = passes, time.perf_counter()
        self.standing: dict[str, np.ndarray[Any, Any]] = {}
        self.rows: dict[str, dict[str, float]] = {}

    def note(self, stage: str, standing: np.ndarray[Any, Any]) -> None:
        now = time.perf_counter()
        forward, backward = self.passes.take()
        self.standing[stage] = standing.copy()
        self.rows[stage] = {
            "seconds": now - self.started,
            "forward": forward,
            "backward": backward,
            "standing": int(standing.sum()),
        }
        self.started = time.perf_counter()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, rows=json.dumps(self.rows), **self.standing)


@torch.no_grad()
def published(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch: int, sheet: Sheet) -> None:
    """The published code, one attack after the other on what stands."""
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    norm = type(threat).__name__
    attack = AutoAttack(model, norm=norm, eps=threat.eps, seed=seed, version="standard", device="cpu", verbose=False)
    attack.logger.log = lambda text: None
    standing = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == y
    sheet.note("clean", standing.numpy())
    for stage in STAGES:
        rows = standing.nonzero()[:, 0]
        attack.attacks_to_run = [stage]
        with quiet():
            z = attack.run_standard_evaluation(x[rows], y[rows], bs=batch) if len(rows) else x[rows]
        standing[rows] = torch.cat([model(part).argmax(1) for part in z.split(batch)]) == y[rows]
        sheet.note(stage, standing.numpy())


def ours(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    batch: int,
    sheet: Sheet,
    precision: Precision = "auto",
) -> None:
    """As users get it: attacks search in bf16 where the processor computes in it, and float32 decides."""

    def on_progress(news: Any) -> None:
        if news.stage_done:
            sheet.note(news.stage.rpartition("/")[2], news.flags)

    backend = AcceleratedCopy(precision)
    autoattack(model, x, y, threat, seed=seed, batch_size=batch, backend=backend, on_progress=on_progress)


@contextmanager
def quiet() -> Iterator[None]:
    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()):
        yield


def images(run: Path, count: int) -> tuple[Tensor, Tensor]:
    test: TensorData = recipe_of(run).data.load()[1][:count]
    return pixels(test.x), test.y


def name_of(net: Path) -> str:
    """The run that a folder or a file of weights belongs to."""
    return net.name if net.is_dir() else net.parent.name


SIDES: dict[str, Callable[..., None]] = {
    "published": published,
    "ours": ours,
    "ours_fp32": partial(ours, precision="fp32"),
}


def run(args: argparse.Namespace) -> None:
    threat = THREATS[args.norm](args.eps)
    x, y = images(args.net, args.examples)
    for seed in args.seeds:
        path = args.out / f"{args.side}-{name_of(args.net)}-{args.norm}-{args.eps}-{seed}.npz"
        if path.exists():
            continue
        model = load_model(args.net)
        sheet = Sheet(Passes(model))
        SIDES[args.side](model, x, y, threat, seed, args.batch, sheet)
        sheet.save(path)
        print(path.name, json.dumps(sheet.rows), flush=True)


def timed(args: argparse.Namespace) -> None:
    """The sides take turns, each first in every other round; one file with all seconds."""
    if args.tuned:
        tune_process()
    threat = THREATS[args.norm](args.eps)
    x, y = images(args.net, args.examples)
    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in args.sides}
    standing: dict[str, list[int]] = {side: [] for side in args.sides}
    flags: dict[str, list[str]] = {side: [] for side in args.sides}
    for turn in range(args.rounds):
        for side in args.sides[:: 1 if turn % 2 else -1]:
            model = load_model(args.net)
            sheet = Sheet(Passes(model))
            SIDES[side](model, x, y, threat, turn, args.batch, sheet)
            taken = {stage: row["seconds"] for stage, row in sheet.rows.items() if stage != "clean"}
            seconds[side].append({**taken, "total": sum(taken.values())})
            standing[side].append(int(sheet.standing[STAGES[-1]].sum()))
            flags[side].append("".join(str(int(flag)) for flag in sheet.standing[STAGES[-1]]))
            print(turn, side, {k: round(v, 2) for k, v in seconds[side][-1].items()}, standing[side][-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {
        "seconds": seconds,
        "standing": standing,
        "flags": flags,
        "examples": args.examples,
        "threads": args.threads,
    }
    suffix = "-tuned" if args.tuned else ""
    (args.out / f"time-{name_of(args.net)}-{args.norm}-{args.eps}{suffix}.json").write_text(json.dumps(found, indent=1))


def table(args: argparse.Namespace) -> None:
    """Both sides joined, as Markdown; and everything as JSON."""
    summary: dict[str, Any] = {"verdicts": _verdicts(args.out), "time": _times(args.out)}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print("standing after apgd-ce, apgd-t, fab-t, square; passes an image, forward + backward\n")
    print("| net | threat | seed | published | ours | equal verdicts | passes, published | passes, ours |")
    print("|---|---|---|---|---|---|---|---|")
    for row in summary["verdicts"]:
        both = ("published", "ours")
        sides = [", ".join(str(row[side]["standing"][stage]) for stage in STAGES) for side in both]
        passes = [f"{row[side]['forward']:,.0f} + {row[side]['backward']:,.0f}" for side in both]
        equal = f"{row['equal']} of {row['examples']}"
        what = f"| {row['net']} | {row['threat']} | {row['seed']}"
        print(f"{what} | {sides[0]} | {sides[1]} | {equal} | {passes[0]} | {passes[1]} |")
    print("\n| net | threat | attack | side | seconds | published / side |\n|---|---|---|---|---|---|")
    for row in summary["time"]:
        for side, taken in row["sides"].items():
            seconds = f"{taken['median']:.1f} ({taken['least']:.1f} to {taken['most']:.1f})"
            print(f"| {row['net']} | {row['threat']} | {row['stage']} | {side} | {seconds} | {taken['ratio']:.2f} |")


def _verdicts(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob("published-*.npz")):
        other = path.with_name(path.name.replace("published", "ours"))
        if not other.exists():
            continue
        net, norm, eps, seed = path.stem.split("-")[1:]
        sheets = {"published": np.load(path), "ours": np.load(other)}
        row: dict[str, Any] = {"net": net, "threat": f"{norm} {eps}", "seed": int(seed)}
        for side, sheet in sheets.items():
            stages = json.loads(str(sheet["rows"]))
            counts = {stage: int(stages[stage]["standing"]) if stage in stages else 0 for stage in STAGES}
            row["examples"] = len(sheet[STAGES[0]])
            passes = {way: sum(s[way] for s in stages.values()) / row["examples"] for way in ("forward", "backward")}
            row[side] = {"standing": counts, **passes}
        finals = [sheet[STAGES[-1]] for sheet in sheets.values()]
        row["equal"] = int((finals[0] == finals[1]).sum())
        rows.append(row)
    return rows


def _times(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob("time-*.json")):
        _, net, norm, eps = path.stem.split("-", 3)
        held = json.loads(path.read_text())
        for stage in (*STAGES, "total"):
            taken = {side: [r.get(stage, 0.0) for r in rounds] for side, rounds in held["seconds"].items()}
            published = float(np.median(taken["published"]))
            sides = {
                side: {
                    "median": float(np.median(seconds)),
                    "least": min(seconds),
                    "most": max(seconds),
                    "ratio": published / max(float(np.median(seconds)), 1e-9),
                }
                for side, seconds in taken.items()
            }
            about = {"net": net, "threat": f"{norm} {eps}", "stage": stage, "standing": held["standing"]}
            rows.append({**about, "sides": sides})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("net", type=Path)
    both.add_argument("--published", type=Path)
    both.add_argument("--norm", default="Linf", choices=THREATS)
    both.add_argument("--eps", default="0.1")
    both.add_argument("--examples", type=int, default=500)
    both.add_argument("--batch", type=int, default=250)
    both.add_argument("--threads", type=int, default=2)
    both.add_argument("--out", type=Path, default=Path("results"))
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("side", choices=SIDES)
    one = commands.add_parser("run", parents=[first, both])
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.set_defaults(do=run)
    two = commands.add_parser("time", parents=[both])
    two.add_argument("--rounds", type=int, default=3)
    two.add_argument("--tuned", action="store_true")
    two.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    two.set_defaults(do=timed)
    three = commands.add_parser("table")
    three.add_argument("out", type=Path)
    three.set_defaults(do=table, threads=2, published=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.published:
        sys.path.insert(0, str(args.published))
    args.do(args)


if __name__ == "__main__":
    main()
