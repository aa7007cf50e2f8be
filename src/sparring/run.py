"""A run: a recipe trained in a folder, interrupted and resumed as need be, and evaluated from what is there."""

import math
import os
import platform
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from . import report
from .checkpoint import Checkpoints, read_weights, save_weights
from .checks import check_data, check_logits
from .core import Classifier, Data, Progress, at, pixels
from .data import Batches, hold_out
from .engine import Loop, NotFinite, State
from .errors import UserError
from .evaluate import WhiteBox, evaluate
from .models import load_robustbench
from .plain import differences
from .recipe import Recipe, recipe_from_plain
from .results import Accuracy, Evaluated, RunFolder
from .views import eval_mode

LOG_EVERY = 10  # steps between two rows of metrics


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True, slots=True)
class News:
    """What there is to show: after a step, and with `held_out` after an epoch."""

    progress: Progress
    terms: Mapping[str, float]
    images_per_second: float
    seconds_left: float
    held_out: Mapping[str, float] | None = None
    best: bool = False


Show = Callable[[News], None]


@dataclass(frozen=True, slots=True)
class Saving:
    """When checkpoints are written besides the end of each epoch: whichever of the two comes first."""

    seconds: float = 300.0
    steps: int | None = None


def device_of(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises `UserError` for a device that is not here."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here: use auto, cpu or cuda") from error
    return device


def fit(
    recipe: Recipe,
    folder: Path | str,
    *,
    device: str = "auto",
    overwrite: bool = False,
    saving: Saving = Saving(),
    tensorboard: bool = False,
    show: Show = lambda news: None,
) -> RunFolder:
    """Trains `recipe` in `folder`, going on from the newest checkpoint if there is one.

    A run that was killed at any moment and goes on ends with the same bits as one that was not (on the CPU, with the
    same number of threads). SIGINT and SIGTERM save after the present step and raise `Interrupted`.
    Raises `UserError` for a folder that holds a finished run, another recipe or other files; for bad data; for a
    loss that is not finite; for a full disk.
    """
    run = RunFolder(folder)
    if run.foreign():
        raise UserError(f"{run.path} holds files that are not of a run: choose another folder")
    with run.locked():
        _admit(run, recipe, overwrite)
        where = device_of(device)
        train, held, _ = prepare(recipe, where)
        state = _begin(recipe, train, where)
        checkpoints = Checkpoints(run.checkpoints)
        checkpoints.load_latest(state)
        _check_model(recipe, state.model, train)
        run.rewind_metrics(state.step)
        run.add_session(_session(recipe, where))
        batches = Batches(train, recipe.batch_size, recipe.augment, recipe.seed)
        with _stopping() as stop, _board(run, state.step) if tensorboard else nullcontext() as board:
            epochs = _Epochs(recipe, held, run)
            hooks = (epochs, _Record(run, recipe, show, epochs, board), _Save(checkpoints, saving, stop))
            loop = Loop(recipe.epochs, recipe.lr, recipe.update, recipe.averaging, hooks)
            with _explained(run, state), _drawn(run):
                loop.run(recipe.method, state, batches)
                _finish(run, recipe, state, train.classes)
    return run


class Splits(NamedTuple):
    """What is trained on, what selects "best", and what nothing but the evaluation sees."""

    train: Data
    held: Data
    test: Data


def prepare(recipe: Recipe, device: torch.device) -> Splits:
    """The images of a recipe, checked, on the device."""
    train, test = recipe.data.load()
    for data, name in ((train, "training"), (test, "test")):
        check_data(data, name)
    train, held = hold_out(train, recipe.held_out)
    return Splits(train.to(device), held.to(device), test.to(device))


def _admit(run: RunFolder, recipe: Recipe, overwrite: bool) -> None:
    """Makes the folder ready, or says why it cannot be used."""
    known = run.recipe()
    if known is None or overwrite:
        run.clear()
        run.begin(recipe.plain())
    elif run.finished():
        raise UserError(f"{run.path} holds a finished run: --overwrite it, or choose another folder with --out")
    elif known != recipe.plain():
        changed = differences(known, recipe.plain())
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run.path} holds an unfinished run of another recipe ({'; '.join(changed[:3])}{more}): choose another "
            "folder with --out, or --overwrite it"
        )


def _begin(recipe: Recipe, train: Data, device: torch.device) -> State:
    torch.manual_seed(recipe.seed)
    model = recipe.build_model(train).to(device).train()
    state = State.start(recipe.method, model, recipe.optimizer.build(model), train, recipe.seed)
    if recipe.averaging is not None:
        state.average = recipe.averaging.init(model)
    return state


@torch.no_grad()
def _check_model(recipe: Recipe, model: nn.Module, data: Data) -> None:
    with eval_mode(model):
        check_logits(model(pixels(data.x[:8])), min(8, len(data)), len(data.classes))


