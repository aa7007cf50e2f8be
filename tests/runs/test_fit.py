import json
import math
import re
import resource
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_data
from forked import ended, started
from helpers import bits, demanding, stop_at

from sparring import EMA, PGD, Linf, Method, RunFolder, State, UserError, fit, load_model
from sparring.cli import run as shell
from sparring.core.serialization import Build
from sparring.core.types import pixels
from sparring.data import NPZ, Batches, Digits, Subset
from sparring.models import Normalize, preact_resnet18, small_cnn
from sparring.objectives import FGSMMEP
from sparring.runs.load import evaluate_run, evaluate_weights, recipe_of
from sparring.training import Guard, Interrupted, Saving
from sparring.training.checkpoint import read_weights, save_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run of `tiny`, which tests only read."""
    import conftest

    return fit(conftest.tiny.__wrapped__(), tmp_path_factory.mktemp("finished") / "r")


@pytest.fixture
def copied(finished, tmp_path):
    """The run of `tiny` in a folder of the test's own."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "r"))


def test_a_run_leaves_everything_that_it_promises(finished, tiny):
    run = finished
    assert {p.name for p in run.path.iterdir()} == {
        ".lock",
        "best.safetensors",
        "checkpoints",
        "environment.json",
        "last.safetensors",
        "learning-curve.png",
        "metrics.jsonl",
        "recipe.json",
        "search.json",
        "status.json",
    }
    assert run.finished()
    assert recipe_of(run.path) == tiny
    epochs = [row for row in run.metrics() if "held_out" in row]
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert set(epochs[0]["held_out"]) == {"clean", "robust"}
    steps = [row for row in run.metrics() if "terms" in row]
    assert steps[0]["step"] == 10
    assert set(steps[0]["terms"]) == {"ce"}
    assert steps[0]["lr"] > 0


def test_a_run_repeats_itself_from_its_seed_and_another_seed_is_another_run(finished, tiny, tmp_path):
    assert bits(fit(tiny, tmp_path / "again")) == bits(finished)
    assert bits(fit(replace(tiny, seed=1), tmp_path / "other")) != bits(finished)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    import conftest

    recipe = demanding(conftest.tiny.__wrapped__())
    return recipe, fit(recipe, tmp_path_factory.mktemp("demanding") / "whole")


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_an_interrupted_run_saves_and_goes_on_bit_for_bit(uninterrupted, tmp_path, step):
    """Steps 3 and 6 end an epoch, whose evaluation must not be lost."""
    recipe, whole = uninterrupted
    with pytest.raises(Interrupted) as stop:
        fit(recipe, tmp_path / "half", on_progress=stop_at(step))
    assert stop.value.step == step
    half = fit(recipe, tmp_path / "half")
    for which in ("best", "last"):
        assert bits(whole, which) == bits(half, which)
    assert whole.metrics() == half.metrics()
    assert whole.status() == half.status()


@pytest.fixture(scope="module")
def on_all_images(tmp_path_factory):
    import conftest

    tiny, folder = conftest.tiny.__wrapped__(), tmp_path_factory.mktemp("all") / "whole"
    recipe = replace(tiny, held_out=0.0, drop_last=False, normalize=False, data=Subset(Digits(), 300, 10))
    recipe = replace(recipe, batch_size=55, evaluation=replace(tiny.evaluation, examples=4))
    return recipe, fit(recipe, folder)


def test_all_images_can_train(on_all_images):
    recipe, whole = on_all_images
    train, _ = recipe.data.load()
    assert len(recipe.split(train, whole.path, torch.device("cpu"))[0]) == len(train)
    assert recipe.split(train, whole.path, torch.device("cpu"))[1] is None
    epoch = math.ceil(len(train) / recipe.batch_size)  # the last batch is a part
    assert len(train) % recipe.batch_size
    assert whole.status()["step"] == 3 * epoch == whole.status()["best"]["step"]
    assert whole.status()["selected"] == "last epoch, nothing held out"
    assert bits(whole, "best") == bits(whole, "last")
    assert isinstance(load_model(whole.weights("best"), recipe).normalize, torch.nn.Identity)


@pytest.mark.parametrize("step", [3, 5, 6])
def test_an_interrupted_run_on_all_images_goes_on_bit_for_bit(on_all_images, tmp_path, step):
    recipe, whole = on_all_images
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "half", on_progress=stop_at(step))
    half = fit(recipe, tmp_path / "half")
    for which in ("best", "last"):
        assert bits(whole, which) == bits(half, which)
    assert whole.metrics() == half.metrics() and whole.status() == half.status()
    evaluate_run(half, recipe)
    assert half.evaluation()["how"]["selected"] == "last epoch, nothing held out"


