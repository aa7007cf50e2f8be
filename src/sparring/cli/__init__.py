"""The command line. A command imports heavy modules only when it needs them."""

import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable

from ..core.errors import Echo, UserError, nearest
from .common import TRUSTED, say

_USAGE = """\
usage: sparring COMMAND ...

Train image classifiers against an adversary, and measure how robust they are.

commands:
  list [WHAT]                    list the recipes, or methods, attacks, optimizers, schedules, models, data
  show RECIPE                    show a recipe with all its fields
  train RECIPE [--out DIR]       train a recipe, or continue an unfinished run
  evaluate TARGET                clean and robust accuracy, per attack, with intervals
  audit TARGET                   is the robustness real, or are gradients masked?
  analyze RUN KIND               analyse a trained model: loss landscape, memorization, features
  compare A B                    paired comparison of two evaluations of the same images
  report TARGET ...              a page to look at: a run, a study, or several evaluations compared
  study NAME                     re-examine the claims of a paper
  export RUN --to FORMAT         as a model of RobustBench, for the Hub, as ONNX, by torch.export
  data shrink FOLDER             make pictures small once, so that training decodes less
  bench                          measure how fast this machine attacks and trains
  new method NAME                write a training method of your own to begin with
  doctor                         what this machine and this installation can do, and what is missing

A TARGET is a run folder, a file of weights, or module:function for a model of your own. Each command takes --help;
those that report figures also take --json, and then print one JSON object on standard output. `sparring --version`
prints the version.

  sparring train quickstart
  sparring evaluate runs/quickstart --autoattack standard
  sparring audit runs/quickstart
  sparring train fashion_pgd --eps 0.2 --method.attack.steps 10 --seed 1 --out runs/wide"""

_COMMANDS = {
    "list": "listing:list_known",
    "show": "train:show",
    "train": "train:train",
    "evaluate": "evaluate:evaluate",
    "analyze": "analyze:analyze",
    "audit": "audit:audit",
    "compare": "compare:compare",
    "report": "report:report",
    "export": "export:export",
    "study": "study:study",
    "data": "data:data",
    "bench": "bench:bench",
    "new": "new:new",
    "doctor": "doctor:doctor",
}


def main() -> None:
    """The entry point of the command.

    Exit codes: 0 done, 1 an audit that failed, an accuracy below its bound or files that are no pictures, 2 a mistake
    that the message explains, 130 interrupted.
    """
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Carry out a command line and return the exit code.

    Errors that the user can correct are reported in one sentence: mistakes, and refusals by the disk or the terminal.
    """
    warnings.showwarning = lambda message, *_: say(f"sparring: warning: {message}", sys.stderr)
    try:
        try:
            return _carried_out(argv)
        finally:
            if sys.stdout is not None:  # None if the caller has closed it
                sys.stdout.flush()
    except Echo:
        return _silent(2)
    except UserError as error:
        return _failed(str(error))
    except BrokenPipeError:  # `sparring list | head`
        _hush()
        return 0
    except OSError as error:
        return _failed(_refused(error))
    except BaseException as error:
        if not _interrupted(error):
            raise
        return _failed("interrupted", 130)


def _carried_out(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        say(_USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        say(version("sparring"))
        return 0
    return _command(argv[0])(_trusting(argv[1:]))


def _trusting(args: list[str]) -> list[str]:
    """Trust the modules that `--trust` names, and return the other arguments."""
    rest, trusted = list(args), []
    while "--trust" in rest:
        at = rest.index("--trust")
        if at + 1 == len(rest) or rest[at + 1].startswith("-"):
            raise UserError("--trust needs the name of a module: write --trust MODULE")
        trusted.append(rest[at + 1])
        del rest[at : at + 2]
    TRUSTED[:] = trusted
    if trusted:
        from ..core.foreign import trust

        trust(*trusted)
    return rest


def _failed(why: str, code: int = 2) -> int:
    with contextlib.suppress(OSError):
        say(f"sparring: {why}", sys.stderr)
    return _silent(code)


def _silent(code: int) -> int:
    _hush()
    return code


_REMEDIES = {
    errno.ENOSPC: "make room, and give the same command again",
    errno.EDQUOT: "make room, and give the same command again",
    errno.EFBIG: "make room, and give the same command again",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name a folder that can be written, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _refused(error: OSError) -> str:
    what = str(error.filename)[:200] if error.filename is not None else "the output"
    remedy = _REMEDIES.get(error.errno or 0, "correct that, and give the same command again")
    return f"{what}: {error.strerror or error}: {remedy}"


def _hush() -> None:
    """Discard buffered output that a stream cannot write, since the interpreter would report it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # broken, closed, or not there
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupted(error: BaseException | None) -> bool:
    """Return True if Ctrl-C caused the error: some modules report it as a failure of their own while being imported."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in _COMMANDS:
        raise UserError(f"no command {name!r}: {nearest(name, _COMMANDS)}")
    module, _, function = _COMMANDS[name].partition(":")
    found: Callable[[list[str]], int] = getattr(importlib.import_module(f".{module}", __name__), function)
    return found
