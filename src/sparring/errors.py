"""The one exception that is the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was given. The message says what was given, what is allowed and what to do.

    The shell prints it as one sentence without a traceback; in a program it is a `ValueError`.
    """


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
