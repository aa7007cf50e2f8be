"""May the update be in bf16 too? Paired trainings, with the update in float32 and under autocast to bf16.

    python benchmarks/update.py --seeds 10 --out results

PGD-5 training of a small CNN with batch norm on Fashion-MNIST, crafted in bf16 on both sides; robust accuracy is under
PGD-20 from the same starts. The interval is Student's t over the paired differences of the seeds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn

from sparring import PGD, Linf, Method, State, TrainingLoop, UserError, WhiteBox, evaluate
from sparring.acceleration import AcceleratedCopy, prefer_channels_last, tune_process
from sparring.core.modes import unchanged
from sparring.core.schedules import MultiStep
from sparring.data import Batches, FashionMNIST
from sparring.models import Normalize, small_cnn
from sparring.objectives import CrossEntropy
from sparring.runs.environment import session
from sparring.training import SGD

THREAT = Linf(0.1)


@contextmanager
def low(model: nn.Module) -> Generator[None]:
    """Convolutions and products in bf16; the loss is taken in float32."""
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        yield


def trained(seed: int, view: Any, images: int, test: int, epochs: int, device: torch.device) -> dict[str, float]:
    """Clean and robust accuracy, and the seconds of training."""
    train, held = (part[:].to(device) for part in FashionMNIST().load())
    train, held = train[:images], held[:test]
    torch.manual_seed(seed)
    model = small_cnn(10, train.shape, Normalize.of(train), width=8, batch_norm=True, hidden=False).to(device).train()
    prefer_channels_last(model, train.x[:8].float() / 255)
    attack = PGD(THREAT, 5, THREAT.eps / 3)
    method = Method(attack, CrossEntropy(), outer_mode=view)
    state = State.start(method, model, SGD(weight_decay=1e-3).build(model), train, seed)
    loop = TrainingLoop(epochs, MultiStep(0.05, (0.6 * epochs, 0.9 * epochs)), backend=AcceleratedCopy("auto", "off"))
    began = time.perf_counter()
    loop.run(method, state, Batches(train, 64, seed=seed))
    seconds = time.perf_counter() - began
    strong = {"pgd-20": WhiteBox(PGD(THREAT, 20, THREAT.eps / 4, patience=0))}
    table = evaluate(model, held, strong, seed=0).table()
    return {"clean": table["clean"].value, "robust": table["pgd-20"].value, "seconds": seconds}


def interval(values: list[float]) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.out is None:
        raise UserError("--out is missing")
    if options.seeds < 2:
        raise UserError("an interval over seeds needs two of them")
    tune_process()
    device, rows = torch.device(options.device), []
    for seed in range(options.seeds):
        pair = {"fp32": unchanged, "bf16": low}
        names = list(pair)[:: 1 if seed % 2 else -1]  # another one begins
        how = (options.images, options.test, options.epochs, device)
        row = {name: trained(seed, pair[name], *how) for name in names}
        rows.append(row)
        print(seed, {name: {k: round(v, 4) for k, v in row[name].items()} for name in pair}, flush=True)
    found = {}
    for key in ("clean", "robust"):
        found[key] = interval([100 * (row["bf16"][key] - row["fp32"][key]) for row in rows])
        print(f"{key}: bf16 less fp32 {found[key][0]:+.2f} points [{found[key][1]:+.2f}, {found[key][2]:+.2f}]")
    ratio = [row["fp32"]["seconds"] / row["bf16"]["seconds"] for row in rows]
    print(f"seconds: fp32 over bf16 {statistics.median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}]")
    about = {"machine": session(0, device), "rows": rows, "difference": found, "ratio": ratio}
    (options.out / "update.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
