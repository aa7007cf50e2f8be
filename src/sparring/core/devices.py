"""The abilities of devices."""

import torch

NO_FLOAT64 = {"mps"}
"""Kinds of devices without float64."""


def finest(device: torch.device) -> torch.dtype:
    """Return the finest floating-point type of a device: float64, or float32 where there is none."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64
