from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from ..attacks.losses import SumLoss
from ..core.errors import UserError
from ..core.schedules import Cycle
from ..core.types import Attack, Context, LabelledData, Objective, PerExampleLoss, Progress, Terms


class Regularizer(Objective):
    """Part of an objective that is added to a method, and cannot be trained with alone.

    It defines no complete loss for the attack. A subclass gives `outer`, and `inner_term` if the attack is to maximise
    a term in addition to the method's own loss.
    """

    def inner_term(self, ctx: Context) -> PerExampleLoss | None:
        """Loss that the attack maximises in addition; by default None: the term acts on the update only."""
        del ctx
        return None

    def inner(self, ctx: Context) -> PerExampleLoss:
        raise UserError(
            f"{type(self).__name__} does not define a loss for the attack: add it to a method, "
            f"Sum((CrossEntropy(), {type(self).__name__}(..)))"
        )


@dataclass(frozen=True, slots=True)
class Sum(Objective):
    """Sum of objectives: adds their attack losses and their terms; each keeps its own memory.

    The parts share the forward pass of each tensor.

    Args:
        parts: The objectives; at least one must be a method, not a `Regularizer`.

    Raises:
        UserError: If no part defines the loss of the attack; in training, if two parts give a term the same name.
    """

    parts: tuple[Objective, ...]

    def __post_init__(self) -> None:
        if all(isinstance(part, Regularizer) for part in self.parts):
            raise UserError("a sum needs a method that defines the loss of the attack, for example CrossEntropy()")

    def init(self, data: LabelledData) -> nn.Module:
        return nn.ModuleList(part.init(data) for part in self.parts)

    def observe(self, ctx: Context) -> None:
        for part, own in self._each(ctx):
            part.observe(own)

    def start(self, ctx: Context) -> Tensor | None:
        chosen = (part.start(own) for part, own in self._each(ctx))
        return next((points for points in chosen if points is not None), None)

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        for part, own in self._each(ctx):
            attack = part.attacking(own, attack)
        return attack

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        for part, own in self._each(ctx):
            part.remember(own, x_adv)

    def inner(self, ctx: Context) -> PerExampleLoss:
        both = [
            part.inner_term(own) if isinstance(part, Regularizer) else part.inner(own) for part, own in self._each(ctx)
        ]
        losses = [loss for loss in both if loss is not None]
        return losses[0] if len(losses) == 1 else SumLoss(tuple(losses))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        named = [item for part, own in self._each(ctx) for item in part.outer(own, x_adv).items()]
        twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
        if twice:
            raise UserError(f"two objectives of a sum both call a term {twice[0]!r}: one would hide the other")
        return dict(named)

    def _each(self, ctx: Context) -> list[tuple[Objective, Context]]:
        memories = ctx.memory.children()
        return [(part, ctx.remembering(memory)) for part, memory in zip(self.parts, memories, strict=True)]


@dataclass(frozen=True, slots=True)
class Staged(Objective):
    """Switches between objectives in stages, repeated for ever: `Staged(((78, MixUp()), (312, CrossEntropy())))`.

    Lengths are whole steps, so that it stays in step with a `Cycle` of attacks. Every part keeps its own memory, and
    each observes every batch.

    Args:
        stages: Pairs of a length and an objective.
        epochs: Length of a period in epochs; the lengths are then shares of it, as in `Cycle`. None counts steps.

    Raises:
        UserError: If there is no stage, a length is not a whole number of at least 1, or `epochs` is not above 0.
    """

    stages: tuple[tuple[int, Objective], ...]
    epochs: float | None = None

    def __post_init__(self) -> None:
        Cycle(self.stages, self.epochs)

    def init(self, data: LabelledData) -> nn.Module:
        return nn.ModuleList(part.init(data) for _, part in self.stages)

    def observe(self, ctx: Context) -> None:
        for (_, part), memory in zip(self.stages, ctx.memory.children(), strict=True):
            part.observe(ctx.remembering(memory))

    def start(self, ctx: Context) -> Tensor | None:
        return self.at(ctx.progress).start(self._own(ctx))

    def attacking(self, ctx: Context, attack: Attack) -> Attack:
        return self.at(ctx.progress).attacking(self._own(ctx), attack)

    def remember(self, ctx: Context, x_adv: Tensor) -> None:
        self.at(ctx.progress).remember(self._own(ctx), x_adv)

    def inner(self, ctx: Context) -> PerExampleLoss:
        return self.at(ctx.progress).inner(self._own(ctx))

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        return self.at(ctx.progress).outer(self._own(ctx), x_adv)

    def at(self, progress: Progress) -> Objective:
        """The objective of the current stage."""
        return Cycle(self.stages, self.epochs).at(progress)

    def _own(self, ctx: Context) -> Context:
        lengths = [length for length, _ in self.stages]
        memory = Cycle(tuple(zip(lengths, ctx.memory.children(), strict=True)), self.epochs).at(ctx.progress)
        return ctx.remembering(memory)
