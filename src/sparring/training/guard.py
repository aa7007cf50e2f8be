"""A guard that acts on catastrophic overfitting, and reports robust overfitting.

Adversarial training with a single-step attack can collapse within an epoch: the single step fools the model less and
less, while an attack of several steps breaks every example (https://arxiv.org/abs/2001.03994). The guard evaluates both
on a fixed part of the training images.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import PGD
from ..attacks.gradients import value_and_grad
from ..attacks.losses import CE, misclassified
from ..attacks.threats import need_threat
from ..core import ranks
from ..core.errors import UserError
from ..core.modes import eval_mode, frozen
from ..core.rng import PerExample, mixed_seed
from ..core.types import Attack, AttackBackend, Progress, TensorData, Threat, pixels
from .engine import Method, State, TrainingMethod

Action = Literal["report", "stop", "rescue"]

_LEAST_FALL = 0.1  # the error of an accuracy over 256 images is 0.06; at the start of training it varies much


@dataclass(frozen=True, slots=True)
class Health:
    """Result of a check: clean accuracy, robust accuracy under FGSM and PGD, and measures of the input gradients."""

    clean: float
    fgsm: float
    pgd: float
    cosine: float
    """Mean cosine of the gradients at an image and at a random point of its threat set; NaN if no image has one."""
    zeros: float
    """Share of pixels whose gradient is exactly 0."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Guard against catastrophic overfitting: it evaluates the model during training and acts on an alarm.

    There is an alarm when the robust accuracy under FGSM exceeds that under PGD of `steps` steps by more than `gap`, or
    when that under PGD is below `fall` times its best so far and more than 0.1 below it. After each epoch the guard
    also reports robust overfitting: the robust accuracy on the validation (held-out) set is at least `overfitting`
    below its best, while that on the training images has risen by at least as much since then.

    Args:
        threat: threat model of FGSM and PGD.
        action: response to an alarm: "report"; "stop", which keeps the last healthy weights; or "rescue", which returns
            to the last healthy checkpoint and continues from there with the attack `rescue`.
        rescue: attack of a rescue, in place of the method's own; None is PGD of 7 steps.
        rescue_epochs: length of the first rescue in epochs, above 0; each further rescue is twice as long.
        checks: number of checks per epoch, at least 1.
        examples: number of training images that are evaluated, at least 1.
        steps: number of steps of PGD, at least 1.
        gap: difference between the robust accuracies under FGSM and PGD that is an alarm, in (0, 1).
        fall: share of the best robust accuracy under PGD below which there is an alarm, in (0, 1).
        overfitting: change of the robust accuracies that is reported as robust overfitting, in (0, 1).

    Raises:
        UserError: when `threat` is no threat, or an argument is outside its range.

    References:
        Catastrophic overfitting: https://arxiv.org/abs/2001.03994.
    """

    threat: Threat
    action: Action = "rescue"
    rescue: Attack | None = None
    rescue_epochs: float = 1.0
    checks: int = 2
    examples: int = 256
    steps: int = 10
    gap: float = 0.3
    fall: float = 0.5
    overfitting: float = 0.03

    def __post_init__(self) -> None:
        need_threat(self.threat)
        if self.action not in get_args(Action):
            raise UserError(f"action = {self.action!r} of a guard is none of {', '.join(get_args(Action))}")
        for name in ("checks", "examples", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} of a guard must be at least 1")
        if not (0 < self.gap < 1 and 0 < self.fall < 1 and 0 < self.overfitting < 1):
            raise UserError(
                "gap, fall and overfitting of a guard must be in (0, 1): differences and shares of accuracies"
            )
        if self.rescue_epochs <= 0:
            raise UserError(f"rescue_epochs = {self.rescue_epochs:g} of a guard must be above 0")

    @property
    def passes(self) -> int:
        """Most forward-backward passes per image in a check: FGSM, PGD, a random point, and three evaluations."""
        return self.steps + 4

    def added(self, batch_size: int, steps_per_epoch: int, mean: float) -> float:
        """Most passes that the guard adds, as a share of those of training, which takes `mean` per example and step."""
        return self.checks * self.examples * self.passes / (batch_size * steps_per_epoch * mean)

    def due(self, progress: Progress) -> bool:
        """Return True if there is a check after this step; there is always one at the end of an epoch."""
        within, size = (progress.step - 1) % progress.steps_per_epoch + 1, progress.steps_per_epoch
        return within * self.checks // size > (within - 1) * self.checks // size

    def alarm(self, health: Health, best: float) -> str | None:
        """Return why `health` is catastrophic overfitting, or None; `best` is the best robust accuracy under PGD."""
        if health.fgsm - health.pgd > self.gap:
            return (
                f"robust accuracy is {_percent(health.fgsm)} under FGSM, {_percent(health.pgd)} under PGD-{self.steps}"
            )
        if health.pgd < self.fall * best and best - health.pgd > _LEAST_FALL:
            return (
                f"robust accuracy under PGD-{self.steps} is {_percent(health.pgd)}, after {_percent(best)} at its best"
            )
        return None

    def rescuer(self) -> Attack:
        """Return the attack of a rescue."""
        return self.rescue or PGD(self.threat, steps=7, step_size=self.threat.eps / 4)


def examine(model: nn.Module, data: TensorData, guard: Guard, backend: AttackBackend, seed: int = 0) -> Health:
    """Return the health of `model` on the images of `data`, without changing the model."""
    rows = torch.arange(len(data), device=data.y.device)
    return _health(_facts(model, data, guard, backend, seed, rows))


def _facts(model: nn.Module, data: TensorData, guard: Guard, backend: AttackBackend, seed: int, rows: Tensor) -> Tensor:
    """Return what the health is the mean of, for the images `rows`, `[B, 5]`; the fourth is NaN without a direction."""
    data = data[rows]
    x, y, threat = pixels(data.x), data.y, guard.threat
    rng = PerExample(seed, rows)
    with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
        loss = CE(attacked, y)
        here, near = value_and_grad(loss, x).grad, value_and_grad(loss, threat.sample(x, rng)).grad
        one = threat.project(x + threat.eps * threat.ascent(here), x)
        many = PGD(threat, guard.steps, threat.eps / 4, patience=0)(loss, x, rng)
        with torch.no_grad():
            right = [(~misclassified(model(z), y)).float() for z in (x, one, many)]
    here, near = here.flatten(1), near.flatten(1)
    cosine = F.cosine_similarity(here, near, dim=1).masked_fill(~((here != 0).any(1) & (near != 0).any(1)), torch.nan)
    return torch.stack([*right, cosine, (here == 0).float().mean(1)], 1)


def _health(facts: Tensor) -> Health:
    clean, fgsm, pgd, _, zeros = facts.mean(0).tolist()
    return Health(clean, fgsm, pgd, float(facts[:, 3].nanmean()), zeros)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class Alarm(Exception):  # noqa: N818
    """Raised at catastrophic overfitting when the guard stops training or begins a rescue."""

    def __init__(self, step: int, why: str, health: Health) -> None:
        super().__init__(f"catastrophic overfitting by step {step}: {why}")
        self.step, self.health = step, health


@dataclass(slots=True)
class Peak:
    """Best robust accuracy on the validation set, and the robust accuracy on training images after the same epoch."""

    held_out: float
    training: float
    told: bool = False
    """True once robust overfitting since that epoch was reported."""


@dataclass(slots=True)
class GuardState:
    """Record of a guard over the training so far, stored in the notes of the training state."""

    healthy: int | None = None
    """Step of the last healthy checkpoint."""
    best: float = 0.0
    """Best robust accuracy under PGD so far."""
    alarmed: bool = False
    until: int = 0
    """Step at which a rescue ends."""
    events: list[dict[str, Any]] = field(default_factory=list)
    peak: Peak | None = None

    @classmethod
    def of(cls, state: State) -> "GuardState":
        stored = dict(state.notes.get("guard", {}))
        peak = stored.pop("peak", None)
        return cls(**stored, peak=None if peak is None else Peak(**peak))

    def store(self, state: State) -> None:
        state.notes["guard"] = asdict(self)

    @property
    def stopped(self) -> str | None:
        """Reason why training was stopped, if the last event stopped it."""
        last = self.events[-1] if self.events else {"action": ""}
        return str(last["what"]) if last["action"] == "stopped" else None


@dataclass(slots=True)
class OverfittingMonitor:
    """Evaluates a model for a guard. Its record is part of the training state, so that resuming is exact."""

    guard: Guard
    data: TensorData
    backend: AttackBackend
    seed: int

    def keep_events(self, state: State, events: list[dict[str, Any]]) -> None:
        """Restore the events that a state from an earlier checkpoint lacks."""
        kept = GuardState.of(state)
        kept.events = events
        kept.store(state)

    def examined(self, model: nn.Module, state: State) -> Health:
        """Return the health of a model; each of several processes looks at its share of the images."""
        rows, seed = torch.arange(len(self.data), device=self.data.y.device), mixed_seed(self.seed, state.step)
        if len(rows) < ranks.world():
            return _health(_facts(model, self.data, self.guard, self.backend, seed, rows))
        mine = rows[ranks.own(len(rows))]
        return _health(ranks.gathered(_facts(model, self.data, self.guard, self.backend, seed, mine)))

    def look(self, state: State) -> tuple[Health, str | None]:
        """Return the health of the model and an event to report, if any; raise `Alarm` if the guard must act."""
        health, kept = self.examined(state.model, state), GuardState.of(state)
        why, before = self.guard.alarm(health, kept.best), kept.alarmed
        kept.alarmed = why is not None
        if why is None:
            kept.healthy, kept.best = state.step, max(kept.best, health.pgd)
        kept.store(state)
        if why is None:
            return health, None
        if self.guard.action != "report" and state.step >= kept.until:
            raise Alarm(state.step, why, health)
        if before:
            return health, None
        return health, self._event(state, f"catastrophic overfitting: {why}", "reported", health)

    def overfitting(self, state: State, health: Health, held_out: float) -> str | None:
        """Return an event if there is robust overfitting, once for each best epoch."""
        kept, least = GuardState.of(state), self.guard.overfitting
        peak = kept.peak
        if peak is None or held_out > peak.held_out:
            kept.peak = Peak(held_out, health.pgd)
            kept.store(state)
            return None
        fallen, risen = peak.held_out - held_out, health.pgd - peak.training
        if peak.told or fallen < least or risen < least:
            return None
        peak.told = True
        kept.store(state)
        return self._event(
            state,
            f"robust overfitting: held-out robust accuracy is {_percent(held_out)}, after {_percent(peak.held_out)} "
            f"at its best, while that on training images rose from {_percent(peak.training)} to "
            f"{_percent(health.pgd)}",
            "reported",
            health,
        )

    def rescued(self, state: State, alarm: Alarm, steps_per_epoch: int, gone_back: bool) -> str:
        """Record the rescue that begins at this state, and return the event."""
        kept = GuardState.of(state)
        times = sum(event["action"] == "rescued" for event in kept.events)
        length = max(1, round(self.guard.rescue_epochs * steps_per_epoch * 2**times))
        kept.until, kept.alarmed = state.step + length, False
        kept.store(state)
        return self._event(
            state,
            f"{alarm}; {_where(state, gone_back)}, then {self.guard.rescuer()} for {length} steps",
            "rescued",
            alarm.health,
        )

    def stopped(self, state: State, alarm: Alarm, gone_back: bool) -> str:
        """Record that training stops, and return the event."""
        return self._event(state, f"{alarm}; {_where(state, gone_back)}, then stopped", "stopped", alarm.health)

    def now(self, method: TrainingMethod, state: State) -> tuple[TrainingMethod, int | None]:
        """Return the method to train with, and the step at which another method takes over, if any."""
        until = GuardState.of(state).until
        if state.step >= until:
            return method, None
        assert isinstance(method, Method)
        return replace(method, attack=self.guard.rescuer()), until

    def _event(self, state: State, what: str, action: str, health: Health) -> str:
        kept = GuardState.of(state)
        kept.events.append({"step": state.step, "action": action, "what": what, "health": plain(health)})
        kept.store(state)
        return f"guard, step {state.step}: {what}"


def _where(state: State, gone_back: bool) -> str:
    return f"back to step {state.step}" if gone_back else f"no healthy checkpoint to go back to at step {state.step}"


def plain(health: Health) -> dict[str, float | None]:
    """Return the fields for a row of metrics, with None in place of NaN."""
    return {name: value if value == value else None for name, value in asdict(health).items()}
