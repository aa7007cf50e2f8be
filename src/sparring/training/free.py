"""Free adversarial training: both players move by one gradient. Hence a step of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.threats import need_threat
from ..core.errors import UserError
from ..core.modes import unchanged
from ..core.types import (
    AttackBackend,
    Batch,
    Context,
    ForwardCache,
    LabelledData,
    ModelMode,
    Objective,
    Progress,
    Terms,
    Threat,
    Update,
)
from ..objectives.cross_entropy import CrossEntropy
from .engine import State


@dataclass(frozen=True, slots=True)
class Free:
    """Adversarial training for free (https://arxiv.org/abs/1904.12843): every batch is replayed `replays` times.

    Each replay is one forward and one backward pass, whose gradient moves the weights down and the perturbation up, by
    a step of eps. The perturbation is kept from batch to batch; it begins at 0. A step of training is a batch, hence
    `replays` updates: epochs are `replays` times fewer. The model is in the mode that its owner left it in throughout.

    The objective may have no inner loss of its own: what is raised is what is lowered, at the adversarial point.
    """

    threat: Threat
    replays: int = 8
    objective: Objective = CrossEntropy()  # noqa: RUF009
    outer_mode: ModelMode = unchanged

    def __post_init__(self) -> None:
        need_threat(self.threat)
        if self.replays < 1:
            raise UserError(f"a batch is replayed once or more, not {self.replays} times")

    def init(self, data: LabelledData) -> nn.Module:
        return _Memory(self.objective.init(data))

    def step(self, state: State, batch: Batch, progress: Progress, update: Update, backend: AttackBackend) -> Terms:
        del backend  # the attack needs the gradient of the weights too: there is nothing to be quicker on
        memory = state.memory
        assert isinstance(memory, _Memory)
        terms: list[Terms] = []
        with torch.no_grad():
            self.objective.observe(Context(ForwardCache(state.model), batch, memory.objective, progress))
        for _ in range(self.replays):
            delta = memory.delta_for(batch.x)
            x = self.threat.project(batch.x + delta, batch.x).detach().requires_grad_()

            def closure(x: Tensor = x) -> Terms:
                return self.objective.outer(Context(ForwardCache(state.model), batch, memory.objective, progress), x)

            with self.outer_mode(state.model):
                terms.append(update(state.model, state.optimizer, closure))
            assert x.grad is not None
            z = x.detach() + self.threat.eps * self.threat.ascent(x.grad)
            memory.delta.copy_(self.threat.project(z, batch.x) - batch.x)
        return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}


class _Memory(nn.Module):
    """The memory of the objective, and the perturbation, whose size is that of a batch."""

    delta: Tensor

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("delta", torch.zeros(0))

    def delta_for(self, x: Tensor) -> Tensor:
        if self.delta.shape != x.shape:
            self.delta = torch.zeros_like(x)
        return self.delta

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.delta = torch.zeros_like(state_dict[prefix + "delta"], device=self.delta.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
