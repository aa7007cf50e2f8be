"""What a model is like on each training example, to be remembered from epoch to epoch."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import CE, misclassified
from ..core.errors import UserError
from ..core.modes import eval_mode, frozen
from ..core.rng import PerExample
from ..core.types import Attack, AttackBackend, LabelledData, pixels
from ..records.results import Array


@dataclass(frozen=True, slots=True)
class ExampleHistory:
    """Looks at all training examples after every so many epochs, and after the last, by an attack of its own.

    It changes nothing of the training. Losses and correctness go to the run folder, some 4 bytes an example and look;
    their difficulty and what was forgotten, `RunFolder.read_memory` says. Raises `UserError` for an attack that stops
    once an example is fooled: where it ends, the loss is not the largest.
    """

    attack: Attack
    every: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.every < 1 or self.batch_size < 1:
            raise UserError(
                f"one looks every epoch or more seldom, at an example or more at a time, not every {self.every} at "
                f"{self.batch_size}"
            )
        if getattr(self.attack, "patience", None) is not None:
            raise UserError(
                "examples are remembered by their loss, so the attack must go on when they are fooled: give it "
                "patience=None"
            )

    def due(self, epoch: int, epochs: int) -> bool:
        return epoch % self.every == 0 or epoch == epochs

    def record(self, model: nn.Module, data: LabelledData, backend: AttackBackend, seed: int) -> dict[str, Array]:
        """`clean_loss`, `adversarial_loss`, `clean_right`, `adversarial_right`, each `[N]`."""
        found: dict[str, list[Tensor]] = {}
        with eval_mode(model), frozen(model):
            for rows in torch.arange(len(data), device=data.y.device).split(self.batch_size):
                part = data[rows]
                x, y = pixels(part.x), part.y
                with backend(model, x[:8]) as attacked:
                    z = self.attack(CE(attacked, y), x, PerExample(seed, rows))
                for name, points in (("clean", x), ("adversarial", z)):
                    loss, right = _told(model, points, y)
                    found.setdefault(f"{name}_loss", []).append(loss)
                    found.setdefault(f"{name}_right", []).append(right)
        return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


def remembering(attack: Attack, every: int = 1) -> ExampleHistory:
    """By an attack, which goes on to its end when an example is fooled."""
    whole: Any = attack
    return ExampleHistory(replace(whole, patience=None) if hasattr(whole, "patience") else whole, every)


@torch.no_grad()
def _told(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x).float()
    return F.cross_entropy(logits, y, reduction="none"), ~misclassified(logits, y)
