"""The Jacobian of a network's output with respect to the image: products with it, its norm and its spectrum.

Computed for a batch at once: a network in eval mode treats images independently, so the gradient of the sum over the
batch holds the gradient of each image.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import UserError
from ...core.modes import mode_matters, twice_differentiable
from ...core.rng import Rng, normal, uniform
from ...core.types import Forward, each

EXACT = 64
"""Largest number of outputs for which the norm is computed exactly rather than estimated."""


def refuse_coupling(model: nn.Module) -> None:
    """Raise `UserError` for a model that does not treat the images of a batch independently."""
    if layer := mode_matters(model):
        raise UserError(
            f"the model is in training mode, where {layer} mixes images or draws at random: per-image figures "
            "need model.eval()"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name or 'the model'} is a batch norm without running statistics, which mixes the images of a batch "
                "in eval mode, too: per-image figures need track_running_stats=True"
            )


_NO_GRADIENT = "no gradient reaches the image: the model detaches it, or runs under no_grad"


class Jacobian:
    """The Jacobian J `[k, d]` at each image of `x` `[B, ...]` with d pixels; `forward(x)` gives k numbers per image.

    The graph of one forward pass is kept. A product with Jᵀ is a backward pass; a product with J is the backward pass
    of that backward pass, which is linear in its incoming gradient. In measurements this takes two thirds of the time
    of forward-mode differentiation.
    """

    def __init__(self, forward: Forward, x: Tensor) -> None:
        with torch.enable_grad(), twice_differentiable():
            self.x = x.detach().requires_grad_()
            self.out = forward(self.x).flatten(1)
            if not self.out.requires_grad:
                raise UserError(_NO_GRADIENT)
            self._in = torch.zeros_like(self.out, requires_grad=True)
            (back,) = torch.autograd.grad(self.out, self.x, self._in, create_graph=True, allow_unused=True)
            if back is None:
                raise UserError(_NO_GRADIENT)
            self._back = back

    @property
    def outputs(self) -> int:
        return self.out.shape[1]

    @property
    def inputs(self) -> int:
        return self.x[0].numel()

    def transposed(self, u: Tensor) -> Tensor:
        """Return Jᵀ u: `[B, k]` to `[B, d]`."""
        (found,) = torch.autograd.grad(self.out, self.x, u, retain_graph=True)
        return found.flatten(1)

    def times(self, v: Tensor) -> Tensor:
        """Return J v: `[B, d]` to `[B, k]`."""
        (found,) = torch.autograd.grad(self._back, self._in, v.view_as(self.x), retain_graph=True)
        return found

    def rows(self) -> Iterator[Tensor]:
        """Yield the k rows of J, each `[B, d]`."""
        for i in range(self.outputs):
            unit = torch.zeros_like(self.out)
            unit[:, i] = 1
            yield self.transposed(unit)


def squared_norm(jacobian: Jacobian, rng: Rng, probes: int = 16) -> Tensor:
    """Return |J|_F² `[B]`, exactly for up to `EXACT` outputs, else by Hutchinson's estimator.

    The estimate is the mean of |Jᵀ v|² over `probes` vectors v of random signs.
    """
    if jacobian.outputs <= EXACT:
        return torch.stack([row.square().sum(1) for row in jacobian.rows()]).sum(0)
    found = [
        jacobian.transposed(uniform(jacobian.out.detach(), rng, -1, 1).sign()).square().sum(1) for _ in range(probes)
    ]
    return torch.stack(found).mean(0)


def power_iteration(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = 20) -> Tensor:
    """Return the largest eigenvalue `[B]` of symmetric positive maps `[B, n]` to `[B, n]`, approximated from below."""
    v = _unit(start)
    value = start.new_zeros(len(start))
    for _ in range(steps):
        w = apply(v)
        value = (v * w).sum(1)
        v = _unit(w)
    return value


def spectrum(jacobian: Jacobian, rng: Rng, count: int = 50) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenvalues of J Jᵀ, `[B, count]` in descending order, and its effective rank `[B]`.

    Uses the Lanczos method with full orthogonalization, restarted with a new vector where the Krylov space is
    exhausted, so that eigenvalues of multiplicity two are found twice. The largest are accurate after 3 `count` + 20
    steps; if J has fewer rows or columns than that, after as many steps all are. The effective rank is e to the entropy
    of the eigenvalues' shares of the trace. It covers all eigenvalues, by the quadrature that belongs to the first
    starting vector (https://doi.org/10.1137/16M1104974), with one random vector per image.
    """
    wide = jacobian.outputs <= jacobian.inputs
    size = jacobian.outputs if wide else jacobian.inputs
    like = jacobian.out.detach().new_empty(len(jacobian.out), size)

    def apply(v: Tensor) -> Tensor:
        return jacobian.times(jacobian.transposed(v)) if wide else jacobian.transposed(jacobian.times(v))

    steps = min(3 * count + 20, size)
    diagonal, off_diagonal = _tridiagonal(apply, like, rng, steps)
    matrix = torch.diag_embed(diagonal) + sum(torch.diag_embed(off_diagonal[:, :-1], offset) for offset in (-1, 1))
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp_min(0)
    shares = vectors[:, 0].square() * size if steps < size else torch.ones_like(values)
    return values.flip(1)[:, :count], effective_count(values, shares)


def _tridiagonal(apply: Callable[[Tensor], Tensor], like: Tensor, rng: Rng, steps: int) -> tuple[Tensor, Tensor]:
    """Return the diagonal and off-diagonal, `[B, steps]` each, of a symmetric map of `[B, n]` in a Lanczos basis."""
    basis = like.new_zeros(len(like), steps, like.shape[1])
    diagonal, off_diagonal = like.new_zeros(len(like), steps), like.new_zeros(len(like), steps)
    v, scale = _unit(normal(like, rng)), like.new_zeros(len(like))
    for i in range(steps):
        basis[:, i] = v
        w = apply(v)
        diagonal[:, i] = (v * w).sum(1)
        scale = torch.maximum(scale, w.norm(dim=1))
        w = _apart(w, basis)
        length = w.norm(dim=1)
        ended = length <= _EXHAUSTED * scale
        off_diagonal[:, i] = torch.where(ended, 0.0, length)
        v = _unit(torch.where(each(ended, w), _apart(normal(like, rng), basis), w))
    return diagonal, off_diagonal


_EXHAUSTED = 1e-5


def _apart(w: Tensor, basis: Tensor) -> Tensor:
    """Project onto the orthogonal complement of the basis `[B, m, n]`; twice, because of rounding errors."""
    for _ in range(2):
        w = w - torch.einsum("bmn,bm->bn", basis, torch.einsum("bmn,bn->bm", basis, w))
    return w


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True).clamp_min(1e-30)


def effective_count(values: Tensor, times: Tensor) -> Tensor:
    """Return e to the entropy of the eigenvalues' shares of their sum, or 0 if the sum is 0.

    `values` `[B, m]` are the eigenvalues and `times` `[B, m]` their multiplicities.
    """
    trace = (times * values).sum(1)
    some = torch.where(trace > 0, trace, 1.0)
    mean_log = torch.special.xlogy(times * values, values).sum(1) / some
    return torch.where(trace > 0, (some.log() - mean_log).exp(), 0.0)
