"""Does reading pictures keep ahead of training? Pictures a second of both, and of both together.

    python benchmarks/loader.py --out results           # needs timm for ResNet-50

Pictures are made: 500 x 375 JPEGs of smooth noise, 87 KB each, a little smaller than those of ImageNet.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sparring import Linf, Method, Progress, State, UserError, train_step
from sparring.acceleration import AcceleratedCopy, tune_process
from sparring.attacks import FGSM, RandomStart
from sparring.data import Batches, Flip, ImageStream
from sparring.data.workers import AHEAD
from sparring.models import imagenet_resnet
from sparring.objectives import CrossEntropy
from sparring.runs.environment import session
from sparring.training import SGD


def pictures(folder: Path, count: int) -> float:
    """Makes them, and gives their mean size in KB."""
    rng, sizes = np.random.default_rng(0), []
    for i in range(count):
        coarse = [rng.normal(0, 1, (375 // k + 1, 500 // k + 1, 3)).repeat(k, 0).repeat(k, 1) for k in (1, 4, 16, 64)]
        noise = sum(w * c[:375, :500] for w, c in zip((12, 25, 40, 50), coarse, strict=True))
        path = folder / ("train" if i % 10 else "val") / f"{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8)).save(path, quality=88)
        sizes.append(path.stat().st_size / 1024)
    return statistics.fmean(sizes)


def read(folder: Path, workers: int, batch: int, size: int) -> float:
    """Pictures a second, over an epoch."""
    train = ImageStream(str(folder), size, workers=workers).load()[0]
    batches = Batches(train, batch, (Flip(),))
    began, seen, ahead = 0.0, 0, AHEAD * workers
    for i, each in enumerate(batches.rest_of_epoch(0)):
        if i == ahead:  # what was ready when the clock began does not count
            began = time.perf_counter()
        elif i > ahead:
            seen += len(each.x)
    return seen / (time.perf_counter() - began)


def trained(batches: Iterable[object], device: torch.device, size: int, ahead: int, steps: int) -> list[float]:
    """Seconds of each step after the first `ahead`, with whatever the batches take."""
    torch.manual_seed(0)
    model = imagenet_resnet(num_classes=2, shape=(3, size, size), activation="silu").to(device).train()
    threat = Linf("4/255")
    method = Method(FGSM(threat, threat.eps, RandomStart()), CrossEntropy())
    optimizer = SGD().build(model)
    state, backend, taken = State.start(method, model, optimizer), AcceleratedCopy(), []
    began = time.perf_counter()
    for each, _ in zip(batches, range(ahead + steps), strict=False):
        train_step(method, state, each, Progress(1, 100, 1), backend=backend)  # type: ignore[arg-type]
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    return taken[ahead:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.out is None:
        raise UserError("--out is missing")
    tune_process()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder, kilobytes = Path(name), 0.0
        kilobytes = pictures(folder, options.pictures)
        rates = {w: [read(folder, w, options.batch, options.size) for _ in range(3)] for w in options.workers}
        train = ImageStream(str(folder), options.size, workers=options.workers[-1]).load()[0]
        held = Batches(train[: options.batch * 2].to(device), options.batch)
        ready = [b for epoch in range(options.steps) for b in held.rest_of_epoch(2 * epoch)]
        alone = trained(ready, device, options.size, 1, options.steps)
        stream = Batches(train.to(device), options.batch, (Flip(),)).rest_of_epoch(0)
        both = trained(stream, device, options.size, AHEAD * options.workers[-1] + 1, options.steps)
    found = {
        "machine": session(0, device),
        "settings": {**vars(options), "out": "", "kilobytes": kilobytes},
        "read": rates,
        "step_from_memory": alone,
        "step_from_files": both,
    }
    for workers, rate in rates.items():
        print(f"{workers} workers: {statistics.median(rate):.0f} pictures/s [{min(rate):.0f}, {max(rate):.0f}]")
    for what, seconds in (("from memory", alone), ("from files", both)):
        middle = statistics.median(seconds)
        spread = f"[{min(seconds):.2f}, {max(seconds):.2f}]"
        print(f"PGD-1 step of ResNet-50 {what}: {middle:.2f} s {spread}, {options.batch / middle:.1f} pictures/s")
    (options.out / "loader.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
