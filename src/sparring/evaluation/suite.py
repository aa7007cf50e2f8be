"""A suite of attacks beyond one ball: several norms, decisions alone, transfer, and smallest distances."""

from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

from ..attacks import APGD, HopSkipJump
from ..attacks.losses import Margin
from ..attacks.threats import L1, L2, Linf
from ..core.errors import UserError
from .adversaries import Adversary, WhiteBox
from .auto_attack import AutoAttack
from .minimum_norm import MinimumNorm
from .runner import Cascade
from .transfer import Transfer

Ball: TypeAlias = Linf | L2 | L1
RADII: tuple[Ball, ...] = (Linf(8 / 255), L2(0.5), L1(12))
"""Radii that the literature on several norms uses for CIFAR-10 (https://arxiv.org/abs/2105.12508)."""


def full_suite(
    threat: Ball, others: Iterable[Ball] = RADII, surrogate: tuple[str, nn.Module] | None = None
) -> dict[str, Adversary | Cascade]:
    """Gives the attacks of the full suite by name.

    They are AutoAttack in each norm (`linf`, `l2`, `l1`); `hopskipjump`, which sees decisions alone, in the first of
    Linf and L2 there is; with a surrogate `transfer`, APGD on the surrogate; and `nearest`, smallest distances in the
    norm of the threat. The result of an evaluation computes the union of the norms from them.

    Args:
        threat: The set of the training, which stands for its norm.
        others: Sets for the other norms; of two of the same norm the first counts.
        surrogate: Name of another model, and the model.

    Returns:
        The adversaries.

    Raises:
        UserError: If a set is none of the three balls.
    """
    by_norm: dict[str, Ball] = {}
    for ball in (threat, *others):
        if not isinstance(ball, Linf | L2 | L1):
            raise UserError(f"the suite has the norms Linf, L2 and L1, and {ball!r} is none of them")
        by_norm.setdefault(type(ball).__name__.lower(), ball)
    found: dict[str, Adversary | Cascade] = {name: AutoAttack(ball) for name, ball in by_norm.items()}
    decided = next((ball for ball in by_norm.values() if not isinstance(ball, L1)), None)
    if decided is not None:
        found["hopskipjump"] = WhiteBox(HopSkipJump(decided), Margin)
    if surrogate is not None:
        found["transfer"] = transfer(*surrogate, threat)
    return {**found, "nearest": MinimumNorm.of(threat)}


def transfer(name: str, surrogate: nn.Module, threat: Ball) -> Transfer:
    """Gives the transfer attack of the suite: 100 steps of APGD on a surrogate, to the end.

    Args:
        name: Name of the surrogate.
        surrogate: The surrogate.
        threat: The set that adversarial examples must lie in.

    Returns:
        The adversary.
    """
    return Transfer.of(name, surrogate, APGD(threat, 100, to_the_end=True))
