"""Tells where a result comes from: recipe, commands, environments, hashes, references. Imports no torch."""

import hashlib
import re
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.reading import reading
from ..core.serialization import differences
from .evaluated import Plain
from .subjects import Subject

Base = Callable[[str], "Plain | None"]
"""The recipe of a name as plain values; None for a name that is not known."""


def provenance(subject: Subject, base: Base) -> Plain:
    """The recipe against its base, commands, environments, and hashes of what was evaluated."""
    run, result = subject.run, subject.result
    recipe = None if run is None else run.recipe()
    sessions = [] if run is None or not run.has_sessions() else run.sessions()
    evaluated = how_evaluated(subject)
    began = sessions[0] if sessions else {}
    command = began.get("command") or []
    return {
        "recipe": recipe,
        "base": _base_name(command),
        "changed": _changed(recipe, _base_name(command), base),
        "commands": [shlex.join(each) for each in (command, _command(evaluated)) if each],
        "training": environment(began),
        "resumed": max(0, len(sessions) - 1),
        "evaluation": environment(evaluated.get("environment") or {}),
        "computes": {} if run is None else run.backend() or {},
        "settings": {} if result is None else dict(result.settings),
        "hashes": _hashes(subject),
        "bibtex": references(recipe, [] if result is None else list(result.settings.values())),
    }


def how_evaluated(subject: Subject) -> Plain:
    """The record of the evaluation that counts: its tables, how it was made, and where.

    Empty without one, and if the record is that of a later evaluation of other weights.
    """
    record = {} if subject.run is None or not subject.run.has_evaluation() else subject.run.evaluation()
    return record if subject.weights in record else {}


def _command(evaluated: Plain) -> list[str]:
    command = (evaluated.get("environment") or {}).get("command") or []
    return [str(word) for word in command]


def _base_name(command: list[str]) -> str | None:
    return command[2] if command[1:2] == ["train"] and len(command) > 2 and not command[2].startswith("-") else None


def _changed(recipe: Plain | None, name: str | None, base: Base) -> list[str] | None:
    """The differences of a recipe from the one that it was made from; None if that is not known."""
    known = base(name) if recipe is not None and name is not None else None
    return None if known is None else differences(known, recipe)


def environment(session: Plain) -> dict[str, str]:
    """Return the time, the machine and the versions of a start."""
    wanted = {key: session.get(key) for key in ("started", "commit", "platform", "device", "threads", "seed")}
    versions = session.get("versions") or {}
    found = {key: str(value) for key, value in {**wanted, **versions}.items() if value is not None}
    return {**found, **({"started": found["started"][:16].replace("T", " ")} if "started" in found else {})}


def _hashes(subject: Subject) -> dict[str, str]:
    found = {}
    if subject.run is not None and (path := subject.run.weights(subject.weights)).is_file():
        found[path.name] = f"sha256:{_sha256(path)}"
    result = subject.result
    if result is not None and result.settings.get("model"):
        found["weights as evaluated"] = result.settings["model"]
    if result is not None and result.image_hash is not None:
        found["evaluated images"] = f"sha256:{hashlib.sha256(result.image_hash.tobytes()).hexdigest()[:32]}"
    return found


def _sha256(path: Path) -> str:
    with reading(path, "restore it"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the example that is evaluated again

_DROPPED = ("--out", "--shard", "--weights", "--only", "--track", "--overwrite", "--merge", "--json", "--keep-images")


def again(subject: Subject) -> str | None:
    """The command that evaluates one example again, with `{index}` for its number; None if no command is recorded."""
    command = _command(how_evaluated(subject))
    if command[1:2] != ["evaluate"]:
        return None
    of_run = subject.weights in ("best", "last")  # else --weights is a folder of RobustBench's
    dropping = _DROPPED if of_run else tuple(flag for flag in _DROPPED if flag != "--weights")
    kept, dropped = [], False
    for word in command[1:]:
        dropped = word.partition("=")[0] in dropping if word.startswith("--") else dropped
        kept += [] if dropped else [word]
    which = ["--weights", subject.weights] if of_run else []
    return f"{shlex.join(['sparring', *kept, *which])} --only {{index}}"


# -- references

_SOFTWARE = """\
@software{{sparring,
  title = {{sparring: adversarial training in PyTorch}},
  author = {{{{The sparring authors}}}},
  version = {{{version}}}
}}"""
_CITED = {
    r"AutoAttack|APGD|FAB|Square": """\
@inproceedings{croce2020reliable,
  title = {Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks},
  author = {Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year = {2020}
}""",
    r"\bPGD": """\
@inproceedings{madry2018towards,
  title = {Towards Deep Learning Models Resistant to Adversarial Attacks},
  author = {Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, Adrian},
  booktitle = {International Conference on Learning Representations},
  year = {2018}
}""",
    r"\bTRADES": """\
@inproceedings{zhang2019theoretically,
  title = {Theoretically Principled Trade-off between Robustness and Accuracy},
  author = {Zhang, Hongyang and Yu, Yaodong and Jiao, Jiantao and Xing, Eric and El Ghaoui, Laurent and
            Jordan, Michael},
  booktitle = {International Conference on Machine Learning},
  year = {2019}
}""",
}


def references(recipe: Plain | None, settings: list[str]) -> list[str]:
    """BibTeX entries of this software and of the attacks and methods that were used, as far as they are listed here."""
    used = " ".join([*settings, *_names(recipe)])
    return [_SOFTWARE.format(version=version("sparring")), *(e for word, e in _CITED.items() if re.search(word, used))]


def _names(value: Any) -> list[str]:
    """The names of the classes in a recipe on disk."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [str(value["$"])] if isinstance(value, dict) and "$" in value else []
    return own + [name for part in parts for name in _names(part)]
