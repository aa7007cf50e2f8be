"""RandAugment and AutoAugment of a whole batch, on its device, without waiting for it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError, need_whole
from ..core.rng import Rng, integers, uniform
from ..core.types import each
from .augment import grey

_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_COLOURS = (
    *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
_OPERATIONS = ("Identity", *_MOVES, *_COLOURS)
_SIGNED = {*_MOVES, "Brightness", "Color", "Contrast", "Sharpness"}
_MOST = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331, "Rotate": math.pi / 6}
_MOST |= {"Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9}


@dataclass(frozen=True, slots=True)
class RandAugment:
    """RandAugment: several operations of one strength, drawn for each image among 14.

    Operations and their strengths are those of torchvision, and pixels that come from outside the image are black.
    Colours are computed in floats instead of bytes.

    Args:
        operations: number of operations, at least 1.
        magnitude: strength, 0 to 30.

    Raises:
        UserError: when an argument is out of its range.

    References:
        RandAugment: https://arxiv.org/abs/1909.13719.
    """

    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        need_whole("operations", self.operations)
        if not 0 <= self.magnitude <= 30:
            raise UserError(f"magnitude = {self.magnitude} of RandAugment is not a number from 0 to 30")

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        names = tuple(name for name in _OPERATIONS if name != "Invert")
        level = x.new_full((len(x),), self.magnitude / 30)
        for _ in range(self.operations):
            x = _applied(x, names, integers(len(x), len(names), rng, x.device), level, _signs(x, rng))
        return x


@dataclass(frozen=True, slots=True)
class AutoAugment:
    """AutoAugment with the policy that was found on CIFAR-10: one of 25 pairs of operations, drawn for each image.

    Operations and their strengths are those of torchvision, and pixels that come from outside the image are black.
    Colours are computed in floats instead of bytes.

    References:
        AutoAugment: https://arxiv.org/abs/1805.09501.
    """

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        pair = integers(len(x), len(_CIFAR10), rng, x.device)
        for part in range(2):
            chosen, p, level = (_of_policy(part, column, x)[pair] for column in range(3))
            done = uniform(x.new_empty(len(x), 1), rng)[:, 0] <= p
            chosen = torch.where(done, chosen, 0).long()
            x = _applied(x, _OPERATIONS, chosen, level, _signs(x, rng))
        return x


_CIFAR10: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""Operation, probability, and strength from 0 to 9, as printed in the paper."""


def _of_policy(part: int, column: int, x: Tensor) -> Tensor:
    """Return the number of the operation, its probability, or its strength from 0 to 1, of each pair, `[25]`."""
    held = [pair[part] for pair in _CIFAR10]
    values = ([_OPERATIONS.index(e[0]) for e in held], [e[1] for e in held], [e[2] / 9 for e in held])
    return torch.tensor(values[column], device=x.device, dtype=x.dtype)


def _signs(x: Tensor, rng: Rng) -> Tensor:
    return torch.where(uniform(x.new_empty(len(x), 1), rng)[:, 0] < 0.5, 1.0, -1.0).to(x.dtype)


def _applied(x: Tensor, names: tuple[str, ...], chosen: Tensor, level: Tensor, signs: Tensor) -> Tensor:
    """Apply operation number `chosen` `[B]` of `names` to each image, with strength `level` `[B]` from 0 to 1.

    Every operation is computed for all images: to select rows would wait for a GPU.
    """
    out = x
    moved = torch.zeros_like(chosen, dtype=torch.bool)
    matrix = _identity(x)
    for number, name in enumerate(names):
        mine = chosen == number
        strength = level * signs if name in _SIGNED else level
        if name in _MOVES:
            matrix = torch.where(mine[:, None, None], _matrix(name, strength * _MOST[name], x), matrix)
            moved = moved | mine
        elif name != "Identity":
            out = torch.where(each(mine, x), _coloured(name, strength, x), out)
    return torch.where(each(moved, x), _warped(x, matrix), out)