def test_a_guarded_run_from_the_shell_may_hold_nothing_out(tmp_path, capsys):
    out = str(tmp_path / "r")
    given = ["--epochs", "1", "--held-out", "0", "--no-drop-last", "--no-normalize", "--model.width", "2"]
    assert shell(["train", "quickstart", *given, "--out", out]) == 0
    assert "last epoch counts, as nothing was held out" in capsys.readouterr().out
    recipe = recipe_of(RunFolder(out).path)
    assert (recipe.held_out, recipe.drop_last, recipe.normalize) == (0, False, False)
    run = fit(replace(recipe, guard=Guard(Linf(0.15), examples=16)), tmp_path / "guarded")
    assert run.finished() and any("guard" in row for row in run.metrics())
    assert not any("held_out" in row for row in run.metrics())


def test_every_image_is_in_a_batch_of_an_epoch_if_the_last_is_kept():
    batches = Batches(toy_data(10), 4, drop_last=False)
    sizes = [[len(batch.y) for batch in batches.rest_of_epoch(step)] for step in (0, 2, 3)]
    assert sizes == [[4, 4, 2], [2], [4, 4, 2]]
    seen = torch.cat([batch.index for batch in batches.rest_of_epoch(3)])
    assert seen.sort().values.tolist() == list(range(10))
    assert len(Batches(toy_data(10), 4)) == 2


def test_sigterm_saves_too(tiny, tmp_path):
    def show(news):
        if news.progress.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=show)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler is gone with the run"


def test_a_second_ctrl_c_insists(tiny, tmp_path):
    def show(news):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path, on_progress=show)


def test_a_finished_run_is_left_alone_unless_told_otherwise(copied, tiny):
    first = bits(copied)
    with pytest.raises(UserError, match="holds a finished run: overwrite it, or choose another folder"):
        fit(tiny, copied.path)
    assert bits(copied) == first
    assert bits(fit(replace(tiny, seed=1, epochs=1), copied.path, overwrite=True)) != first


def test_an_unfinished_run_of_another_recipe_is_not_gone_on_with(tiny, tmp_path):
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(2))
    other = replace(tiny, seed=3, epochs=1)
    with pytest.raises(UserError, match=r"unfinished run of another recipe \(epochs: 3 -> 1; seed: 0 -> 3\)"):
        fit(other, tmp_path)
    assert fit(other, tmp_path, overwrite=True).finished()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {"device": "tpu"}),
        ({"batch_size": 5000}, {}),
        ({"data": NPZ("/nowhere.npz")}, {}),
        ({"model": Build(small_cnn, activation="rleu")}, {}),
        ({"method": Method(PGD(Linf(0.1), steps=2), FGSMMEP(Linf(0.1)))}, {}),  # refused by the first step
    ],
)
def test_a_run_is_not_overwritten_before_all_else_is_in_order(copied, tiny, change, options):
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        fit(replace(tiny, **change), copied.path, overwrite=True, **options)
    assert {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()} == before
    assert copied.finished()


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/r cannot be a run folder: Not a directory"):
        fit(tiny, tmp_path / "file" / "r")


def test_best_weights_that_a_kill_kept_from_being_written_are_written_on_resume(tiny, tmp_path):
    """The checkpoint of the best epoch is on the disk; the process dies before best.safetensors is."""
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(5))
    best = tmp_path / "best.safetensors"
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(6))
    assert best.read_bytes() == content


def test_a_run_of_another_device_is_not_gone_on_with(tiny, tmp_path):
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(2))
    with pytest.MonkeyPatch.context() as patch:
        state_dict, stop = State.state_dict, stop_at(3)

        def show(news):
            patch.setattr(State, "state_dict", lambda self: {**state_dict(self), "device": "cuda"})
            stop(news)

        with pytest.raises(Interrupted):
            fit(tiny, tmp_path, on_progress=show)
    with pytest.raises(
        UserError, match=r"was trained on cuda and cannot be resumed exactly on cpu: give --device cuda"
    ):
        fit(tiny, tmp_path)


def test_a_folder_of_other_files_is_not_touched(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds files that are not of a run"):
            fit(tiny, tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(finished, tiny, tmp_path):
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path / "half", on_progress=stop_at(12))
    newest = max((tmp_path / "half" / "checkpoints").iterdir()) / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="damaged"):
        half = fit(tiny, tmp_path / "half")
    assert bits(finished) == bits(half)
    assert finished.metrics() == half.metrics()


