"""A guard against catastrophic overfitting that acts, and an alarm for robust overfitting that tells.

Training on examples of a single step can collapse within an epoch: the step goes on fooling the model less and less,
while an attack of several steps fools it altogether (https://arxiv.org/abs/2001.03994). The guard looks at both on a
fixed part of the training images.
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
from ..core.errors import UserError
from ..core.modes import eval_mode, frozen
from ..core.rng import make_rng, mixed_seed
from ..core.types import Attack, AttackBackend, Progress, TensorData, Threat, pixels
from .engine import Method, State, TrainingMethod

Action = Literal["report", "stop", "rescue"]

_LEAST_FALL = 0.1  # the accuracy of 256 images is known to 0.06; before anything is learned, it jumps about


@dataclass(frozen=True, slots=True)
class Health:
    """What the guard saw: accuracies under one step and under several, and what the input gradients are like."""

    clean: float
    fgsm: float
    pgd: float
    cosine: float
    """The mean cosine of the gradients at an image and at a random point of its set; NaN where no image has one."""
    zeros: float
    """The share of pixels whose gradient is exactly 0."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Looks at training `checks` times an epoch, on `examples` training images, and acts on an alarm.

    The alarm is that FGSM leaves `gap` more of the images standing than PGD of `steps` steps does, or that PGD leaves
    fewer than `fall` x what it left at best, and ten points fewer. `action` is "report", "stop" (the last healthy
    weights are the last ones), or "rescue": training goes back to the last healthy checkpoint and on from there with
    `rescue` in place of its attack, PGD of 7 steps if left out, for `rescue_epochs`, twice as long each further time.

    Each epoch it also tells of robust overfitting: the held-out robust accuracy is `overfitting` below its best, while
    that on the training images has risen by as much.
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
            raise UserError(f"a guard can {', '.join(get_args(Action))}, not {self.action!r}")
        for name in ("checks", "examples", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} of a guard is not at least 1")
        if not (0 < self.gap < 1 and 0 < self.fall < 1 and 0 < self.overfitting < 1):
            raise UserError("gap, fall and overfitting of a guard are differences and shares of accuracies, in (0, 1)")
        if self.rescue_epochs <= 0:
            raise UserError(f"a rescue lasts longer than {self.rescue_epochs:g} epochs")

    @property
    def passes(self) -> int:
        """Forward-backward passes of each image at a check, at most: FGSM, PGD, a random point, and three looks."""
        return self.steps + 4

    def added(self, batch_size: int, steps_per_epoch: int, mean: float) -> float:
        """The passes that it adds at most, as a share of those of training, which takes `mean` per example and step."""
        return self.checks * self.examples * self.passes / (batch_size * steps_per_epoch * mean)

    def due(self, progress: Progress) -> bool:
        """Whether it looks after this step, besides the end of each epoch."""
        within, size = (progress.step - 1) % progress.steps_per_epoch + 1, progress.steps_per_epoch
        return within * self.checks // size > (within - 1) * self.checks // size

    def alarm(self, health: Health, best: float) -> str | None:
        """Why this is catastrophic overfitting, where PGD left `best` standing at its best; None if it is not."""
        if health.fgsm - health.pgd > self.gap:
            return f"FGSM leaves {_percent(health.fgsm)} standing, PGD-{self.steps} {_percent(health.pgd)}"
        if health.pgd < self.fall * best and best - health.pgd > _LEAST_FALL:
            return f"PGD-{self.steps} leaves {_percent(health.pgd)} standing, after {_percent(best)} before"
        return None

    def rescuer(self) -> Attack:
        return self.rescue or PGD(self.threat, steps=7, step_size=self.threat.eps / 4)


