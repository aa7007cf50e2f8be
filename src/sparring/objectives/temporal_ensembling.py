from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..attacks.losses import SquaredDistance
from ..core import ranks
from ..core.devices import finest
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.schedules import Ramp
from ..core.types import Context, LabelledData, PerExampleLoss, Schedule, Terms, at
from .example_bank import Bank, Place
from .regularizers import Regularizer


@dataclass(frozen=True, slots=True)
class TemporalEnsembling(Regularizer):
    """Temporal ensembling: pulls predictions towards an average of the model's earlier predictions for the same image.

    The term is `weight` x |p(x') - q|², summed over the classes and averaged over the examples. The attack maximises it
    and the update minimises it. q is the row of the image in a bank. Before each attack it becomes
    `decay` x q + (1 - `decay`) x p(x), where p(x) is the prediction in eval mode at the clean image; in the term q is
    scaled to sum 1. While the weight is 0, the bank is not updated and the term is left out. Added to a method:
    `Sum((CrossEntropy(), TemporalEnsembling()))`.

    Args:
        weight: Weight of the term, a number or a schedule, for the sum over classes.
        decay: Share of q that is kept in each update of the bank, in [0, 1).
        on: Prediction that the update pulls, for TRADES the "clean" one; the attack always maximises the distance of
            the adversarial one.
        per_class: Whether the term is averaged over classes too, as in the released code. A weight is then C times
            weaker: the 300 of that code is 30 without `per_class` for 10 classes, but 3 for 100.
        place: Where the bank is stored: "device", "host" or "disk"; "auto" chooses by size.

    Raises:
        UserError: If `decay` is not in [0, 1) or the weight is negative; in training, for data whose examples have no
            number.

    References:
        Temporal ensembling against robust overfitting: https://arxiv.org/abs/2106.01606.
    """

    weight: float | Schedule[float] = Ramp(30.0)  # noqa: RUF009
    decay: float = 0.9
    on: Literal["adversarial", "clean"] = "adversarial"
    per_class: bool = False
    place: Place = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"decay = {self.decay:g} of temporal ensembling is not in [0, 1)")
        peak = self.weight.peak if isinstance(self.weight, Ramp) else self.weight
        if isinstance(peak, float | int) and peak < 0:
            raise UserError(
                f"a weight of {peak:g} would drive predictions away from their ensemble: it must be at least 0"
            )

    def init(self, data: LabelledData) -> nn.Module:
        return Bank(data, len(data.classes), self.place)

    def observe(self, ctx: Context) -> None:
        bank, index = _bank(ctx), ctx.batch.index
        if ctx.progress.step == 0 or index.device.type == "cpu":
            bank.check(index)
        if not at(self.weight, ctx.progress):
            return
        with eval_mode(ctx.lens.model):
            p = ranks.gathered(ctx.lens.logits(ctx.batch.x).softmax(1))
        index = ranks.gathered(index)
        kind = finest(p.device)
        same = (index[:, None] == index).to(kind)  # an image may be in a batch several times, as views
        mean = (same @ p.to(kind) / same.sum(1, keepdim=True)).float()
        bank[index] = self.decay * bank[index] + (1 - self.decay) * mean

    def inner_term(self, ctx: Context) -> PerExampleLoss | None:
        weight = self._weight(ctx)
        return SquaredDistance(ctx.lens.logits, self._target(ctx), weight) if weight else None

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        weight = self._weight(ctx)
        if not weight:
            return {}
        drawn = SquaredDistance(ctx.lens.logits, self._target(ctx), weight)
        return {"ensemble": drawn(x_adv if self.on == "adversarial" else ctx.batch.x).value.mean()}

    def _weight(self, ctx: Context) -> float:
        """Weight for the sum over classes."""
        return at(self.weight, ctx.progress) / (_bank(ctx).rows.shape[1] if self.per_class else 1)

    def _target(self, ctx: Context) -> Tensor:
        row = _bank(ctx)[ctx.batch.index]
        return row / row.sum(1, keepdim=True)


def _bank(ctx: Context) -> Bank:
    assert isinstance(ctx.memory, Bank)
    return ctx.memory