def _identity(x: Tensor) -> Tensor:
    return torch.eye(2, 3, device=x.device, dtype=x.dtype).expand(len(x), 2, 3)


def _matrix(name: str, amount: Tensor, x: Tensor) -> Tensor:
    """Return the maps from pixels of the result to pixels of the image, both counted from the corner, `[B, 2, 3]`."""
    height, width = x.shape[2:]
    m = _identity(x).clone()
    if name == "ShearX":  # with the corner as its centre, as torchvision has it
        m[:, 0, 1] = -amount
    elif name == "ShearY":
        m[:, 1, 0] = -amount
    elif name == "TranslateX":
        m[:, 0, 2] = -(amount * width).trunc()
    elif name == "TranslateY":
        m[:, 1, 2] = -(amount * height).trunc()
    else:
        cos, sin = amount.cos(), amount.sin()
        m[:, 0, 0], m[:, 0, 1] = cos, -sin
        m[:, 1, 0], m[:, 1, 1] = sin, cos
        m[:, 0, 2] = (width - cos * width + sin * height) / 2
        m[:, 1, 2] = (height - sin * width - cos * height) / 2
    return m


def _warped(x: Tensor, matrix: Tensor) -> Tensor:
    """Return images whose pixels come from where `matrix` says, by the nearest pixel; black outside."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype) + 0.5
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5
    grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width), torch.ones_like(x[0, 0])], -1)
    places = torch.einsum("hwk,bik->bihw", grid, matrix).floor().long()
    inside = (places[:, 0] >= 0) & (places[:, 0] < width) & (places[:, 1] >= 0) & (places[:, 1] < height)
    flat = places[:, 1].clamp(0, height - 1) * width + places[:, 0].clamp(0, width - 1)
    found = x.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return found * inside[:, None]


def _coloured(name: str, strength: Tensor, x: Tensor) -> Tensor:
    amount = each(1 + strength * _MOST.get(name, 0.0), x)
    if name == "Brightness":
        return (x * amount).clamp(0, 1)
    if name == "Color":
        return _towards(grey(x), x, amount)
    if name == "Contrast":
        return _towards(grey(x).mean((2, 3), keepdim=True), x, amount)
    if name == "Sharpness":
        return _towards(_blurred(x), x, amount)
    if name == "Posterize":
        bits = each(8 - (4 * strength).round(), x)
        step = 2 ** (8 - bits)
        return (_bytes(x) / step).floor() * step / 255
    if name == "Solarize":
        return torch.where(_bytes(x) >= each(255 * (1 - strength), x), 1 - x, x)
    if name == "AutoContrast":
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.where(high > low, ((x - low) / (high - low).clamp_min(1e-6)).clamp(0, 1), x)
    return _equalized(x) if name == "Equalize" else 1 - x


def _bytes(x: Tensor) -> Tensor:
    return (255 * x).round()


def _towards(other: Tensor, x: Tensor, amount: Tensor) -> Tensor:
    return (other + amount * (x - other)).clamp(0, 1)


def _blurred(x: Tensor) -> Tensor:
    """Return images smoothed with the kernel of Pillow's filter SMOOTH; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    inner = F.conv2d(x.flatten(0, 1)[:, None], (kernel / 13)[None, None]).view(
        *x.shape[:2], *(n - 2 for n in x.shape[2:])
    )
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = inner
    return out


def _equalized(x: Tensor) -> Tensor:
    """Return images whose channels have a histogram that is as flat as can be, by Pillow's rule."""
    flat = _bytes(x).long().flatten(2)
    counts = torch.zeros(*flat.shape[:2], 256, device=x.device, dtype=torch.long)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    highest = flat.amax(2, keepdim=True)
    step = (flat.shape[2] - counts.gather(2, highest)) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(0, 255)
    found = table.gather(2, flat).to(x.dtype) / 255
    return torch.where(step > 0, found, x.flatten(2)).view_as(x)
