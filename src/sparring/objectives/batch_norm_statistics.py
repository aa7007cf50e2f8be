from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import need_whole
from ..core.modes import statistics_kept
from ..core.types import Context, ForwardCache, LabelledData, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class BatchNormStatistics(Objective):
    """A method, of whose forward passes in the update only some move the running statistics of batch norm.

    Released codes differ in this without a word, and it decides what the model is at test time. `of` is "adversarial",
    "clean" or "both". Clean images count `clean_passes` times a step: what of these the method does not run are forward
    passes without gradient after the others. With 2, cross-entropy has the order of the code of
    https://arxiv.org/abs/2010.00467 (adversarial, clean, clean: 70 % of the statistics are of clean images; its last
    pass is after the step, this one before) and TRADES that of its code (clean, adversarial, clean: 67 %). Whether
    *crafting* moves the statistics is the inner view: it does in `train_mode`, not in `eval_mode` and
    `batch_statistics`. Raises `UserError` for fewer than one pass.
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

    def inner(self, ctx: Context) -> PerExampleLoss:
        return self.method.inner(ctx)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        lens = _Choosing(ctx.lens.model, counts=lambda x: self._counts(x is ctx.batch.x))
        terms = self.method.outer(Context(lens, ctx.batch, ctx.memory, ctx.progress), x_adv)
        if self.of != "adversarial":
            with torch.no_grad():
                for _ in range(self.clean_passes - lens.met(ctx.batch.x)):
                    lens.model(ctx.batch.x)
        return terms

    def _counts(self, clean: bool) -> bool:
        return self.of == "both" or (self.of == "clean") == clean


@dataclass(slots=True)
class _Choosing(ForwardCache):
    """A lens through which only some tensors move the statistics."""

    counts: Callable[[Tensor], bool] = field(kw_only=True)

    def met(self, x: Tensor) -> bool:
        return any(known is x for known, _, _ in self._seen)

    def _once(self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, least: int = 1) -> tuple[Tensor, ...]:
        if self.counts(x):
            return ForwardCache._once(self, forward, x, least)
        with statistics_kept(self.model):
            return ForwardCache._once(self, forward, x, least)
