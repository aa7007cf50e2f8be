"""The shell. Nothing heavy is imported before a command needs it."""

import importlib
import sys
import warnings
from collections.abc import Callable

from ..errors import UserError, nearest
from .common import say

_USAGE = """\
usage: sparring COMMAND ...

Train image classifiers against an adversary, and measure how robust they are.

commands:
  list                           the recipes, a line each
  show RECIPE                    what a recipe is, in full
  train RECIPE [--out DIR]       train it; on an unfinished run, go on
  evaluate TARGET                clean and robust accuracy, per attack, with intervals
  audit TARGET                   is the robustness real, or are gradients masked?
  analyze RUN KIND               why: the loss around images
  compare A B                    two evaluations of the same images, paired
  study NAME                     what a paper claims, re-examined
  bench                          how fast this machine attacks and trains

A TARGET is a run folder, a file of weights, or module:function for a model of your own. Each command takes --help;
those that report figures take --json and then print one object on standard output.

  sparring train quickstart
  sparring evaluate runs/quickstart --autoattack standard
  sparring audit runs/quickstart
  sparring train fashion_pgd --eps 0.2 --method.attack.steps 10 --seed 1 --out runs/wide"""

_COMMANDS = {
    "list": "train:list_recipes",
    "show": "train:show",
    "train": "train:train",
    "evaluate": "evaluate:evaluate",
    "analyze": "analyze:analyze",
    "audit": "audit:audit",
    "compare": "evaluate:compare",
    "study": "study:study",
    "bench": "bench:bench",
}


def main() -> None:
    """The entry point of the command.

    Exit codes: 0 done, 1 an audit that failed, 2 a mistake that the message explains, 130 interrupted.
    """
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Carries out a command line and returns the exit code."""
    warnings.showwarning = lambda message, *_: say(f"sparring: warning: {message}", sys.stderr)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            say(_USAGE)
            return 0 if argv else 2
        if argv[0] == "--version":
            from importlib.metadata import version

            say(version("sparring"))
            return 0
        return _command(argv[0])(argv[1:])
    except UserError as error:
        say(f"sparring: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("sparring: interrupted", sys.stderr)
        return 130
    except BrokenPipeError:  # `sparring list | head`
        sys.stderr.close()
        return 0


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in _COMMANDS:
        raise UserError(f"no command {name!r}: {nearest(name, _COMMANDS)}")
    module, _, function = _COMMANDS[name].partition(":")
    found: Callable[[list[str]], int] = getattr(importlib.import_module(f".{module}", __name__), function)
    return found
