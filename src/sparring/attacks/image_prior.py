"""Search over all images by Adam on the parameters of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError, need_one_of, need_whole
from ..core.rng import Rng, normal
from ..core.types import PerExampleLoss

_EDGE = 1e-3
_RATES = {"pixels": 0.1, "fourier": 0.05, "network": 0.01}


@dataclass(frozen=True, slots=True)
class ParametrizedSearch:
    """Maximises a loss by Adam on the parameters of an image, anywhere in [0, 1] and without a perturbation set.

    Args:
        by: Parametrization of the image, which is always the sigmoid of what the parameters describe. "pixels": one
            value per pixel. "fourier": the inverse Fourier transform of coefficients, weighted by 1 / frequency. Both
            start at `x`. "network": a small convolutional network on noise, one for each image (a deep image prior),
            which uses only the shape of `x`.
        steps: Number of steps, at least 1.
        lr: Initial learning rate of Adam, above 0, which falls to 0 along half a cosine; None is 0.1, 0.05 and 0.01 for
            pixels, fourier and network.

    Raises:
        UserError: If an argument is out of range.

    References:
        Fourier parametrization: https://distill.pub/2017/feature-visualization.
        Deep image prior: https://arxiv.org/abs/1711.10925.
    """

    by: Literal["pixels", "fourier", "network"] = "pixels"
    steps: int = 400
    lr: float | None = None

    def __post_init__(self) -> None:
        need_one_of("by", self.by, _RATES)
        need_whole("steps", self.steps)
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"lr = {self.lr} of a ParametrizedSearch is not above 0")

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        x = x.detach()
        canvas = _CANVASES[self.by](x, rng)
        rate = _RATES[self.by] if self.lr is None else self.lr
        optimizer = torch.optim.Adam(canvas.parameters, lr=rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                value = loss(canvas.image()).value
                grads = torch.autograd.grad(-value.sum(), canvas.parameters)
                for parameter, grad in zip(canvas.parameters, grads, strict=True):
                    parameter.grad = grad
                optimizer.step()
                falling.step()
        with torch.no_grad():
            return canvas.image()


class _Canvas(Protocol):
    """Differentiable parametrization of a batch of images."""

    parameters: list[Tensor]

    def image(self) -> Tensor: ...


class _Pixels:
    """Pixel values before the sigmoid."""

    def __init__(self, x: Tensor, rng: Rng) -> None:
        del rng
        self.parameters = [x.clamp(_EDGE, 1 - _EDGE).logit().requires_grad_()]

    def image(self) -> Tensor:
        return self.parameters[0].sigmoid()


class _Fourier:
    """Real and imaginary Fourier parts, divided by their weights so that a step moves low frequencies more."""

    def __init__(self, x: Tensor, rng: Rng) -> None:
        del rng
        self.size = (x.shape[2], x.shape[3])
        rows = torch.fft.fftfreq(x.shape[2], device=x.device)[:, None]
        columns = torch.fft.rfftfreq(x.shape[3], device=x.device)
        self.weight = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / max(self.size))
        found = torch.fft.rfft2(x.clamp(_EDGE, 1 - _EDGE).logit(), norm="ortho") / self.weight
        self.parameters = [torch.view_as_real(found).clone().requires_grad_()]

    def image(self) -> Tensor:
        found = torch.view_as_complex(self.parameters[0]) * self.weight
        return torch.fft.irfft2(found, s=self.size, norm="ortho").sigmoid()


class _Network:
    """Four 3x3 convolutions on noise, at half the image size at first; one grouped convolution serves all images."""

    channels = 24

    def __init__(self, x: Tensor, rng: Rng) -> None:
        self.count, self.shape = len(x), x.shape
        rows, columns = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
        self.noise = normal(x.new_empty(self.count, self.channels, rows, columns), rng)
        widths = [self.channels] * 4 + [x.shape[1]]
        self.parameters = []
        for inner, outer in pairwise(widths):
            weight = normal(x.new_empty(self.count, outer, inner, 3, 3), rng) * (2 / (9 * inner)) ** 0.5
            self.parameters += [weight.requires_grad_(), x.new_zeros(self.count, outer).requires_grad_()]

    def image(self) -> Tensor:
        z = self.noise
        last = len(self.parameters) // 2 - 1
        for i in range(last + 1):
            weight, bias = self.parameters[2 * i], self.parameters[2 * i + 1]
            z = F.conv2d(
                z.reshape(1, -1, *z.shape[2:]), weight.flatten(0, 1), bias.flatten(), padding=1, groups=self.count
            )
            z = z.view(self.count, -1, *z.shape[2:])
            if i < last:
                z = F.instance_norm(z).relu()
            if i == 1:
                z = F.interpolate(z, size=tuple(self.shape[2:]), mode="bilinear", align_corners=False)
        return z.sigmoid()


_CANVASES: dict[str, Callable[[Tensor, Rng], _Canvas]] = {"pixels": _Pixels, "fourier": _Fourier, "network": _Network}
