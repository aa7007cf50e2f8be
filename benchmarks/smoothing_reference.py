"""Our randomized smoothing beside the published code: same net, same images.

The published code is not part of this project: check it out from https://github.com/locuslab/smoothing and name its
folder. It needs statsmodels.

    python benchmarks/smoothing_reference.py runs/noise smoothing --sigma 0.25 --images 100 --samples 1000

First both sides get the same noise, so that each class, abstention and radius must be the same. Then each draws its
own, so that they differ as two seeds do. The published code runs on a GPU alone and with older scipy; without a GPU its
calls of `torch.randn_like(.., device="cuda")` are answered on the CPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from sparring import certify, load_model
from sparring.core.rng import PerExample, mixed_seed, normal
from sparring.core.types import TensorData, pixels
from sparring.evaluation import smoothing
from sparring.records import Certification
from sparring.runs.load import recipe_of

SELECTION, ALPHA, SEED = 100, 0.001, 0


class OurNoise:
    """Answers `torch.randn_like` with the noise that ours draws for the copies of one image, one after the other."""

    def __init__(self, index: int) -> None:
        self.index, self.copy = index, 0

    def __call__(self, like: Tensor, **where: Any) -> Tensor:
        copies = torch.arange(self.copy, self.copy + len(like))
        self.copy += len(like)
        streams = self.index + (copies << smoothing._COPY)
        return normal(like, PerExample(mixed_seed(SEED, smoothing._STAGE), streams))


@contextmanager
def noise(draw: Any) -> Iterator[None]:
    with mock.patch("torch.randn_like", draw):
        yield


def published(folder: Path) -> Any:
    """The class of the published code."""
    scipy.stats.binom_test = scipy.stats.binomtest  # imported there, and not used to certify
    sys.path.insert(0, str(folder / "code"))
    from core import Smooth

    return Smooth


def certified(smooth: Any, model: nn.Module, data: TensorData, args: argparse.Namespace, same: bool) -> Any:
    """Class and radius of each image by the published code; -1 and 0 where it abstains."""
    theirs = smooth(model, len(data.classes), args.sigma)
    plain = torch.randn_like
    torch.manual_seed(SEED)
    found = []
    for index, x in enumerate(pixels(data.x)):
        draw = OurNoise(index) if same else lambda like, **where: plain(like)
        with noise(draw):
            found.append(theirs.certify(x, SELECTION, args.samples, ALPHA, 256))
    classes, radii = zip(*found, strict=True)
    return np.array(classes), np.array(radii, dtype=np.float64)


def accuracy(right: Any, radii: Any, at: float) -> float:
    return float((right & (radii >= at)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("published", type=Path)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, test = load_model(args.run), recipe_of(args.run).data.load()[1][: args.images]
    started = time.perf_counter()
    ours: Certification = certify(model, test, args.sigma, samples=args.samples, selection=SELECTION, seed=SEED)
    seconds = {"ours": time.perf_counter() - started}
    smooth = published(args.published)
    same_class, same_radius = certified(smooth, model, test, args, same=True)
    started = time.perf_counter()
    own_class, own_radius = certified(smooth, model, test, args, same=False)
    seconds["published"] = time.perf_counter() - started
    label = test.y.numpy()
    table = {
        f"{radius:g}": {
            "ours": ours_at.value,
            "published": accuracy(own_class == label, own_radius, radius),
        }
        for radius, ours_at in ours.curve().items()
    }
    found = {
        "images": len(test),
        "samples": args.samples,
        "sigma": args.sigma,
        "same noise": {
            "equal classes": int((same_class == ours.predicted).sum()),
            "largest difference of radii": float(np.abs(same_radius - ours.radius).max()),
        },
        "own noise": {
            "equal classes": int((own_class == ours.predicted).sum()),
            "abstained, ours": int(ours.abstained.sum()),
            "abstained, published": int((own_class == -1).sum()),
            "mean difference of radii": float((own_radius - ours.radius).mean()),
            "certified accuracy": table,
        },
        "seconds": seconds,
    }
    print(json.dumps(found, indent=2))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