def test_the_best_weights_are_those_of_the_best_held_out_epoch(tiny, tmp_path):
    run = fit(replace(tiny, data=Subset(Digits(), 500, 10), epochs=6, batch_size=64), tmp_path)
    rows = [row for row in run.metrics() if "held_out" in row]
    ranks = [(row["held_out"]["robust"], row["held_out"]["clean"]) for row in rows]
    best = max(range(6), key=lambda i: (ranks[i], -i))
    assert read_weights(run.weights("best"))[1]["step"] == rows[best]["step"] == run.status()["best"]["step"]
    assert rows[best]["best"]
    assert read_weights(run.weights("last"))[1]["step"] == rows[-1]["step"]


def test_the_test_set_selects_nothing(finished, tiny, tmp_path, monkeypatch):
    """With other test images the same weights come out."""
    load = Digits.load

    def other(self):
        train, test = load(self)
        return train, replace(test, x=255 - test.x)

    monkeypatch.setattr(Digits, "load", other)
    assert bits(fit(tiny, tmp_path), "best") == bits(finished, "best")


def test_a_loss_that_is_not_finite_names_step_term_and_checkpoint(tiny, tmp_path):
    broken = replace(tiny, lr=1e9, epochs=20)
    with pytest.raises(UserError, match=r"the loss term 'ce' became (nan|inf) at step \d+ .* lower learning rate"):
        fit(broken, tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path):
    """A finite loss can have a gradient that is not; a checkpoint of its weights could not be gone on from."""
    build = type(tiny).build_model
    held = {}

    def remember(self, data):
        held["model"] = build(self, data)
        return held["model"]

    def poison(news):
        if news.progress.step == 7:
            held["model"].body[0].bias.data[0] = torch.inf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny), "build_model", remember)
        with pytest.raises(UserError, match=r"weight 'body.0.bias' became NaN .*by step 7; .*step-000000006"):
            fit(tiny, tmp_path, on_progress=poison, saving=Saving(steps=1))
    assert fit(tiny, tmp_path).finished(), "the checkpoint before serves"


def test_the_last_good_checkpoint_is_named(tiny, tmp_path):
    def poison(news):
        if news.progress.step == 7:
            monkey["model"].body[0].weight.data.fill_(torch.nan)

    monkey = {}
    build = type(tiny).build_model

    def remember(self, data):
        monkey["model"] = build(self, data)
        return monkey["model"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny), "build_model", remember)
        with pytest.raises(UserError, match=r"at step 7 .*the last good checkpoint is .*step-000000005"):
            fit(tiny, tmp_path, on_progress=poison)


def test_a_full_disk_stops_with_a_sentence_and_goes_on_when_there_is_room(finished, tiny, tmp_path):
    """A real limit on the size of files, in a process of its own: the third epoch's weights do not fit any more."""
    assert ended(started(fill_the_disk, tiny, tmp_path / "half")) == 0
    assert bits(fit(tiny, tmp_path / "half")) == bits(finished)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def fill_the_disk(recipe, folder):
    def show(news):
        if news.progress.step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with pytest.raises(UserError) as error:
        fit(recipe, folder, on_progress=show)
    for part in ("the disk stopped the run", "File too large", "the last good checkpoint is", "step-000000005"):
        assert part in str(error.value)


def test_a_model_that_does_not_fit_the_data_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(UserError, match="device 'tpu' is not available here"):
        fit(tiny, tmp_path / "a", device="tpu")
    with pytest.raises(UserError, match="batches of 5000 do not go with 1293 training images"):
        fit(replace(tiny, batch_size=5000), tmp_path / "b")


