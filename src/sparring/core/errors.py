"""The exception for mistakes of the user, and small checks that raise it."""

import difflib
from collections.abc import Iterable
from numbers import Integral


class UserError(ValueError):
    """A mistake in the input, which the user can correct.

    The message says what was given, what is allowed and what to do. The command line prints it as one sentence without
    a traceback; in a program it is a `ValueError`.
    """


class Echo(UserError):  # noqa: N818
    """An error that every one of several processes has, and of which the first one tells."""


def need_whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Checks that a value is a whole number within bounds.

    Args:
        name: Name of the value, for the message.
        value: The value to check; a bool is not accepted as a whole number.
        least: The smallest number allowed.
        most: The largest number allowed; None for no upper bound.

    Raises:
        UserError: If `value` is not a whole number from `least` to `most`.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        allowed = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} = {value!r} is no whole number {allowed}")


def need_seed(value: object) -> None:
    """Checks that a value can be a seed.

    Args:
        value: The value to check.

    Raises:
        UserError: If `value` is not a whole number from 0 to 2^63 - 1.
    """
    need_whole("seed", value, 0, 2**63 - 1)


def need_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Checks that a word is one of the known words.

    Args:
        name: Name of the value, for the message.
        value: The word to check.
        known: All words that are allowed.

    Raises:
        UserError: If `value` is not in `known`.
    """
    known = tuple(known)
    if value not in known:
        raise UserError(f"{name} = {value!r} is not one of {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Writes a clause for an error message that suggests what an unknown name was meant to be.

    Args:
        name: The unknown name.
        known: All names that exist.

    Returns:
        Up to three names similar to `name` as a question, or the list of all known names if none is similar.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there is: {', '.join(known)}"
