"""Free adversarial training: one gradient updates both weights and perturbation, so it needs its own step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.threats import need_threat
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import unchanged
from ..core.types import (
    AttackBackend,
    Batch,
    LabelledData,
    ModelMode,
    Objective,
    Progress,
    Terms,
    Threat,
    Update,
)
from ..core.validation import checked_terms
from ..core.walk import walk
from ..objectives.cross_entropy import CrossEntropy
from .engine import State
from .updates import BatchLoss


@dataclass(frozen=True, slots=True)
class Free:
    """Free adversarial training: every batch is replayed, and each gradient updates both weights and perturbation.

    Each replay is one forward and one backward pass. Its gradient minimises the loss over the weights and maximises it
    over the perturbation, by a step of eps. The perturbation begins at 0 and is kept from batch to batch, a row for
    each place in a batch; a smaller batch uses the first rows. It stays in the threat's ball, and is cut to the range
    of pixels only where it is added to images; where that cuts, it does not move. No pixel of it is beyond 0.5, which
    matters for `L1` and for `Linf` above 0.5 alone. A step of training is one batch, hence `replays` updates, so
    `replays` times fewer epochs are needed. The objective needs no inner loss: the attack maximises the outer loss at
    the adversarial point.

    Args:
        threat: threat model, the set of allowed perturbations.
        replays: number of replays of each batch, at least 1.
        objective: objective whose outer loss is minimised over the weights and maximised over the perturbation.
        outer_mode: mode of the model during the passes; by default the mode that its owner left it in.

    Raises:
        UserError: when `threat` is no threat, when `replays` is below 1, or when the objective chooses or remembers the
            attack of a step, as `ATTA` does.

    References:
        Free: https://arxiv.org/abs/1904.12843.
    """

    threat: Threat
    replays: int = 8
    objective: Objective = CrossEntropy()  # noqa: RUF009
    outer_mode: ModelMode = unchanged

    def __post_init__(self) -> None:
        need_threat(self.threat)
        if self.replays < 1:
            raise UserError(f"replays = {self.replays}: a batch must be replayed at least once")
        for part in walk(self.objective):
            if isinstance(part, Objective) and _has_attack(part):
                raise UserError(
                    f"{type(part).__name__} chooses or remembers the attack of a step, and Free has none: use it in a "
                    "Method, with an attack"
                )

    def init(self, data: LabelledData) -> nn.Module:
        """Return the memory that is kept from step to step."""
        return _Memory(self.objective.init(data))

    def step(self, state: State, batch: Batch, progress: Progress, update: Update, backend: AttackBackend) -> Terms:
        """Return the terms of the loss, averaged over the replays of `batch`."""
        if batch.views > 1 and ranks.world() > 1:
            raise UserError(
                "Free keeps a perturbation for each place in a batch, and views of an image have no place on several "
                "processes: set views_per_image = 1 (--views-per-image 1)"
            )
        if batch.accumulate > 1:
            raise UserError(
                "Free takes an update of the weights in every pass, so it cannot divide a batch into micro-batches: "
                "set accumulate = 1 (--accumulate 1)"
            )
        del backend  # the same pass gives the gradient of the weights, so an accelerated copy cannot be used
        memory = state.memory
        assert isinstance(memory, _Memory)
        ctx = state.context(batch, memory.objective, progress)
        terms: list[Terms] = []
        with torch.no_grad():
            self.objective.observe(ctx)
        for _ in range(self.replays):
            delta = memory.read(batch)
            x = self.threat.project(batch.x + delta, batch.x).detach().requires_grad_()

            def closure(x: Tensor = x) -> Terms:
                found = checked_terms(self.objective.outer(ctx.on(state.model), x), self.objective)
                return found if batch.share == 1 else {name: batch.share * term for name, term in found.items()}

            with self.outer_mode(state.model), state.batch_norm():
                loss = BatchLoss((closure,), (*state.requests.send(x.device), *state.local_statistics()))
                terms.append(update(state.model, state.optimizer, loss))
            assert x.grad is not None
            moved = batch.x + delta
            grad = x.grad.masked_fill((moved < 0) | (moved > 1), 0)
            memory.write(batch, self._inside(delta + self.threat.eps * self.threat.ascent(grad)))
        return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}

    def _inside(self, delta: Tensor) -> Tensor:
        """Return perturbations in the ball, found around a grey image, from which they stay in the range of pixels."""
        grey = torch.full_like(delta, 0.5)
        return self.threat.project(grey + delta, grey) - grey


def _has_attack(part: Objective) -> bool:
    """Return True for an objective that changes the attack, and False for one that hands it on to its parts."""
    own = any(getattr(type(part), name) is not getattr(Objective, name) for name in ("start", "attacking", "remember"))
    return own and not any(isinstance(each, Objective) for each in list(walk(part))[1:])


class _Memory(nn.Module):
    """Memory of the objective, and the perturbation, which has the shape of the largest batch.

    Each process holds the rows of its part of that batch; a state on disk has those of all.
    """

    delta: Tensor

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.whole = 0
        self.register_buffer("delta", torch.zeros(0))

    def read(self, batch: Batch) -> Tensor:
        """Return the perturbation of a batch."""
        whole = _whole(batch)
        if self.delta.shape[1:] != batch.x.shape[1:] or whole > self.whole:
            self.delta, self.whole = torch.zeros_like(batch.x), whole
        return self.delta if whole == self.whole else ranks.gathered(self.delta)[:whole][ranks.own(whole)]

    def write(self, batch: Batch, delta: Tensor) -> None:
        """Keep the perturbation of a batch."""
        whole = _whole(batch)
        if whole < self.whole:
            delta = torch.cat([ranks.gathered(delta), ranks.gathered(self.delta)[whole:]])[ranks.own(self.whole)]
        self.delta.copy_(delta)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "delta"] = ranks.gathered(self.delta)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict[prefix + "delta"]
        self.whole = len(saved)
        mine = saved[ranks.own(len(saved))]
        self.delta = torch.zeros_like(mine, device=self.delta.device)
        super()._load_from_state_dict({**state_dict, prefix + "delta": mine}, prefix, *rest)


def _whole(batch: Batch) -> int:
    """Return the number of rows of a batch on all processes."""
    return len(batch.x) * ranks.world() if batch.whole is None else batch.whole