def test_each_start_is_recorded_with_its_environment(tiny, tmp_path):
    short = replace(tiny, epochs=1)
    with pytest.raises(Interrupted):
        fit(short, tmp_path, on_progress=stop_at(2))
    run = fit(short, tmp_path)
    sessions = json.loads((run.path / "environment.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[0]["versions"]["torch"] == torch.__version__
    assert sessions[0]["threads"] == 1
    assert sessions[0]["seed"] == 0


def test_checkpoints_are_written_within_epochs_if_asked_for(tiny, tmp_path):
    seen = set()

    def look(news):
        seen.update(tmp_path.glob("checkpoints/step*"))

    fit(replace(tiny, epochs=1), tmp_path, saving=Saving(steps=2), on_progress=look)
    assert {"step-000000002", "step-000000004"} <= {path.name for path in seen}


def test_a_signal_after_the_last_step_stops_what_comes_next(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sparring.runs.fit.plot_learning_curve", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(replace(tiny, epochs=1), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert RunFolder(tmp_path).finished()


def test_tensorboard_events_are_written_if_asked_for(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(tiny, tmp_path, track="tensorboard")
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert {"ce", "lr", "held_out/clean", "held_out/robust"} <= set(events.Tags()["scalars"])
    wanted = [row["held_out"]["clean"] for row in run.metrics() if "held_out" in row]
    assert [e.value for e in events.Scalars("held_out/clean")] == pytest.approx(wanted)


def test_tensorboard_loses_no_point_to_an_interruption(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, track="tensorboard", on_progress=stop_at(5))
    run = fit(tiny, tmp_path, track="tensorboard")
    found = [event.step for event in EventAccumulator(str(run.tensorboard)).Reload().Scalars("held_out/clean")]
    assert found == [5, 10, 15]


# -- evaluation of what a run left


def test_a_run_is_evaluated_best_and_last_per_example(drawn, tiny, tmp_path):
    recipe = replace(tiny, model=Build(small_cnn, width=8, batch_norm=True))
    run = fit(recipe, tmp_path)
    tables = {which: found.table() for which, found in evaluate_run(run, recipe).items()}
    assert set(tables) == {"best", "last"}
    assert set(tables["best"]) == {"clean", "pgd-3"}
    assert tables["best"]["clean"].examples == 40
    flags = run.read_flags("last")
    assert int(flags.robust["pgd-3"].sum()) == tables["last"]["pgd-3"].correct
    assert run.evaluation()["best"]["clean"] == tables["best"]["clean"].plain()
    assert run.adversarial_examples.stat().st_size > 5000


def test_an_unfinished_run_is_evaluated_by_its_best_weights_alone(tiny, tmp_path):
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(8))
    with pytest.raises(UserError, match=r"unfinished run: train it to its end, or evaluate .*best\.safetensors"):
        evaluate_run(RunFolder(tmp_path), tiny)
    assert evaluate_weights(tmp_path / "best.safetensors", tiny).table()["clean"].examples == 40


def test_weights_alone_are_enough_to_evaluate_and_to_load(copied, tiny, tmp_path):
    run = copied
    moved = tmp_path / "mine.safetensors"
    moved.write_bytes(bits(run, "best"))
    recipe = recipe_of(moved)
    assert recipe == tiny
    alone, in_run = evaluate_weights(moved, recipe), evaluate_run(run, tiny)["best"]
    assert all(np.array_equal(alone.robust[name], flags) for name, flags in in_run.robust.items())
    model = load_model(moved)
    pairs = zip(model.parameters(), load_model(run.path).parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs), "of a folder, it is the best"
    assert not model.training
    test = Digits().load()[1]
    assert (model(pixels(test.x[:40])).argmax(1) == test.y[:40]).sum() == alone.robust["clean"].sum()


def test_weights_of_others_need_a_recipe_that_says_what_they_are(tiny, tmp_path):
    recipe = replace(tiny, model=Build(preact_resnet18, width=0.05))
    model = recipe.build_model(Digits().load()[0])
    state = {
        n.removeprefix("body.").replace("head.", "linear."): t
        for n, t in model.state_dict().items()
        if "normalize" not in n
    }
    torch.save({"state_dict": state}, tmp_path / "theirs.pt")
    with pytest.raises(UserError, match="does not say which model it belongs to: name one with --recipe"):
        recipe_of(tmp_path / "theirs.pt")
    loaded = load_model(tmp_path / "theirs.pt", recipe)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert not isinstance(loaded.normalize, Normalize)
    with pytest.raises(UserError, match="another architecture"):
        load_model(tmp_path / "theirs.pt", tiny)


def test_a_model_is_loaded_without_its_data(finished, monkeypatch):
    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("the data are not needed"))
    assert load_model(finished.weights("best"))(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_plain_state_dict_of_one_of_our_models_loads_too(tiny, tmp_path):
    model = tiny.build_model(Digits().load()[0])
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    assert torch.equal(load_model(tmp_path / "mine.pt", tiny).head.weight, model.head.weight)


def test_weights_of_a_run_do_not_fit_another_recipe(finished, tiny):
    with pytest.raises(UserError, match=r"best\.safetensors does not fit the model of its recipe"):
        load_model(finished.weights("best"), replace(tiny, model=Build(preact_resnet18, width=0.05)))


def test_a_folder_that_cannot_be_written_is_said_to_be_before_the_work(finished, tiny, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\): evaluate .*best\.safetensors"):
        evaluate_run(finished, tiny, on_progress=lambda *_: pytest.fail("the work has begun"))


def test_best_weights_of_a_future_that_is_gone_are_forgotten(tiny, tmp_path):
    """The newest checkpoint is damaged, and the best weights are of its epoch."""
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(7))
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    (checkpoints[-1] / "state.pt").write_bytes(b"")
    tensors, about = read_weights(tmp_path / "best.safetensors")
    model = tiny.build_model(Digits().load()[0])
    model.load_state_dict(tensors)
    save_weights(tmp_path / "best.safetensors", model, {**about, "step": 7})
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Interrupted):
        fit(tiny, tmp_path, on_progress=stop_at(6))
    assert read_weights(tmp_path / "best.safetensors")[1]["step"] == 5


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        recipe_of(tmp_path)


def test_a_run_says_what_it_will_cost_and_keeps_the_precision_it_was_begun_with(tiny, tmp_path):
    describe, short = [], replace(tiny, epochs=1)
    with pytest.raises(Interrupted):
        fit(short, tmp_path, precision="fp32", on_progress=stop_at(2), log=describe.append)
    assert re.fullmatch(
        r"about [\d,]+ images/s, \d+ % of the time in the attack; 3 forward and 3 backward passes an example; "
        r"[\d.]+ minutes to go, attacks in fp32, not compiled",
        describe[0],
    )
    assert len(describe) == 1
    with pytest.raises(UserError, match=r"was begun with --precision fp32, and bf16 would round otherwise"):
        fit(short, tmp_path, precision="bf16")
    with pytest.raises(UserError, match=r"was begun with --compile off, and on would round otherwise"):
        fit(short, tmp_path, compile="on")
    fit(short, tmp_path)
    whole = fit(short, tmp_path.with_name("whole"), precision="fp32")
    assert bits(whole) == bits(RunFolder(tmp_path))


def test_whether_to_compile_is_decided_once(tiny, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path / "a", compile="off", on_progress=stop_at(2))
    monkeypatch.setattr("sparring.runs.fit.worth_compiling", lambda *_: True)
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path / "a", on_progress=stop_at(4))
    assert RunFolder(tmp_path / "a").backend()["compile"] == "off"


