"""What others may have put on the disk, what a disk may refuse, and who else may work there: a sentence each."""

import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_net
from forked import commanded, ended
from helpers import evaluated, state
from safetensors.torch import save_file

import sparring
from sparring import PGD, Linf, RunFolder, TensorData, UserError, WhiteBox, fit, load_model
from sparring.attacks import FGSM
from sparring.cli import run as shell
from sparring.cli.analyze.common import KINDS
from sparring.core.public_names import CALLS, FORMAT, NAMES, VALUES
from sparring.core.serialization import Build, from_plain, to_plain
from sparring.core.writing import replacing, write_bytes
from sparring.evaluation.journal import Part, PartStore
from sparring.models import amdim
from sparring.recipes import entries, find
from sparring.records.clearing import ANALYSES
from sparring.runs.load import evaluate_models, evaluate_run, recipe_of
from sparring.runs.recipe import Evaluation, recipe_from_plain
from sparring.training.checkpoint import Checkpoints, read_weights, save_weights
from sparring.training.hooks import Interrupted, stopping

pytestmark = pytest.mark.slow

PRECIOUS = b"years of work"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with one checkpoint an epoch, evaluated: to be copied and harmed."""
    import conftest

    recipe = replace(conftest.tiny.__wrapped__(), epochs=2)
    run = fit(recipe, tmp_path_factory.mktemp("finished") / "run")
    evaluate_run(run, recipe)
    return run.path, recipe


@pytest.fixture
def copied(finished, tmp_path):
    """The same in a folder of its own, and its recipe."""
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    return path, finished[1]


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "thesis.tex"
    path.write_bytes(PRECIOUS)
    return path


# -- the lock


def test_a_lock_that_is_a_link_is_refused_and_the_file_behind_it_stays(copied, precious):
    path, recipe = copied
    (path / ".lock").unlink()
    (path / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock is a link, and a lock is a file of its own: remove it"):
        fit(recipe, path, overwrite=True)
    assert precious.read_bytes() == PRECIOUS
    assert (path / "best.safetensors").exists()


def test_a_lock_that_leads_nowhere_makes_no_file_there(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match="is a link"), RunFolder(tmp_path).locked():
        pass
    assert not (tmp_path / "new").exists()


def test_a_lock_that_is_a_pipe_or_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match=r"\.lock is no regular file"), RunFolder(tmp_path).locked():
        pass
    (tmp_path / "other" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be a run folder"), RunFolder(tmp_path / "other").locked():
        pass


def test_what_a_lock_holds_is_not_emptied(tmp_path):
    (tmp_path / ".lock").write_bytes(PRECIOUS)
    with RunFolder(tmp_path).locked():
        assert (tmp_path / ".lock").read_bytes() == PRECIOUS


def test_a_link_laid_where_a_file_will_be_written_is_not_followed(tmp_path, precious):
    (tmp_path / ".a.json.writing").symlink_to(precious)
    write_bytes(tmp_path / "a.json", b"{}")
    assert precious.read_bytes() == PRECIOUS
    assert (tmp_path / "a.json").read_bytes() == b"{}"


def test_whatever_writes_into_a_run_folder_waits_its_turn(copied, capsys):
    path, recipe = copied
    ways = {
        "train": lambda: fit(recipe, path, overwrite=True),
        "evaluate": lambda: evaluate_run(RunFolder(path), recipe),
        "evaluate --out": lambda: evaluate_models(
            {"model": toy_net}, toy_data(), Evaluation({"fgsm": WhiteBox(FGSM(Linf(0.1)))}), out=RunFolder(path)
        ),
    }
    with RunFolder(path).locked():
        for name, way in ways.items():
            with pytest.raises(UserError, match="is in use: another process works there"):
                way()
            assert RunFolder(path).evaluated(), name
        assert shell(["analyze", str(path), "landscape"]) == 2
        assert "is in use: another process works there" in capsys.readouterr().err
        assert load_model(path / "best.safetensors") is not None, "reading needs no lock"


# -- what may be deleted


def test_a_copy_of_a_checkpoint_under_another_name_is_none_of_ours(tmp_path):

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(20))
    mine = tmp_path / "step-000000020-mine"
    shutil.copytree(tmp_path / "step-000000020", mine)
    (tmp_path / "step-000000010").symlink_to(mine)
    for step in (30, 40):
        checkpoints.save(state(step))
    assert [path.name for path in checkpoints.paths()] == ["step-000000030", "step-000000040"]
    assert (mine / "weights.safetensors").exists()


def test_overwriting_deletes_files_of_ours_and_no_others(copied):
    path, _ = copied
    theirs = (
        "notes.txt",
        "analysis-mine.png",
        "checkpoints/notes.txt",
        "checkpoints/step-000000020-mine/weights.safetensors",
        "memory/poem.npz",
        "tensorboard/plot.png",
        "evaluation-best.state/mine.npz",
    )
    ours = (
        "analysis-landscape.png",
        "memory/step-00000010.npz",
        "tensorboard/events.out.tfevents.1.host",
        "evaluation-best.state/about.json",
        ".learning-curve.writing.png",
        ".metrics.jsonl.writing",
    )
    for name in (*theirs, *ours):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(PRECIOUS)
    (path / "last.safetensors").unlink()
    (path / "last.safetensors").symlink_to(path / "notes.txt")
    RunFolder(path).clear()
    left = {str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir()}
    assert left == {*theirs, ".lock"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("link", "checkpoints is a link or a file, and a run has a folder of that name: move it away"),
        ("folder", r"status\.json is a folder, and a run has a file of that name: move it away"),
    ],
)
def test_what_stands_in_the_way_of_overwriting_is_said_before_anything_is_deleted(copied, tmp_path, harm, message):
    path, recipe = copied
    if harm == "link":
        (path / "checkpoints").rename(tmp_path / "elsewhere")
        (path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    else:
        (path / "status.json").unlink()
        (path / "status.json").mkdir()
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=message):
        fit(recipe, path, overwrite=True)
    assert sorted(path.rglob("*")) == before
    assert harm == "folder" or list((tmp_path / "elsewhere").iterdir())


def test_every_kind_of_analysis_is_among_what_may_be_deleted():
    assert set(ANALYSES) == set(KINDS)


# -- recipes


def test_every_recipe_and_every_arm_of_a_study_survives_the_disk():
    from sparring import studies

    recipes = [find(name)() for name in entries()]
    made = [studies.find(name)(scale) for name in studies.entries() for scale in studies.SCALES]
    recipes += [arm.recipe for study in made for arm in study.arms]
    for recipe in recipes:
        assert recipe_from_plain(json.loads(json.dumps(recipe.plain()))) == recipe
    assert len(recipes) > 300


def test_the_vocabulary_names_what_there_is():
    for known in (VALUES, CALLS, NAMES):
        for room, names in known.items():
            module = importlib.import_module(f"sparring.{room}")
            for name in names:
                assert getattr(module, name).__module__ == module.__name__, f"{room}:{name}"
        names = [name for listed in known.values() for name in listed]
        assert len(names) == len(set(names)), "a name on disk stands alone"


def test_a_file_names_no_module_so_that_a_class_may_move():
    text = json.dumps([find(name)().plain() for name in entries()])
    assert '"$": "PGD"' in text and '"$call": "small_cnn"' in text and '"$name": "eval_mode"' in text
    assert not re.search(r'"\$\w*": "[^"]*[.:]', text)


@pytest.mark.parametrize(
    ("number", "reader"),
    [(None, r"sparring 0\.1 wrote"), (1, "sparring 0"), (99, "a later sparring")],
)
def test_a_recipe_of_another_format_says_which_version_reads_it(number, reader, tmp_path):
    plain = {**find("quickstart")().plain(), "format": number}
    if number is None:
        del plain["format"]
        plain["$"] = "recipe:Recipe"
    with pytest.raises(UserError, match=rf"of format \d+, and this version reads format {FORMAT}: {reader}"):
        recipe_from_plain(plain)
    run = RunFolder(tmp_path)
    run.begin(plain)
    assert not run.foreign(), "it is a run, which --overwrite may replace"
    with pytest.raises(UserError, match="this version reads format"):
        recipe_of(tmp_path)


NO_RECIPE = {
    # made while attacks and objectives run, of tensors or of models
    *(
        "attacks.square:_Stripes",
        "attacks.square:_Pyramids",
        "attacks.threats:ScaledThreat",
        "evaluation.adversaries:Dividing",
        "evaluation.smoothing:Smoothed",
    ),
    "training.updates:BatchLoss",
    # settings of the run, `update_precision` and `recompute`
    "training.updates:MixedPrecision",
    "training.updates:Recomputing",
    # data as they are, and not where they are from
    *(
        "data.adapt:ChangedImages",
        "data.batches:Batches",
        "data.extra:ExtraImages",
        "data.extra:JoinedData",
        "data.dataset_images:DatasetImages",
        "data.looks:CentralSquare",
        "data.looks:RandomWindow",
        "data.mapped:MappedImages",
        "data.pictures:Pictures",
    ),
    "data.alterations:TrainingSet",
}


def test_every_value_of_the_rooms_that_recipes_are_made_of_is_in_the_vocabulary():
    listed = {f"{room}:{name}" for room, names in VALUES.items() for name in names}
    found = set()
    for room in (
        "attacks",
        "core.schedules",
        "data",
        "objectives",
        *(f"training.{n}" for n in ("averaging", "flatness", "optimizers", "updates")),
    ):
        module = importlib.import_module(f"sparring.{room}")
        inner = pkgutil.walk_packages(getattr(module, "__path__", []), f"sparring.{room}.")
        for each in [module, *(importlib.import_module(m.name) for m in inner if not m.name.endswith("losses"))]:
            for name, kind in vars(each).items():
                frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
                if isinstance(kind, type) and frozen and kind.__module__ == each.__name__ and not name.startswith("_"):
                    found.add(f"{each.__name__.removeprefix('sparring.')}:{name}")
    assert found - listed == {name for name in NO_RECIPE if ":_" not in name and name in found}


@pytest.mark.parametrize("key", ["$", "$call", "$name"])
@pytest.mark.parametrize(
    "name",
    [
        *("foreign:imported_model", "cli:run", "os:system", "results:write_bytes", "writing:write_bytes"),
        *("checkpoint:read_weights", "studies.running:run_study", "plain:importlib", "recipe", "", None, 7, [], {}),
    ],
)
def test_a_recipe_names_only_what_recipes_are_made_of(key, name):
    with pytest.raises(
        UserError, match=r"is no name of this package that a recipe may hold here|code of another package"
    ):
        from_plain({key: name})


@pytest.mark.parametrize("value", [RunFolder, read_weights, replacing, sparring.core.types.ForwardCache])
def test_nothing_is_written_that_cannot_be_read(value):
    with pytest.raises(UserError, match="has no place in a recipe on disk"):
        to_plain(value)


def changed(plain, path, value):
    """A copy of nested plain data with one part exchanged."""
    plain = json.loads(json.dumps(plain))
    *way, last = path.split(".")
    part = plain
    for key in way:
        part = part[key]
    part[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.width", "32", r"recipe\.model\.width is '32', wanted is int"),
        ("batch_size", 1.5, r"recipe\.batch_size is 1\.5, wanted is int"),
        ("batch_size", True, r"recipe\.batch_size is True"),
        ("data", None, r"recipe\.data is None, wanted is Source"),
        ("data", {"a": 1}, r"recipe\.data is .*wanted is Source"),
        ("method", 3, r"recipe\.method is 3"),
        ("method.attack", "pgd", r"recipe\.method\.attack is 'pgd'"),
        ("method.attack.threat", 0.1, r"recipe\.method\.attack\.threat is 0\.1"),
        ("method.attack.threat.eps", [], r"recipe\.method\.attack\.threat\.eps is \(\), wanted is float"),
        ("method.attack.steps", "3", r"recipe\.method\.attack\.steps is '3', wanted is int"),
        ("lr", None, r"recipe\.lr is None"),
        ("augment", [1], r"recipe\.augment\[0\] is 1"),
        ("selection", {"$": "SGD"}, r"recipe\.selection is of type SGD"),
        ("evaluation.adversaries", [], r"recipe\.evaluation\.adversaries is \(\)"),
        ("seed", -1, r"seed = -1 is no whole number from 0 to"),
        ("seed", 2**63, "seed = "),
    ],
)
def test_a_field_of_another_type_is_named_by_its_path(tiny, path, value, message):
    with pytest.raises(UserError, match=message):
        recipe_from_plain(changed(tiny.plain(), path, value))


@pytest.mark.parametrize("name", ["clean", "a/b", "/"])
def test_names_of_adversaries_that_mean_something_else_are_refused_at_once(tiny, name):
    with pytest.raises(UserError, match="no adversary can be called"):
        Evaluation({name: WhiteBox(PGD(Linf(0.1)))})
    plain = tiny.plain()
    plain["evaluation"]["adversaries"][name] = plain["evaluation"]["adversaries"].pop("pgd-3")
    with pytest.raises(UserError, match="no adversary can be called"):
        recipe_from_plain(plain)


# -- weights


def header(path, about):
    save_file({"w": torch.ones(2, 2)}, path, {"sparring": about})


WRONG_ABOUT = ("[]", "1", "null", '"a"', "{", "[" * 100_000, "[" * 70 + "]" * 70, "\x00")
WRONG_FIELDS = (
    {"shape": [1, 8]},
    {"shape": [1, 8, 0]},
    {"shape": [1, 8, "8"]},
    {"shape": [1, 10**6, 10**6]},
    {"shape": 3},
    {"classes": [1, 2]},
    {"classes": "ab"},
    {"step": "3"},
    {"recipe": []},
    {"sha256": 3},
)


@pytest.mark.parametrize("about", [*WRONG_ABOUT, *map(json.dumps, WRONG_FIELDS)])
def test_weights_that_say_nonsense_of_themselves_are_refused(tmp_path, about):
    header(tmp_path / "w.safetensors", about)
    for way in (read_weights, load_model):
        with pytest.raises(UserError, match=r"w\.safetensors cannot be read"):
            way(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "/dev/zero", "/proc/self/mem", "/", "fifo", "fifo.safetensors", "x" * 300]
)
def test_what_is_no_file_of_weights_is_refused_and_nothing_hangs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for fifo in ("fifo", "fifo.safetensors"):
        os.mkfifo(fifo)
    for way in (read_weights, load_model):
        with pytest.raises(UserError):
            way(Path(name))


def test_a_flipped_bit_in_weights_is_noticed(copied):
    path, _ = copied
    weights = path / "best.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.safetensors cannot be read \(it is damaged: its tensors do not match"):
        load_model(path)


def test_weights_of_before_checksums_are_read(copied):
    path, _ = copied
    tensors, about = read_weights(path / "best.safetensors")
    save_file(tensors, path / "old.safetensors", {"sparring": json.dumps(about)})
    assert "sha256" not in about
    load_model(path / "old.safetensors")


@pytest.mark.parametrize(("field", "value"), [("width", "32"), ("width", 0), ("width", -1), ("width", 10**9)])
def test_a_model_that_cannot_be_built_is_a_sentence(copied, field, value):
    path, _ = copied
    tensors, about = read_weights(path / "best.safetensors")
    about["recipe"]["model"][field] = value
    save_file(tensors, path / "odd.safetensors", {"sparring": json.dumps(about)})
    with pytest.raises(UserError):
        load_model(path / "odd.safetensors")


# -- JSON and arrays of a run folder

NONSENSE = (
    "",
    "1",
    "null",
    "[]",
    "{}",
    "[" * 100_000,
    '{"a": ' * 80 + "1" + "}" * 80,
    "\xff\xfe",
    '{"sessions": [{}]}',
)
READERS = {
    "status.json": lambda run: run.status(),
    "environment.json": lambda run: run.sessions(),
    "search.json": lambda run: run.backend(),
    "guard.json": lambda run: run.guard(),
    "recipe.json": lambda run: recipe_from_plain(run.recipe()),
    "evaluation-best.npz": lambda run: run.read_flags("best"),
    "training.npz": lambda run: run.training(),
}


@pytest.mark.parametrize("content", NONSENSE)
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_run_that_holds_something_else_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=name if name != "recipe.json" else "recipe"):
        READERS[name](RunFolder(tmp_path))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_file_of_a_run_that_is_none_is_named(tmp_path, name, kind):
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        READERS[name](RunFolder(tmp_path))


def test_rows_of_metrics_that_are_none_are_left_out(tmp_path):
    good = [{"step": 1, "epoch": 0.5}, {"step": 2, "epoch": 1, "held_out": {"clean": 0.5, "robust": 0.25}}]
    bad = ["null", "[]", "{", '{"epoch": 1}', '{"step": 1}', '{"step": "1", "epoch": 1}', '{"step": true, "epoch": 1}']
    bad += ['{"step": 1, "epoch": 1, "held_out": {}}', '{"step": 1, "epoch": 1, "terms": null}', "[" * 100_000]
    lines = [json.dumps(good[0]), *bad, json.dumps(good[1])]
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n" + "\n".join(lines).encode() + b'\n{"step": 3, "ep')
    assert RunFolder(tmp_path).metrics() == good
    RunFolder(tmp_path).rewind(1)
    assert RunFolder(tmp_path).metrics() == good[:1]


@pytest.mark.parametrize(
    "content", ["[]", "null", "1", "{}", '{"weights.safetensors": 1, "state.pt": 2}', "[" * 100_000]
)
def test_checksums_that_are_none_are_damage(tmp_path, content):

    path = Checkpoints(tmp_path).save(state(1))
    (path / "checksums.json").write_text(content)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(UserError, match=r"every checkpoint .* is damaged"),
    ):
        Checkpoints(tmp_path).load_latest(state())


def test_a_checkpoint_of_another_program_is_a_sentence(tmp_path):
    import hashlib

    path = Checkpoints(tmp_path).save(state(1))
    (path / "state.pt").write_bytes(b"whole, but no state")
    names = ("weights.safetensors", "state.pt")
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match="step-000000001 cannot be read"):
        Checkpoints(tmp_path).load_latest(state())


def wrong_evaluations(held):
    """Arrays of an evaluation, each with something wrong."""
    count = len(held["label"])
    yield {**held, "label": held["label"].astype(float)}
    yield {**held, "label": held["label"] + 1000}
    yield {**held, "label": np.int64(3)}
    yield {**held, "label": held["label"][: count // 2]}
    yield {**held, "robust/clean": held["robust/clean"].astype(int)}
    yield {**held, "margin/clean": held["margin/clean"][:, None]}
    yield {**held, "index": np.arange(3)}
    yield {name: each for name, each in held.items() if name != "classes"}
    yield {name: each for name, each in held.items() if name != "robust/clean"}
    yield {name: each[:0] for name, each in held.items() if each.shape == (count,)} | {"classes": held["classes"]}


def test_an_evaluation_whose_arrays_do_not_belong_together_is_named(copied, tmp_path):
    with np.load(copied[0] / "evaluation-best.npz") as file:
        held = {name: file[name] for name in file.files}
    for number, arrays in enumerate(wrong_evaluations(held)):
        run = RunFolder(tmp_path / str(number))
        run.path.mkdir()
        np.savez(run.flags("best"), **arrays)
        with pytest.raises(UserError, match=r"evaluation-best\.npz cannot be read .*: evaluate again"):
            run.read_flags("best")


# -- the journal of an evaluation


@pytest.fixture
def state_folder(tmp_path):
    """A state, and what the evaluation came to."""
    return tmp_path / "state", evaluated(tmp_path / "state")


def part_of(folder):
    (path,) = folder.glob("fgsm-*.npz")
    with np.load(path) as held:
        return path, Part(*(held[name] for name in Part._fields))


def test_other_files_in_a_state_are_passed_over(state_folder):
    folder, wanted = state_folder
    part_of(folder)[0].unlink()
    for name in ("mine.npz", "notes.txt", "fgsm-mine.npz"):
        (folder / name).write_bytes(PRECIOUS)
    assert evaluated(folder) == wanted
    assert (folder / "mine.npz").read_bytes() == PRECIOUS


@pytest.mark.parametrize(
    "harm",
    [
        lambda p: p._replace(rows=p.rows + 1000),
        lambda p: p._replace(rows=-1 - p.rows),
        lambda p: p._replace(rows=p.rows.astype(float)),
        lambda p: p._replace(rows=p.rows[:-1]),
        lambda p: p._replace(broken=p.broken.astype(int)),
        lambda p: p._replace(margin=p.margin[:, None]),
        lambda p: p._replace(norm=p.norm.astype(str)),
        lambda p: p._replace(predicted=np.int64(1)),
        lambda p: p._replace(images=p.images[:-1]),
        lambda p: p._replace(images=p.images[:, 0]),
        lambda p: p._replace(images=p.images.astype(np.float64)),
    ],
)
def test_a_part_that_does_not_belong_to_the_evaluation_is_done_again(state_folder, harm):
    folder, wanted = state_folder
    path, part = part_of(folder)
    np.savez(path, **harm(part)._asdict())
    with pytest.warns(UserWarning, match="is damaged .*: its examples are attacked again"):
        assert evaluated(folder) == wanted


def test_images_of_another_shape_do_not_belong_to_the_evaluation(state_folder):
    folder, _ = state_folder
    about = json.loads((folder / "about.json").read_text())
    with pytest.warns(UserWarning, match=r"its images are \(1, 4, 4\), the evaluated images are \(3, 4, 4\)"):
        assert list(PartStore(folder, about, (60, 3, 4, 4)).parts("fgsm")) == []


@pytest.mark.parametrize("answers", [np.zeros((2, 7)), np.zeros((2, 60), int), np.zeros(3), np.array(["a"])])
def test_answers_of_another_length_or_type_are_a_sentence(state_folder, answers):
    folder, _ = state_folder
    np.save(folder / "clean.npy", answers)
    with pytest.raises(UserError, match=r"clean\.npy cannot be read .*: delete .*, and begin again"):
        evaluated(folder)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["clean.npy", "about.json"])
def test_a_damaged_state_says_what_to_delete(state_folder, name, content):
    folder, _ = state_folder
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read .*: delete .*, and begin again"):
        evaluated(folder)


def test_a_state_where_a_file_is_gets_a_sentence(tmp_path, precious):
    with pytest.raises(UserError, match="cannot hold the state of an evaluation"):
        evaluated(precious)


# -- what a disk, a terminal or a shell refuses


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_a_clean_up_that_fails_does_not_hide_why(tmp_path, monkeypatch):
    def refused(self, missing_ok=False):
        if (tmp_path / ".a.writing").exists():
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.fsync", no_room)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError, match="No space left") as error, replacing(tmp_path / "a") as file:
        file.write(b"x")
    assert error.value.filename == str(tmp_path / "a")


def test_a_full_disk_under_an_evaluation_is_a_sentence(copied, monkeypatch, capsys):
    monkeypatch.setattr("os.fsync", no_room)
    assert shell(["evaluate", str(copied[0])]) == 2
    assert re.search(r"sparring: .*: No space left on device: make room", capsys.readouterr().err)


def test_an_analysis_that_cannot_be_written_is_a_sentence(copied, capsys):
    (copied[0] / "analysis-landscape.json").mkdir()
    few = ["--examples", "4", "--steps", "1", "--points", "1"]
    assert shell(["analyze", str(copied[0]), "landscape", *few]) == 2
    assert re.search(r"sparring: .*analysis-landscape\.json.*: Is a directory: ", capsys.readouterr().err)


MISTAKES = [
    (["train", "quickstart", "--out", "x" * 300], "File name too long: choose a shorter name"),
    (["train", "quickstart", "--seed", str(2**63)], "is no whole number from 0 to 9223372036854775807"),
    (["train", "quickstart", "--seed", "-1"], "is no whole number from 0 to 9223372036854775807"),
    (["train", "quickstart", "--device", "meta"], "device 'meta' is not available here"),
    (["audit", "RUN", "--examples", "-5"], "at least one image is needed, not -5 as --examples"),
    (["audit", "RUN", "--examples", "0"], "at least one image is needed, not 0 as --examples"),
    (["audit", "RUN", "--seed", str(2**63)], "is no whole number from 0 to 9223372036854775807"),
    (
        ["audit", "RUN", "--surrogate", "larger.safetensors"],
        "--surrogate larger.safetensors cannot take images of shape (1, 8, 8)",
    ),
    (["analyze", "RUN", "landscape", "--seed", "-1"], "is no whole number from 0 to 9223372036854775807"),
    (["analyze", "nowhere", "landscape"], "nowhere is no run folder"),
    (["evaluate", "/etc/passwd"], "/etc/passwd cannot be read"),
    (["evaluate", "RUN", "--device", "meta"], "device 'meta' is not available here"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_a_mistake_of_the_shell_is_one_sentence(finished, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    Path("RUN").symlink_to(finished[0])
    like = TensorData(torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.long), tuple("0123456789"))
    recipe = replace(finished[1], model=Build(amdim, width=4, dim=8, depth=1, read="linear"))
    about = {"recipe": recipe.plain(), "step": 1, "classes": like.classes, "shape": like.shape}
    save_weights(Path("larger.safetensors"), recipe.build_model(like), about)
    assert shell(args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def command(*args, **how):
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    return subprocess.Popen([sys.executable, "-c", "from sparring.cli import main; main()", *args], **how)


@pytest.mark.parametrize("args", [("list",), ("show", "quickstart"), ("--version",), ("list", "--help")])
def test_a_full_standard_output_is_a_sentence(args):
    with open("/dev/full", "w") as full:
        process = command(*args, stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("sparring: the output: No space left on device")
    assert "Traceback" not in err and "Exception ignored" not in err


def test_closed_streams_are_no_error():
    process = command("list", stdout=None, preexec_fn=lambda: os.close(1))
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0


def test_ctrl_c_while_modules_are_imported_says_so(monkeypatch, capsys):
    def interrupted(name, package=None):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy could not be imported") from error

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert shell(["list"]) == 130
    assert capsys.readouterr().err == "sparring: interrupted\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_stop_a_training_that_saves(tiny, tmp_path, name):
    def show(news):
        if news.progress.step == 2:
            signal.raise_signal(getattr(signal, name))

    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=show)
    assert list((tmp_path / "checkpoints").iterdir())


def test_a_training_under_nohup_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


# -- a study whose process is killed


def begun_by(pid):
    """The processes that a process has begun, and those that these have begun."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(line.split()[0]) for line in found.stdout.splitlines() if "Z" not in line.split()[1]]
    return [each for child in own for each in (child, *begun_by(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_workers_of_a_study_end_with_it(tmp_path):
    endless = f"{Path(__file__).parents[1] / 'studies' / 'shared_study.py'}:endless"
    arguments = ["study", endless, "--scale", "smoke", "--workers", "2", "--out", "s"]
    process = commanded(arguments, tmp_path / "said", tmp_path)
    while len(list(tmp_path.glob("s/runs/*/metrics.jsonl"))) < 2 and process.is_alive():
        time.sleep(0.1)
    workers = begun_by(process.pid)
    process.kill()
    ended(process)
    assert len(workers) >= 3, "two workers, and the server that has forked them"
    deadline = time.monotonic() + 600
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]
