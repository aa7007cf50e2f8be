from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from ..core import Context, Data, Objective, Terms
from ..errors import UserError
from ..losses import Total


@dataclass(frozen=True, slots=True)
class Sum(Objective):
    """Adds objectives: their inner losses, their terms, their memories side by side.

    The parts share the forward pass of each tensor. Raises `UserError` when two parts name a term alike.
    """

    parts: tuple[Objective, ...]

    def init(self, data: Data) -> nn.Module:
        return nn.ModuleList(part.init(data) for part in self.parts)

    def observe(self, ctx: Context) -> None:
        for part, own in self._each(ctx):
            part.observe(own)

    def inner(self, ctx: Context) -> Total:
        return Total(tuple(part.inner(own) for part, own in self._each(ctx)))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        named = [item for part, own in self._each(ctx) for item in part.outer(own, x_adv).items()]
        twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
        if twice:
            raise UserError(f"two objectives of a sum both call a term {twice[0]!r}: one would hide the other")
        return dict(named)

    def _each(self, ctx: Context) -> list[tuple[Objective, Context]]:
        memories = ctx.memory.children()
        return [
            (part, Context(ctx.lens, ctx.batch, memory, ctx.progress))
            for part, memory in zip(self.parts, memories, strict=True)
        ]