def test_a_precision_that_there_is_not_is_refused_before_anything_is_deleted(tiny, tmp_path):
    short = replace(tiny, epochs=1)
    with pytest.raises(Interrupted):
        fit(short, tmp_path, on_progress=stop_at(2))
    with pytest.raises(UserError, match=r"precision = 'half' is not one of"):
        fit(short, tmp_path, precision="half", overwrite=True)
    assert fit(short, tmp_path).finished()
    assert RunFolder(tmp_path).metrics()


def test_what_a_step_costs_is_found_without_a_trace(tiny, tmp_path):
    """The steps that were timed are undone to the bit: weights, statistics, momentum, random numbers."""
    from sparring.training.profiling import StepProfile

    recipe = replace(tiny, averaging=EMA(0.9), epochs=1)
    measured = fit(recipe, tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.runs.fit.measure", lambda *_: StepProfile(1.0, 0.5, 1.0, 1.0, 1.0, 1.0))
        unmeasured = fit(recipe, tmp_path / "b")
    assert bits(measured) == bits(unmeasured)


@pytest.mark.parametrize("known", [True, False])
def test_a_processor_that_emulates_bf16_is_told_of(tiny, tmp_path, monkeypatch, known):
    monkeypatch.setattr("sparring.runs.compute.computes_bf16", lambda device: known)
    describe = []
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path, precision="bf16", on_progress=stop_at(1), log=describe.append)
    assert ("has no instructions for bf16" in describe[0]) == (not known)


def test_a_profile_says_which_stage_takes_how_long(tiny, tmp_path):
    run = fit(replace(tiny, epochs=1), tmp_path, profile=True)
    text = (run.path / "profile.txt").read_text()
    shares = {name: float(share) for name, share in re.findall(r"^(attack|update) .*?([\d.]+) %$", text, re.MULTILINE)}
    assert shares["attack"] + shares["update"] == pytest.approx(100, abs=25)
    assert "convolution" in text
    assert json.loads((run.path / "profile.json").read_text())["traceEvents"]
