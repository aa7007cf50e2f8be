"""Files that were mutated by chance: each is read or refused in a sentence, and neither takes long."""

import copy
import json
import random
import shutil
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from helpers import evaluated
from safetensors.torch import save_file

from sparring import RunFolder, UserError, fit, load_model
from sparring.runs.load import evaluate_run
from sparring.runs.recipe import recipe_from_plain
from sparring.training.checkpoint import read_weights

pytestmark = pytest.mark.slow

SECONDS = 30.0
"""Far more than a file takes, on a machine that does other things besides."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    import conftest

    recipe = replace(conftest.tiny.__wrapped__(), epochs=1)
    run = fit(recipe, tmp_path_factory.mktemp("finished") / "run")
    evaluate_run(run, recipe)
    return run


def chance(fuzz, what):
    """The number of a case, and its own chance."""
    count, seed = fuzz
    for number in range(count):
        yield number, random.Random(f"{what} {seed} {number}")


def mutated(rng, content):
    """Bytes with a few of them flipped, cut off, put in or doubled."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 100))
        kind = rng.choice(("flip", "cut", "insert", "double"))
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = rng.randbytes(length)
        else:
            content[place:place] = content[place : place + length]
    return bytes(content)


ODD = (None, True, -1, 0, 1, 0.5, -2.5, 2**70, 1e308, float("nan"), "", "x", "8/255", [], {}, [None], {"$": "x:Y"})


def places(value):
    """Every part of nested plain data, as its owner and its key."""
    for key, part in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def altered(rng, plain):
    """Plain data with some parts of another type, missing, or in the place of another."""
    plain = copy.deepcopy(plain)
    for _ in range(rng.randint(1, 2)):
        known = list(places(plain))
        if not known:
            break
        owner, key = rng.choice(known)
        other, name = rng.choice(known)
        kind = rng.choice(("odd", "odd", "delete", "swap"))
        if kind == "odd":
            owner[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == "delete":
            del owner[key]
        else:
            owner[key] = copy.deepcopy(other[name])
    return plain


def survives(way, case):
    """Whatever `way` reads is read, or refused in a sentence."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way()
    except UserError:
        pass
    except Exception as error:
        raise AssertionError(f"case {case} ends in {type(error).__name__}: {error}") from error
    assert time.monotonic() - began < SECONDS, f"case {case} takes too long"


def test_weights_files_with_mutated_bytes(finished, fuzz, tmp_path):
    content = finished.weights("best").read_bytes()
    for number, rng in chance(fuzz, "weights"):
        for ending in ("safetensors", "pt"):
            path = tmp_path / f"w.{ending}"
            path.write_bytes(mutated(rng, content[:3000] + content[-3000:] if rng.random() < 0.2 else content))
            survives(lambda path=path: load_model(path), number)


def test_weights_files_that_say_something_else_of_themselves(finished, fuzz, tmp_path):
    tensors, about = read_weights(finished.weights("best"))
    for number, rng in chance(fuzz, "about"):
        save_file(tensors, tmp_path / "w.safetensors", {"sparring": json.dumps(altered(rng, about))})
        survives(lambda: load_model(tmp_path / "w.safetensors"), number)


def test_recipes_of_which_parts_are_exchanged(finished, fuzz):
    plain = finished.recipe()
    for number, rng in chance(fuzz, "recipe"):
        other = altered(rng, plain)
        survives(lambda other=other: recipe_from_plain(other), number)


def everything(run):
    """Whatever of a run folder is read by somebody."""
    run.metrics()
    ways = (run.recipe, run.status, run.finished, run.sessions, run.backend, run.guard, run.foreign, run.evaluation)
    for way in (*ways, lambda: run.read_flags("best"), lambda: run.read_flags("best").table()):
        survives(way, way)


def test_run_folders_with_a_mutated_file(finished, fuzz, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    names = [path.name for path in sorted(run.path.iterdir()) if path.suffix in (".json", ".jsonl", ".npz")]
    assert len(names) >= 6
    for number, rng in chance(fuzz, "run"):
        path = run.path / rng.choice(names)
        content = path.read_bytes()
        by_value = path.suffix == ".json" and rng.random() < 0.7
        path.write_bytes(json.dumps(altered(rng, json.loads(content))).encode() if by_value else mutated(rng, content))
        survives(lambda: everything(run), number)
        path.write_bytes(content)


def test_evaluations_whose_arrays_are_exchanged(finished, fuzz, tmp_path):
    with np.load(finished.flags("best")) as file:
        held = {name: file[name] for name in file.files}
    run = RunFolder(tmp_path)
    for number, rng in chance(fuzz, "evaluation"):
        arrays = {**held, rng.choice(list(held)): odd_array(rng, held[rng.choice(list(held))])}
        np.savez(run.flags("best"), **arrays)
        survives(lambda: read_whole(run), number)


def odd_array(rng, array):
    ways = (
        lambda: array,
        lambda: array[:0] if array.ndim else array,
        lambda: array[None],
        lambda: np.zeros(()),
        lambda: array.astype(rng.choice(("U5", "bool", "O"))).astype("U5"),
        lambda: np.full(array.shape, rng.choice((-1, 0, 2**62, np.nan))),
    )
    return rng.choice(ways)()


def read_whole(run):
    found = run.read_flags("best")
    found.table()
    for name in found.robust:
        found.by_class(name), found.broken_by(name), found.paired(found, name).plain()


def test_states_of_evaluations_with_a_mutated_file(fuzz, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "state"
    wanted = evaluated(whole)
    names = sorted(path.name for path in whole.iterdir())
    for number, rng in chance(fuzz, "state"):
        shutil.copytree(whole, folder)
        path = folder / rng.choice(names)
        path.write_bytes(mutated(rng, path.read_bytes()))
        found = []
        survives(lambda found=found: found.append(evaluated(folder)), number)
        assert found in ([], [wanted]), f"case {number} changes what the evaluation comes to"
        shutil.rmtree(folder)
