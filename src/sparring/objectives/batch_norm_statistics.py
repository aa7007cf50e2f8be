from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import need_whole
from ..core.modes import statistics_kept
from ..core.types import KEPT_OUTPUTS, Attack, Context, ForwardCache, LabelledData, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class BatchNormStatistics(Objective):
    """A method of which only some forward passes in the update change the running statistics of batch norm.

    Released codes differ in this without mentioning it, and it decides how the model behaves at test time. With
    `clean_passes=2`, cross-entropy has the order of the code of Bag of Tricks (adversarial, clean, clean: 70 % of the
    statistics are of clean images; its last pass is after the step, here it is before) and TRADES the order of its own
    code (clean, adversarial, clean: 67 %). Whether *crafting* changes the statistics depends on the inner view: it does
    in `train_mode`, not in `eval_mode` and `batch_statistics`.

    Args:
        method: The method.
        of: Images whose passes change the statistics: "adversarial", "clean" or "both".
        clean_passes: How many times clean images count in a step, if they count. Passes that the method does not run
            itself are added as forward passes without gradient, after the others.

    Raises:
        UserError: If `clean_passes` is less than 1.

    References:
        Bag of Tricks: https://arxiv.org/abs/2010.00467.
    """

    method: Objective
    of: Literal["adversarial", "clean", "both"] = "adversarial"
    clean_passes: int = 1

    def __post_init__(self) -> None:
        need_whole("clean_passes", self.clean_passes)

    def init(self, data: LabelledData) -> nn.Module:
        return self.method.init(data)

    def observe(self, ctx: Context) -> None:
        self.method.observe(ctx)

    def start(self, ctx: Context) -> Tensor | None:
        return self.method.start(ctx)

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        return self.method.attacking(ctx, attack)

    def inner(self, ctx: Context) -> PerExampleLoss:
        return self.method.inner(ctx)

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        self.method.remember(ctx, x_adv)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        def counts(x: Tensor) -> bool:
            return self._counts(x is ctx.batch.x, x is x_adv)

        lens = _SelectiveCache(ctx.lens.model, deque(maxlen=KEPT_OUTPUTS), counts=counts)
        terms = self.method.outer(replace(ctx, lens=lens), x_adv)
        if self.of != "adversarial":
            with torch.no_grad():
                for _ in range(self.clean_passes - lens.has_seen(ctx.batch.x)):
                    lens.model(ctx.batch.x)
        return terms

    def _counts(self, clean: bool, adversarial: bool) -> bool:
        """Return True if a tensor counts; where nothing attacks, clean images are the adversarial ones."""
        if self.of == "both":
            return True
        return clean if self.of == "clean" else adversarial or not clean


@dataclass(slots=True)
class _SelectiveCache(ForwardCache):
    """A forward cache in which only some tensors change the statistics of batch norm."""

    counts: Callable[[Tensor], bool] = field(kw_only=True)

    def has_seen(self, x: Tensor) -> bool:
        return any(known is x for known, *_ in self._seen)

    def _once(
        self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, least: int = 1, whole: bool = False
    ) -> tuple[Tensor, ...]:
        with nullcontext() if self.counts(x) else statistics_kept(self.model):
            return ForwardCache._once(self, forward, x, least, whole)
