"""Libraries that are installed only for those who need them."""

import importlib
from types import ModuleType

from .errors import UserError


def library(name: str, extra: str, what: str) -> ModuleType:
    """Import a module of an optional library, which `what` comes from.

    Raises `UserError` with the extra to install if it cannot be imported.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{what} comes from {package}, which cannot be imported ({first_line(error)}): pip install "
            f"'sparring[{extra}]'"
        ) from error
    except RuntimeError as error:  # a torchvision built for another torch fails like this
        raise UserError(
            f"{what} comes from {package}, but torchvision does not load with this torch ({first_line(error)}): "
            "install the torchvision that belongs to it"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, of at most 200 characters."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}".removesuffix(": ")
