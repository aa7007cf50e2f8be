"""Labels whose true class has a given probability."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relaxed(target: Tensor, classes: int, true: float, dtype: torch.dtype) -> Tensor:
    """Return probabilities `[B, C]` that give `true` to the true class and divide the rest among the others.

    Args:
        target: Classes `[B]`, or soft targets `[B, C]`, which are mixed from those of their classes.
        classes: Number of classes, C.
        true: Probability of the true class.
        dtype: Type of the result.
    """
    p = F.one_hot(target, classes) if target.ndim == 1 else target
    other = (1 - true) / (classes - 1)
    return p.to(dtype) * (true - other) + other
