"""Attacks of an evaluation by their names in the field."""

from collections.abc import Callable, Mapping
from typing import Any

from ..attacks import APGD, FGSM, PGD, HopSkipJump, Restarts, Square
from ..attacks.losses import CE, Margin
from ..attacks.threats import L1, L2, Linf, threat
from ..core.errors import UserError, nearest
from ..core.types import Threat
from .adversaries import Adversary, WhiteBox, as_adversary
from .auto_attack import AutoAttack
from .minimum_norm import MinimumNorm
from .runner import Cascade

ADVERSARIES: Mapping[str, Callable[[Any], Adversary | Cascade]] = {
    "fgsm": lambda within: WhiteBox(FGSM(within)),
    "pgd": lambda within: WhiteBox(PGD(within, 20, within.eps / 4, patience=0)),
    "pgd-50-10": lambda within: WhiteBox(Restarts(PGD(within, 50, within.eps / 4, patience=0), 10)),
    "apgd": lambda within: WhiteBox(APGD(within, 100), CE),
    "hopskipjump": lambda within: WhiteBox(HopSkipJump(within), Margin),
    "square": lambda within: WhiteBox(Square(within, 5000), Margin),
    "autoattack": AutoAttack,
    "autoattack-plus": lambda within: AutoAttack(within, "plus"),
    "autoattack-rand": lambda within: AutoAttack(within, "rand"),
    "min-norm": MinimumNorm.of,
}
"""The attack of each name, within a set of perturbations; `fgsm` and `pgd` work within a set of the user's, too."""


def adversaries_of(given: object, within: Threat | str | None) -> dict[str, Adversary | Cascade]:
    """Gives the adversaries of an evaluation by name.

    Args:
        given: Adversaries or attacks by name; a single one; the name of one, or several names.
        within: The set of perturbations for names; an object, or text such as "linf:8/255".

    Returns:
        The adversaries by their names in the result.

    Raises:
        UserError: If a name is unknown, if there is a name and no set, or a set beside attacks that have their own.
    """
    named = isinstance(given, str | tuple | list)
    if isinstance(given, tuple | list) and not given:
        raise UserError("no attack is named: name one, such as 'pgd', or give {} to see clean accuracy alone")
    if isinstance(given, set | frozenset):
        raise UserError(f"a set has no order: name the attacks in a list, as {sorted(map(str, given))}")
    if within is not None and not named:
        raise UserError("eps and threat are for attacks given by name: an attack given as an object has its own")
    if isinstance(given, Mapping):
        return {str(name): as_adversary(each) for name, each in given.items()}
    if isinstance(given, str):
        return {given: _named(given, within)}
    if isinstance(given, tuple | list) and all(isinstance(each, str) for each in given):
        return {name: _named(name, within) for name in given}
    return {type(given).__name__.lower(): as_adversary(given)}


def _named(name: str, within: Threat | str | None) -> Adversary | Cascade:
    if name not in ADVERSARIES:
        raise UserError(f"no attack {name!r}: {nearest(name, ADVERSARIES)}")
    found = threat(within) if isinstance(within, str) else within
    if found is None:
        raise UserError(f"{name} needs eps, the radius of the perturbations: give it, as eps='8/255'")
    if not isinstance(found, Linf | L2 | L1):
        raise UserError(f"{name} is defined for Linf, L2 and L1: give an attack with your own set, not its name")
    return ADVERSARIES[name](found)


def within_of(eps: float | str | None, within: Threat | str | None) -> Threat | str | None:
    """Return the set of perturbations: of Linf with radius `eps`, or the one that is given. Both are refused."""
    if eps is not None and within is not None:
        raise UserError("eps is the radius in Linf, and threat names a set with its own: give one of them")
    return within if eps is None else Linf(eps)
