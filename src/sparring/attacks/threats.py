"""Perturbation sets: sampling a start, projecting onto the set, and the direction of steepest ascent.

A threat is a value, such as `Linf("8/255")`, shared by training, evaluation and reports. Because the threat carries
its norm, an attack need not be written once per norm. Pixels lie in [0, 1] and `eps` is in pixel units.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.numbers import parse_number
from ..core.rng import Rng, exponential, normal, uniform
from ..core.types import Threat, each

_TINY = 1e-12


def rescaled(rows: Tensor, *along: Tensor) -> list[Tensor]:
    """Return rows `[B, ...]` times powers of two that bring their largest values to between 1/2 and 1.

    The gradient of a model that is sure of itself may be so short that its square vanishes in float32. No other bit
    changes, and a row of zeros stays.

    Args:
        rows: The rows.
        along: Further tensors `[B]` or `[B, ...]`, which are multiplied by the same numbers.

    Returns:
        The rows, and the further tensors.
    """
    largest = rows.flatten(1).abs().amax(1)
    power = -torch.frexp(largest).exponent.clamp(-126, 126)
    factor = torch.ldexp(torch.ones_like(largest), power)
    return [part * each(factor, part) for part in (rows, *along)]


class _Ball:
    """Common base of the three sets: parses and checks `eps` once."""

    __slots__ = ()
    eps: float

    def __post_init__(self) -> None:
        eps = parse_number(self.eps)
        if not (0 < eps < math.inf):
            raise UserError(f"eps = {eps:g} is not in (0, {self._range()}]; for no attack at all use Benign()")
        object.__setattr__(self, "eps", eps)

    def _range(self) -> str:
        return "the largest distance between two images"

    def _check_size(self, x: Tensor, largest: float) -> None:
        if self.eps > largest:
            raise UserError(
                f"{type(self).__name__} eps = {self.eps:g} is not in (0, {largest:g}], {self._range()} of shape "
                f"{tuple(x.shape[1:])}; pixels lie in [0, 1]: did you mean {self.eps:g}/255?"
            )


@dataclass(frozen=True, slots=True)
class Linf(_Ball):
    """Set of images in [0, 1] in which every pixel differs from the example by at most `eps`.

    `project` gives the exact nearest point.

    Args:
        eps: Radius in pixel units, in (0, 1]: a number, or text such as "8/255".

    Raises:
        UserError: If `eps` is not in (0, 1].
    """

    eps: float
    if TYPE_CHECKING:  # at run time __post_init__ parses eps

        def __init__(self, eps: float | str) -> None: ...

    def __post_init__(self) -> None:
        _Ball.__post_init__(self)
        if self.eps > 1:
            raise UserError(
                f"Linf eps = {self.eps:g} is not in (0, 1]; pixels lie in [0, 1]: did you mean {self.eps:g}/255?"
            )

    def _range(self) -> str:
        return "1"

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Draw a point uniformly from the ball, then clip it to [0, 1]."""
        return self.project(x + uniform(x, rng, -self.eps, self.eps), x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        return self.within(z, x, self.eps)

    def within(self, z: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
        eps = each(eps, x) if isinstance(eps, Tensor) else eps
        return z.clamp(x - eps, x + eps).clamp_(0, 1)

    def ascent(self, grad: Tensor) -> Tensor:
        return _sign(grad)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)


@dataclass(frozen=True, slots=True)
class L2(_Ball):
    """Set of images in [0, 1] whose perturbation has Euclidean length `eps` at most.

    `project` scales into the ball and then clips to [0, 1], as published attacks do. The result lies in
    both, but where clipping acts it is not the nearest such point.

    Args:
        eps: Radius in pixel units, above 0: a number, or text such as "128/255".

    Raises:
        UserError: If `eps` is not above 0; in `project`, if it exceeds the largest distance between two images.
    """

    eps: float
    if TYPE_CHECKING:

        def __init__(self, eps: float | str) -> None: ...

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Draw a point uniformly from the ball, then clip it to [0, 1]."""
        direction = self.ascent(normal(x, rng))
        u = uniform(x.new_empty(len(x)), rng)
        return self.project(x + self.eps * each(u ** (1 / x[0].numel()), x) * direction, x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        self._check_size(x, math.sqrt(x[0].numel()))
        return self.within(z, x, self.eps)

    def within(self, z: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
        delta = z - x
        scale = (eps / self.norm(delta).clamp_min(_TINY)).clamp_max(1.0)
        return (x + delta * each(scale, x)).clamp_(0, 1)

    def ascent(self, grad: Tensor) -> Tensor:
        """Normalise the gradient; a zero gradient gives a zero step, not NaN."""
        (grad,) = rescaled(grad)
        return grad / each(self.norm(grad).clamp_min(_TINY), grad)

    def norm(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)


@dataclass(frozen=True, slots=True)
class L1(_Ball):
    """Set of images in [0, 1] whose absolute pixel changes sum to `eps` at most.

    `project` gives the exact nearest point. The steepest step in this norm moves one pixel; `ascent` moves a share of
    the pixels instead.

    Args:
        eps: Radius in pixel units, above 0: a number or text.
        share: Share of the pixels, in [0, 1], that `ascent` moves by equal amounts: those with the largest gradients.
            0 is the exact steepest step.

    Raises:
        UserError: If `eps` is not above 0 or `share` is not in [0, 1]; in `project`, if `eps` exceeds the largest
            distance between two images.

    References:
        Sparse steps: https://arxiv.org/abs/1904.13000.
    """

    eps: float
    share: float = 0.01
    if TYPE_CHECKING:

        def __init__(self, eps: float | str, share: float = 0.01) -> None: ...

    def __post_init__(self) -> None:
        _Ball.__post_init__(self)
        if not 0 <= self.share <= 1:
            raise UserError(f"share = {self.share:g} is not in [0, 1]")

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Draw a point uniformly from the ball (normalised exponentials with random signs), then clip to [0, 1]."""
        size = exponential(x, rng)
        slack = exponential(x.new_empty(len(x)), rng)
        sign = uniform(x, rng, -1, 1).sign()
        return self.project(x + self.eps * sign * size / each(self.norm(size) + slack, x), x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """Project by soft thresholding with caps: each pixel's cap is its distance to the border of [0, 1].

        The kept size `sum_i min(max(|d_i| - t, 0), cap_i)` falls piecewise linearly in the threshold t, with
        kinks at `|d_i|` and `|d_i| - cap_i`; sorting the kinks gives the t at which it equals `eps`.
        """
        self._check_size(x, x[0].numel())
        return self.within(z, x, self.eps)

    def within(self, z: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
        eps = eps[:, None] if isinstance(eps, Tensor) else eps
        delta = (z - x).flatten(1)
        size, flat = delta.abs(), x.flatten(1)
        cap = torch.where(delta > 0, 1 - flat, flat)
        threshold = _threshold(size, cap, eps)
        kept = torch.minimum((size - threshold).clamp_min(0), cap)
        kept = kept * (eps / kept.sum(1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)  # rounding may exceed eps
        return (x + (kept * delta.sign()).view_as(x)).clamp_(0, 1)

    def ascent(self, grad: Tensor) -> Tensor:
        flat = grad.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        top = flat.abs().topk(count, dim=1).indices
        step = torch.zeros_like(flat).scatter_(1, top, _sign(flat.gather(1, top)) / count)
        return step.view_as(grad)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)


def _threshold(size: Tensor, cap: Tensor, eps: float | Tensor) -> Tensor:
    """Return the smallest t >= 0 with `sum_i min(max(size_i - t, 0), cap_i) <= eps`, `[B, 1]`."""
    kinks, order = torch.cat([size - cap, size], dim=1).sort(dim=1, descending=True)
    slopes = torch.where(order < size.shape[1], -1.0, 1.0).to(size).cumsum(1)  # just below each kink, per unit of t
    gaps = kinks[:, :-1] - kinks[:, 1:]
    zero = torch.zeros_like(kinks[:, :1])
    kept = torch.cat([zero, (slopes[:, :-1] * gaps).cumsum(1)], dim=1)  # at each kink
    last = (kept <= eps).sum(1, keepdim=True) - 1
    beyond = (eps - kept.gather(1, last)) / slopes.gather(1, last).clamp_min(1.0)
    return (kinks.gather(1, last) - beyond).clamp_min(0)


@dataclass(frozen=True, slots=True, eq=False)
class ScaledThreat:
    """Set with an eps of its own for each example: `share` `[B]`, in [0, 1], times the eps of `whole`.

    Steps shrink by the same share. The set is made for one whole batch and cannot be used for some of its rows.
    """

    whole: Linf | L2 | L1
    share: Tensor

    @property
    def eps(self) -> float:
        """Eps of `whole`: the largest eps that an example can have."""
        return self.whole.eps

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Sample the whole set and move each point towards its example, by its share."""
        return x + each(self.share, x) * (self.whole.sample(x, rng) - x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        return self.whole.within(z, x, self.share * self.whole.eps)

    def ascent(self, grad: Tensor) -> Tensor:
        return each(self.share, grad) * self.whole.ascent(grad)

    def norm(self, delta: Tensor) -> Tensor:
        return self.whole.norm(delta)


def threat(text: str) -> Linf | L2 | L1:
    """Parse a set from command-line text.

    Args:
        text: A norm and an eps in pixel units: `linf:8/255`, `l2:0.5` or `l1:12`.

    Returns:
        The set.

    Raises:
        UserError: If the text has another form, or eps is out of range.
    """
    kinds: dict[str, type[Linf | L2 | L1]] = {"linf": Linf, "l2": L2, "l1": L1}
    name, found, eps = text.partition(":")
    if name.lower() not in kinds or not found:
        raise UserError(f"{text!r} is not a threat: write linf:8/255, l2:0.5 or l1:12")
    return kinds[name.lower()](parse_number(eps))


def need_threat(value: object) -> None:
    """Raise `UserError` if `value` is not a perturbation set, for example a class or command-line text."""
    if isinstance(value, type) or not isinstance(value, Threat):
        raise UserError(
            f"{value!r:.60} is not a threat: give a set such as Linf('8/255'), L2(0.5) or L1(12), or an object of your "
            "own with eps, sample, project, ascent and norm; sparring.attacks.threats.threat parses command-line text"
        )


def _sign(grad: Tensor) -> Tensor:
    """Return the sign, keeping NaN: torch's sign of NaN is 0, so an attack would silently make no step."""
    return grad.sign().add_(grad * 0)
