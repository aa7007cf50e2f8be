from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ranks
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.rng import make_rng
from ..core.types import Context, ForwardCache, LabelledData, Objective, PerExampleLoss, Terms
from .contrastive_losses import FeatureContrast
from .contrasts import projected
from .example_bank import Bank


@dataclass(frozen=True, slots=True)
class InstanceDiscrimination(Objective):
    """Instance discrimination (NPID): every image is a class of its own, represented by its row in a bank.

    The loss is -log softmax of the cosine / `temperature` of an image with its own row of the bank, among the rows of
    `negatives` other images, drawn in each step for the whole batch. The attack maximises the same contrast among the
    rows of the batch. The published code estimates the softmax by noise-contrastive estimation; this is the softmax
    over the rows that are drawn.

    A row becomes `momentum` x row + (1 - `momentum`) x the projection in eval mode, scaled to length 1, one step later,
    so that no image is compared with its current projection. This adds a forward pass without gradient to each step.

    Args:
        temperature: Temperature of the scores.
        negatives: Number of rows drawn as negatives.
        momentum: Share of a row that is kept in its update, in [0, 1).

    Raises:
        UserError: If `temperature` is not above 0, there is no negative, or `momentum` is not in [0, 1); in training,
            for batches of several views and for data whose examples have no number.

    References:
        NPID: https://arxiv.org/abs/1805.01978.
    """

    temperature: float = 0.07
    negatives: int = 4096
    momentum: float = 0.5

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.negatives < 1 or not 0 <= self.momentum < 1:
            raise UserError(
                f"instance discrimination needs a temperature above 0, not {self.temperature:g}, at least 1 negative, "
                f"not {self.negatives}, and a momentum in [0, 1), not {self.momentum:g}"
            )

    def init(self, data: LabelledData) -> nn.Module:
        return _Memory(data)

    def observe(self, ctx: Context) -> None:
        memory, index = _memory(ctx), ctx.batch.index
        with eval_mode(ctx.lens.model):  # the attack may want another mode, and gets nothing of this pass
            z = projected(ForwardCache(ctx.lens.model).parts(ctx.batch.x))
        if memory.bank is None:
            memory.begin(z.shape[1])
        if ctx.progress.step == 0 or index.device.type == "cpu":
            memory.known().check(index)
        if ctx.batch.views > 1:
            raise UserError(
                "instance discrimination needs each image once: set views_per_image = 1 (--views-per-image 1)"
            )
        self._remember(memory)
        memory.index, memory.seen = ranks.gathered(index.clone()), ranks.gathered(F.normalize(z, dim=1))

    def inner(self, ctx: Context) -> PerExampleLoss:
        index = ranks.gathered(ctx.batch.index)
        rows = _memory(ctx).known()[index]
        own = torch.arange(len(rows), device=rows.device)[ranks.place(len(ctx.batch.index))]
        kind = next(ctx.lens.model.parameters()).dtype
        return FeatureContrast(lambda x: projected(ctx.lens.parts(x)), rows.to(kind), own, self.temperature)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        bank, index = _memory(ctx).known(), ctx.batch.index
        z = F.normalize(projected(ctx.lens.parts(x_adv)), dim=1)
        generator = make_rng(ctx.chance("negatives"))
        drawn = torch.randint(len(bank.rows), (self.negatives,), generator=generator).to(index.device)
        mine = (z * bank[index]).sum(1, keepdim=True)
        others = (z @ bank[drawn].T.to(z.dtype)).masked_fill(drawn == index[:, None], -torch.inf)
        scores = torch.cat([mine, others], 1) / self.temperature
        return {"instances": F.cross_entropy(scores, torch.zeros_like(index))}

    def _remember(self, memory: "_Memory") -> None:
        """Write the projections of the previous step into the bank."""
        if len(memory.index):
            bank = memory.known()
            rows = self.momentum * bank[memory.index] + (1 - self.momentum) * memory.seen
            bank[memory.index] = F.normalize(rows, dim=1)


_AT_A_TIME = 65_536


class _Memory(nn.Module):
    """The bank, made when the size of the projection is known, and the rows to be written next."""

    index: Tensor
    seen: Tensor
    bank: Bank | None

    def __init__(self, data: LabelledData) -> None:
        super().__init__()
        self.data = data
        self.bank = None
        self.register_buffer("index", torch.zeros(0, dtype=torch.long))
        self.register_buffer("seen", torch.zeros(0, 0))

    def begin(self, columns: int) -> None:
        """Start with random directions, as published: rows of 0 would give no gradient before an image recurs."""
        self.bank = Bank(self.data, columns).to(self.index.device)
        for rows in torch.arange(len(self.bank.rows)).split(_AT_A_TIME):
            drawn = torch.randn(len(rows), columns, generator=make_rng(int(rows[0])))
            self.bank[rows] = F.normalize(drawn, dim=1)

    def known(self) -> Bank:
        assert self.bank is not None
        return self.bank

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "bank.rows")
        if saved is None:
            self.bank = None  # a state before the first step
        elif self.bank is None or self.bank.rows.shape[1] != saved.shape[1]:
            self.begin(saved.shape[1])
        device = self.index.device
        self.index, self.seen = (
            torch.zeros_like(state_dict[prefix + name], device=device) for name in ("index", "seen")
        )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _memory(ctx: Context) -> _Memory:
    assert isinstance(ctx.memory, _Memory)
    return ctx.memory
