"""How the weights move. An update may evaluate the closure as often as it likes."""

from dataclasses import dataclass

import torch
from torch import nn

from .core import Closure, Terms


@dataclass(frozen=True, slots=True)
class Descend:
    """One step of the optimiser along the gradient, clipped to length `max_norm` if that is given."""

    max_norm: float | None = None

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Terms:
        optimizer.zero_grad(set_to_none=True)
        terms = closure()
        torch.stack(list(terms.values())).sum().backward()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        optimizer.step()
        return {name: term.detach() for name, term in terms.items()}
