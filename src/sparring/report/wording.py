"""Numbers and names as a reader wants them. Imports no torch."""

import math
import re
from fractions import Fraction

from ..records.results import Accuracy


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def with_interval(accuracy: Accuracy) -> str:
    """An accuracy with its 95 % interval, as in `48.7 % [47.7, 49.7]`."""
    low, high = accuracy.interval
    return f"{percent(accuracy.value)} [{100 * low:.1f}, {100 * high:.1f}]"


def radius(eps: float) -> str:
    """An eps as the field writes it: `8/255` where it is a whole number of grey levels, else a decimal number."""
    levels = eps * 255
    if abs(levels - round(levels)) < 1e-6 and 0 < round(levels) < 255 and Fraction(f"{eps:.10g}").denominator > 20:
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


_THREAT = re.compile(r"(\w+)\(eps=([\d.e+-]+)")


def threat_name(text: str) -> str:
    """The name of a threat from its text: `Linf 8/255` from `Linf(eps=0.0313..)`; other texts stay as they are."""
    found = _THREAT.match(text)
    return text if found is None else f"{found[1]} {radius(float(found[2]))}"


_MEANINGS = {
    "Linf": "no pixel value changes by more than {} of its range",
    "L2": "the change of all pixel values together has at most the length {}, where the range of one is 1",
    "L1": "the changes of all pixel values add up to at most {}, where the range of one is 1",
}


def threat_meaning(text: str) -> str:
    """Return in words what a threat allows; "" for others than Linf, L2 and L1."""
    found = _THREAT.match(text)
    return "" if found is None else _MEANINGS.get(found[1], "").format(radius(float(found[2])))


def eps_of(text: str) -> float | None:
    """The eps in the text of a threat; None if there is none."""
    found = _THREAT.match(text)
    return None if found is None else float(found[2])


_VERSION = re.compile(r"^AutoAttack\(.*version='(\w+)'")


def attack_name(name: str, text: str) -> str:
    """The name of an adversary in a sentence, from its name and its text: `AutoAttack standard`, or its own name."""
    found = _VERSION.match(text)
    return name if found is None else f"AutoAttack {found[1]}"


def rounded(value: float, digits: int = 4) -> float | None:
    """A number with a few significant digits; None if it is not finite, as JSON holds no other numbers."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
