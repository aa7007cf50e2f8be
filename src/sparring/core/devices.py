"""The abilities of devices."""

from collections.abc import Callable

import torch
from torch import Tensor

NO_FLOAT64 = {"mps"}
"""Kinds of devices without float64."""


def finest(device: torch.device) -> torch.dtype:
    """Return the finest floating-point type of a device: float64, or float32 where there is none."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def reading(values: Tensor) -> Callable[[], list[float]]:
    """Begin to bring numbers `[N]` to the processor; the function that is returned waits until they are there.

    On a GPU it waits for the numbers alone, and not for work that was queued after them.
    """
    if values.device.type != "cuda":
        return values.tolist
    held = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # only there is a copy asynchronous
    held.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        arrived.synchronize()
        return held.tolist()

    return read