def examine(model: nn.Module, data: TensorData, guard: Guard, backend: AttackBackend, seed: int = 0) -> Health:
    """How healthy `model` is on these images. Nothing of it changes."""
    x, y, threat = pixels(data.x), data.y, guard.threat
    rng = make_rng(seed, x.device)
    with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
        loss = CE(attacked, y)
        here, near = value_and_grad(loss, x).grad, value_and_grad(loss, threat.sample(x, rng)).grad
        one = threat.project(x + threat.eps * threat.ascent(here), x)
        many = PGD(threat, guard.steps, threat.eps / 4, patience=0)(loss, x, rng)
        with torch.no_grad():
            clean, fgsm, pgd = (float((~misclassified(model(z), y)).float().mean()) for z in (x, one, many))
    return Health(clean, fgsm, pgd, _cosine(here.flatten(1), near.flatten(1)), float((here == 0).float().mean()))


def _cosine(a: Tensor, b: Tensor) -> float:
    felt = (a != 0).any(1) & (b != 0).any(1)
    return float(F.cosine_similarity(a[felt], b[felt], dim=1).mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class Alarm(Exception):  # noqa: N818
    """Training has overfitted catastrophically, and something is to be done."""

    def __init__(self, step: int, why: str, health: Health) -> None:
        super().__init__(f"catastrophic overfitting by step {step}: {why}")
        self.step, self.health = step, health


@dataclass(slots=True)
class Peak:
    """The epoch of the best held-out robust accuracy, and the robust accuracy on training images at that time."""

    held_out: float
    training: float
    told: bool = False
    """Whether robust overfitting since then was reported."""


@dataclass(slots=True)
class GuardState:
    """What a guard knows of the training so far. It is stored in the notes of the training state."""

    healthy: int | None = None
    """The step of the last healthy checkpoint."""
    best: float = 0.0
    """The highest accuracy under PGD so far."""
    alarmed: bool = False
    until: int = 0
    """The step at which a rescue ends."""
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
        """Why training was stopped, if the last event stopped it."""
        last = self.events[-1] if self.events else {"action": ""}
        return str(last["what"]) if last["action"] == "stopped" else None


@dataclass(slots=True)
class OverfittingMonitor:
    """Examines a model for a guard. What it knows is part of the training state, so that resuming is exact."""

    guard: Guard
    data: TensorData
    backend: AttackBackend
    seed: int

    def kept(self, state: State) -> GuardState:
        return GuardState.of(state)

    def keep_events(self, state: State, events: list[dict[str, Any]]) -> None:
        """Puts back the events that a state from an earlier checkpoint does not know."""
        kept = GuardState.of(state)
        kept.events = events
        kept.store(state)

    def examined(self, model: nn.Module, state: State) -> Health:
        return examine(model, self.data, self.guard, self.backend, mixed_seed(self.seed, state.step))

    def look(self, state: State, progress: Progress) -> tuple[Health, str | None]:
        """The health now, and an event to report, if there is one. Raises `Alarm` where the guard is to act."""
        del progress
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
        """The event of robust overfitting, once for each best epoch."""
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
        """Records the rescue that begins at the state."""
        kept = GuardState.of(state)
        times = sum(event["action"] == "rescued" for event in kept.events)
        length = max(1, round(self.guard.rescue_epochs * steps_per_epoch * 2**times))
        kept.until, kept.alarmed = state.step + length, False
        kept.store(state)
        return self._event(
            state,
            f"{alarm}; {_where(state, gone_back)}, and on with {self.guard.rescuer()} for {length} steps",
            "rescued",
            alarm.health,
        )

    def stopped(self, state: State, alarm: Alarm, gone_back: bool) -> str:
        return self._event(state, f"{alarm}; {_where(state, gone_back)}, and stopped", "stopped", alarm.health)

    def now(self, method: TrainingMethod, state: State) -> tuple[TrainingMethod, int | None]:
        """The method of this moment, and the step at which another one takes over."""
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
    """For a row of metrics, where NaN has no place."""
    return {name: value if value == value else None for name, value in asdict(health).items()}
