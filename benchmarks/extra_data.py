"""Start-up, memory and speed of batches with 50 million extra images, in a file of that length without content.

python benchmarks/extra_data.py [FOLDER] [--count 50000000]
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sparring.core.types import Batch, TensorData
from sparring.data import Batches, Crop, ExtraData, Flip, GeneratedImages

SIZE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where the file is written; a temporary folder by default")
    parser.add_argument("--count", type=int, default=50_000_000)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measured(Path(args.folder or temporary), args.count, args.steps), indent=1))


def measured(folder: Path, count: int, steps: int) -> dict[str, float]:
    np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, (count, 32, 32, 3))
    labels = np.lib.format.open_memmap(folder / "label.npy", "w+", np.uint8, (count,))
    labels[:] = np.arange(count) % 10
    del labels
    x = torch.randint(0, 256, (49_000, 3, 32, 32), dtype=torch.uint8)
    real = TensorData(x, torch.arange(49_000) % 10, tuple(map(str, range(10))))
    before, begin = peak(), time.perf_counter()
    extra = ExtraData(GeneratedImages(str(folder)), 0.7).load(real)
    loaded = time.perf_counter()
    augment = (Crop(4), Flip())
    both = Batches(real, SIZE, augment, extra=extra)
    stream = both.rest_of_epoch(1000 * len(both))
    next(iter(stream))
    first = time.perf_counter()
    return {
        "seconds to load": loaded - begin,
        "seconds to the first batch of epoch 1000": first - loaded,
        "GiB before": before,
        "GiB with the first batch": peak(),
        "images per second of processor time": speed(stream, steps),
        "the same of real images in memory": speed(Batches(real, SIZE, augment).rest_of_epoch(0), steps),
        "GiB at the end": peak(),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed(batches: Iterable[Batch], steps: int) -> float:
    begin, images = time.process_time(), 0
    for _, batch in zip(range(steps), batches, strict=False):
        images += len(batch.y)
    return images / (time.process_time() - begin)


if __name__ == "__main__":
    main()
