"""Loss and correctness of a model on each training example, recorded from epoch to epoch."""

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
from ..core.walk import walk
from ..records.results import Array


@dataclass(frozen=True, slots=True)
class ExampleHistory:
    """Evaluates all training examples after every few epochs and after the last, with an attack of its own.

    It does not change the training. Losses and correctness are written to the run folder, about 4 bytes per example and
    evaluation; `RunFolder.read_memory` gives the difficulty of the examples and which were forgotten.

    Args:
        attack: attack on the training examples. It must not stop once an example is fooled, because the loss at the
            point where it stops is not the largest.
        every: number of epochs from one evaluation to the next, at least 1.
        batch_size: number of examples attacked at a time, at least 1.

    Raises:
        UserError: when `every` or `batch_size` is below 1, or when `attack` stops once an example is fooled.
    """

    attack: Attack
    every: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.every < 1 or self.batch_size < 1:
            raise UserError(
                f"every = {self.every} and batch_size = {self.batch_size} of a history: both must be at least 1"
            )
        stopping = [each for each in walk(self.attack) if getattr(each, "stops_when_fooled", False)]
        if stopping:
            raise UserError(
                "an example history records the largest loss of each example, so its attack must continue after an "
                f"example is fooled, and {type(stopping[0]).__name__} does not: give PGD patience=None, or APGD "
                "to_the_end=True"
            )

    def due(self, epoch: int, epochs: int) -> bool:
        """Return True if the examples are evaluated after this epoch, of `epochs`."""
        return epoch % self.every == 0 or epoch == epochs

    def record(
        self, model: nn.Module, data: LabelledData, backend: AttackBackend, seed: int, rows: Tensor | None = None
    ) -> dict[str, Array]:
        """Return losses and correctness, clean and adversarial, of the examples `rows`, by default of all."""
        every = torch.arange(len(data), device=data.y.device) if rows is None else rows
        found: dict[str, list[Tensor]] = {}
        with eval_mode(model), frozen(model):
            for rows in every.split(self.batch_size):
                part = data[rows]
                x, y = pixels(part.x), part.y
                with backend(model, x[:8]) as attacked:
                    z = self.attack(CE(attacked, y), x, PerExample(seed, rows))
                for name, points in (("clean", x), ("adversarial", z)):
                    loss, right = _loss_and_correctness(model, points, y)
                    found.setdefault(f"{name}_loss", []).append(loss)
                    found.setdefault(f"{name}_right", []).append(right)
        return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


def remembering(attack: Attack, every: int = 1) -> ExampleHistory:
    """Return an `ExampleHistory` whose attack continues to its last step after an example is fooled."""
    whole: Any = attack
    further = {"patience": None, "to_the_end": True}
    return ExampleHistory(replace(whole, **{n: v for n, v in further.items() if hasattr(whole, n)}), every)


@torch.no_grad()
def _loss_and_correctness(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x).float()
    return F.cross_entropy(logits, y, reduction="none"), ~misclassified(logits, y)
