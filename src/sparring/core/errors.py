"""The one exception that is the user's to mend."""

import difflib
from collections.abc import Iterable
from numbers import Integral


class UserError(ValueError):
    """A mistake in what was given. The message says what was given, what is allowed and what to do.

    The shell prints it as one sentence without a traceback; in a program it is a `ValueError`.
    """


def need_whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raises `UserError` for anything but a whole number from `least` on, up to `most` if that is given."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        allowed = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} = {value!r} is no whole number {allowed}")


def need_seed(value: object) -> None:
    """Raises `UserError` for what cannot be a seed."""
    need_whole("seed", value, 0, 2**63 - 1)


def need_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raises `UserError` for a word that is none of those that there are."""
    known = tuple(known)
    if value not in known:
        raise UserError(f"{name} = {value!r} is not one of {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names what was probably meant, or everything there is when nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there is: {', '.join(known)}"
