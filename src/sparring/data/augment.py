"""Augmentation of a whole batch at once, on its device. Each takes and returns `[B, C, H, W]` in [0, 1]."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment(Protocol):
    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Crop:
    """A random window of the original size out of the image with `padding` pixels on each side."""

    padding: int = 4
    mode: Literal["constant", "reflect"] = "constant"

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        wide = F.pad(x, [self.padding] * 4, mode=self.mode)
        corner = torch.randint(2 * self.padding + 1, (2, n, 1), generator=rng, device=x.device)
        rows = corner[0] + torch.arange(height, device=x.device)
        columns = corner[1] + torch.arange(width, device=x.device)
        each = torch.arange(n, device=x.device)[:, None, None]
        # indexing on both sides of a slice puts the channels last
        return wide[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Flip:
    """Left and right change places in half of the images."""

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        turned = torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device) < 0.5
        return torch.where(turned, x.flip(3), x)


@dataclass(frozen=True, slots=True)
class Cutout:
    """A black square of `length` pixels around a random pixel, cut at the border (https://arxiv.org/abs/1708.04552)."""

    length: int = 16

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        hit = [self._span(len(x), size, rng, x.device) for size in x.shape[2:]]
        return x.masked_fill((hit[0][:, :, None] & hit[1][:, None, :])[:, None], 0.0)

    def _span(self, n: int, size: int, rng: torch.Generator, device: torch.device) -> Tensor:
        centre = torch.randint(size, (n, 1), generator=rng, device=device)
        from_centre = torch.arange(size, device=device) - centre
        return (from_centre >= -(self.length // 2)) & (from_centre < self.length - self.length // 2)