@contextmanager
def _explained(run: RunFolder, state: State) -> Iterator[None]:
    """What stops a run, with what is left of it and what to do."""
    try:
        yield
    except NotFinite as error:
        raise UserError(
            f"{error}; {_last_good(run)}. Lower the learning rate, clip gradients (--update.max-norm 1) or warm up"
        ) from error
    except OSError as error:
        raise UserError(
            f"step {state.step} could not be saved in {run.path} ({error.strerror or error}); {_last_good(run)}. Make "
            "room and give the same command again: it goes on from there"
        ) from error


@contextmanager
def _drawn(run: RunFolder) -> Iterator[None]:
    """The learning curve, however training ends. That it cannot be drawn must not hide why training ended."""
    try:
        yield
    finally:
        try:
            report.learning_curve(run.metrics(), run.learning_curve)
        except OSError as error:
            warnings.warn(f"the learning curve could not be drawn: {error}", stacklevel=2)


def _last_good(run: RunFolder) -> str:
    paths = Checkpoints(run.checkpoints).paths()
    return f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"


def _finish(run: RunFolder, recipe: Recipe, state: State, classes: tuple[str, ...]) -> None:
    _save_weights(run, "last", recipe, state, classes)
    run.set_status({"finished": True, "step": state.step, "best": state.best})


def _save_weights(run: RunFolder, which: str, recipe: Recipe, state: State, classes: tuple[str, ...]) -> None:
    about = {"recipe": recipe.plain(), "step": state.step, "classes": classes}
    save_weights(run.weights(which), state.evaluated, about)


# -- what happens around training


@dataclass(slots=True)
class _Epochs:
    """Evaluates on the held-out part after each epoch, and keeps the best weights."""

    recipe: Recipe
    held: Data
    run: RunFolder
    latest: dict[str, float] = field(default_factory=dict)
    improved: bool = False

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None: ...

    def on_epoch(self, state: State, progress: Progress) -> None:
        adversary = {"robust": WhiteBox(self.recipe.selection)}
        found = evaluate(state.evaluated, self.held, adversary, seed=self.recipe.seed)
        self.latest = {name: accuracy.value for name, accuracy in found.table().items()}
        self.improved = _rank(self.latest) > _rank(state.best)
        if self.improved:
            state.best = {**self.latest, "step": state.step}
            _save_weights(self.run, "best", self.recipe, state, self.held.classes)


def _rank(scores: Mapping[str, float]) -> tuple[float, float]:
    return scores.get("robust", -1.0), scores.get("clean", -1.0)


@dataclass(slots=True)
class _Record:
    """Writes metrics and tells whoever shows them."""

    run: RunFolder
    recipe: Recipe
    show: Show
    epochs: _Epochs
    board: Any
    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    terms: Mapping[str, float] = field(default_factory=dict)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        self.steps, self.terms = self.steps + 1, terms
        if progress.step % LOG_EVERY == 0:
            # the rate of the step that was taken, not of the next
            before = Progress(progress.step - 1, progress.steps_per_epoch, progress.epochs)
            self._write(progress, {"lr": at(self.recipe.lr, before), "terms": dict(terms)})
        self.show(self._news(progress))

    def on_epoch(self, state: State, progress: Progress) -> None:
        latest, improved = dict(self.epochs.latest), self.epochs.improved
        self._write(progress, {"held_out": latest, "best": improved})
        self.show(self._news(progress, latest, improved))

    def _write(self, progress: Progress, row: dict[str, Any]) -> None:
        self.run.add_metrics({"step": progress.step, "epoch": progress.epoch, **row})
        if self.board is not None:
            flat = {**row.get("terms", {}), **{f"held_out/{k}": v for k, v in row.get("held_out", {}).items()}}
            for name, value in {**flat, **({"lr": row["lr"]} if "lr" in row else {})}.items():
                self.board.add_scalar(name, value, progress.step)

    def _news(self, progress: Progress, held_out: Mapping[str, float] | None = None, best: bool = False) -> News:
        per_second = self.steps / max(1e-9, time.monotonic() - self.began)
        left = (progress.epochs * progress.steps_per_epoch - progress.step) / per_second if per_second else math.inf
        return News(progress, self.terms, per_second * self.recipe.batch_size, left, held_out, best)


@dataclass(slots=True)
class _Save:
    """Writes checkpoints, and stops training once everything is on the disk.

    Never between the last step of an epoch and its evaluation: a run resumed there would skip the evaluation.
    """

    checkpoints: Checkpoints
    saving: Saving
    stop: "_Stop"
    saved: float = field(default_factory=time.monotonic)

    def on_step(self, state: State, progress: Progress, terms: Mapping[str, float]) -> None:
        if progress.step % progress.steps_per_epoch == 0:
            return
        due = time.monotonic() - self.saved > self.saving.seconds
        counted = self.saving.steps is not None and progress.step % self.saving.steps == 0
        if self.stop.asked or due or counted:
            self._save(state)

    def on_epoch(self, state: State, progress: Progress) -> None:
        self._save(state)

    def _save(self, state: State) -> None:
        self.checkpoints.save(state)
        self.saved = time.monotonic()
        if self.stop.asked:
            raise Interrupted(state.step)


@dataclass(slots=True)
class _Stop:
    asked: bool = False


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask for a stop; a second one insists. Outside the main thread nothing can be asked."""
    stop = _Stop()

    def ask(number: int, frame: types.FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _board(run: RunFolder, step: int) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed: pip install 'sparring[tensorboard]'") from error
    with SummaryWriter(str(run.tensorboard), purge_step=step) as writer:
        yield writer


def _session(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Where and with what this part of the run was trained."""
    packages = ("torch", "numpy", "sparring")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "seed": recipe.seed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "process": os.getpid(),
    }


def _commit() -> str | None:
    """The commit of this package if it runs from a checkout, with a + if files differ from it."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*here, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode != 0:
            return None
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.stdout.strip() else "")


# -- what a run came to

ShowEvaluation = Callable[[str, int, int], None]


def evaluate_run(
    run: RunFolder, recipe: Recipe, *, device: str = "auto", show: ShowEvaluation = lambda which, done, total: None
) -> dict[str, dict[str, Accuracy]]:
    """Evaluates the best and the last weights of a run on its test set, as `recipe` says, and writes what was found.

    Per-example flags go to `evaluation-best.npz` and `evaluation-last.npz`, the tables to `evaluation.json`, the
    pictures of the best to `adversarial-examples.png`.
    """
    if not run.finished():
        raise UserError(
            f"{run.path} holds an unfinished run: train it to its end, or evaluate {run.weights('best')}, its best yet"
        )
    splits = prepare(recipe, device_of(device))
    found = {"best": _evaluate(run.weights("best"), recipe, splits, partial(show, "best"))}
    same = _step_of(run.weights("best")) == _step_of(run.weights("last"))
    found["last"] = found["best"] if same else _evaluate(run.weights("last"), recipe, splits, partial(show, "last"))
    for which, evaluated in found.items():
        run.write_flags(which, evaluated)
    run.adversarial_examples.unlink(missing_ok=True)
    if found["best"].examples is not None:
        report.adversarial_examples(found["best"].examples, splits.test.classes, run.adversarial_examples)
    tables = {which: evaluated.table() for which, evaluated in found.items()}
    run.write_evaluation({w: {name: a.plain() for name, a in table.items()} for w, table in tables.items()})
    return tables


def evaluate_weights(
    path: Path, recipe: Recipe, *, device: str = "auto", show: ShowEvaluation = lambda which, done, total: None
) -> dict[str, Accuracy]:
    """Evaluates a file of weights on the test set of `recipe`, as that says."""
    return _evaluate(path, recipe, prepare(recipe, device_of(device)), partial(show, "weights")).table()


def recipe_of(path: Path) -> Recipe:
    """The recipe of a run folder, or the one that a weights file names. Raises `UserError` if there is none."""
    plain = RunFolder(path).recipe() if path.is_dir() else read_weights(path)[1].get("recipe")
    if plain is None:
        what = "is no run folder" if path.is_dir() else "does not say which model it belongs to: name one with --recipe"
        raise UserError(f"{path} {what}")
    return recipe_from_plain(plain)


def load_model(path: Path | str, recipe: Recipe | None = None, like: Data | None = None) -> nn.Module:
    """A trained model in eval mode, on the CPU.

    Weights written by `fit` say themselves what they are. For others, RobustBench's for example, `recipe` says which
    model they belong to. The model takes its classes and shape from `like`, or else from the training set.
    """
    recipe = recipe_of(Path(path)) if recipe is None else recipe
    tensors, about = read_weights(Path(path))
    model = recipe.build_model(recipe.data.load()[0] if like is None else like)
    if "recipe" not in about and isinstance(model, Classifier):
        return load_robustbench(model, tensors).eval()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the model of its recipe: {detail}") from error
    return model.eval()


def _evaluate(path: Path, recipe: Recipe, splits: Splits, show: Callable[[int, int], None]) -> Evaluated:
    """One set of weights on the test images that the recipe asks for."""
    how = recipe.evaluation
    subset = splits.test if how.examples is None else splits.test[: how.examples]
    return evaluate(
        load_model(path, recipe, splits.train).to(subset.x.device),
        subset,
        how.adversaries,
        batch_size=how.batch_size,
        seed=recipe.seed,
        on_batch=lambda done: show(done, len(subset)),
    )


def _step_of(path: Path) -> int | None:
    return read_weights(path)[1].get("step")
