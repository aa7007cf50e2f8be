"""A run: a recipe trained in a folder, interrupted and resumed as need be."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..acceleration import AcceleratedCopy, Compile, Precision, computes_bf16, prefer_channels_last, worth_compiling
from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.rng import make_rng
from ..core.serialization import differences
from ..core.types import LabelledData, Progress, TensorData, pixels
from ..core.validation import check_data, check_logits
from ..data import Batches, Training
from ..models import encode_bank, knn_head
from ..objectives.bank import Bank
from ..records.run_folder import RunFolder
from ..report.figures import plot_learning_curve
from ..training.checkpoint import Checkpoints, read_weights, save_weights
from ..training.engine import Loop, NotFinite, State
from ..training.guard import Alarm, OverfittingMonitor
from ..training.hooks import (
    CheckpointHook,
    EncodeBankHook,
    ExampleHistoryHook,
    GuardHook,
    MetricsHook,
    Saving,
    TrainingProgress,
    ValidationHook,
    stopping,
)
from ..training.profiling import StepProfile, measure
from .environment import device_of, session
from .recipe import Recipe


def fit(
    recipe: Recipe,
    folder: Path | str,
    *,
    device: str = "auto",
    overwrite: bool = False,
    saving: Saving = Saving(),  # noqa: B008
    tensorboard: bool = False,
    precision: Precision = "auto",
    compile: Compile = "auto",
    profile: bool = False,
    show: Callable[[TrainingProgress], None] = lambda news: None,
    say: Callable[[str], None] = lambda text: None,
) -> RunFolder:
    """Trains `recipe` in `folder`, going on from the newest checkpoint if there is one.

    A run that was killed at any moment and goes on ends with the same bits as one that was not (on the CPU, with the
    same number of threads). `precision` and `compile` are those of the attack (see `AcceleratedCopy`); a run keeps what
    it was begun with. What a step costs is measured on two steps that are undone, and said in a line to `say`; with
    `profile`, `profile.json` and `profile.txt` say what takes how long. SIGINT and SIGTERM save after the present step
    and raise `Interrupted`.

    Raises `UserError` for a folder that holds a finished run, another recipe or other files; for bad data; for a
    loss or weights that are not finite; for a full disk. Nothing is overwritten before all else is in order.
    """
    run, where = RunFolder(folder), device_of(device)
    _admit(run, recipe, overwrite)
    fresh = overwrite or run.backend() is None
    backend = AcceleratedCopy.resolved(where, precision, compile) if fresh else _search(run, precision, compile)
    training, held = _prepare(recipe, run.path, where)
    train = training.data
    goes_on = not overwrite and bool(Checkpoints(run.checkpoints).paths())
    state = _begin(replace(recipe, init_from="") if goes_on else recipe, train, run.path, where)
    batches = Batches(train, recipe.batch_size, recipe.augment, recipe.seed, recipe.views, recipe.drop_last)
    board = _board(run) if tensorboard else _no_board
    with run.locked(), _explained(run, state):
        checkpoints = Checkpoints(run.checkpoints)
        if not _admit(run, recipe, overwrite) or not checkpoints.paths():
            run.clear()
            run.begin(recipe.plain())
        if recipe.alterations or recipe.example_history:
            run.settle_training(training.arrays())
        checkpoints.load_latest(state)
        run.rewind(state.step)
        pace = measure(
            recipe.method, state, batches, recipe.epochs, recipe.update, backend, run.path if profile else None
        )
        notes = backend.notes(state.model)
        if fresh and compile == "auto" and worth_compiling(state.model, where, pace.seconds_left * pace.in_attack):
            backend = AcceleratedCopy(backend.precision, "on")
        run.set_backend({"precision": backend.precision, "compile": backend.compile})
        more = (
            *_guarding(recipe, batches, pace),
            *_banks(state),
            *_looks(recipe, train),
            *_emulated(backend, where),
            *notes,
        )
        say("\n".join([f"{pace}, {backend.describe(where)}", *more]))
        run.add_session(session(recipe.seed, where))
        best = _Best(run, recipe, train)
        best.settle(state)
        with stopping() as stop, board(state.step) as writer, _drawn(run):
            held_out = ValidationHook(recipe.selection, recipe.seed, held, backend)
            record = MetricsHook(run, recipe.batch_size, show, held_out, writer)
            save = CheckpointHook(checkpoints, saving, stop, best.write)
            watch = _watch(recipe, train, backend)
            guarding = () if watch is None else (GuardHook(watch, run, checkpoints, held_out, say),)
            readers = _readers(state, train, run, say)
            looking = _remembering(recipe, run, train, backend)
            hooks = (*readers, held_out, record, *looking, *guarding, save)
            loop = Loop(recipe.epochs, recipe.lr, recipe.update, recipe.averaging, hooks, backend)
            stopped = _train(loop, recipe, state, batches, watch, _Back(run, checkpoints, best, say))
            if stopped:  # perhaps in the middle of the first epoch, where nothing was the best yet
                now = Progress(state.step, len(batches), recipe.epochs)
                for reader in readers:
                    reader.on_epoch(state, now)
                held_out.on_epoch(state, now)
                best.settle(state)
            _write_weights(run, "last", recipe, state, train)
            selected = {"selected": recipe.selected}
            run.set_status({"finished": True, "step": state.step, "best": state.best, **selected, **stopped})
    return run


def _guarding(recipe: Recipe, batches: Batches, pace: StepProfile) -> list[str]:
    if recipe.guard is None:
        return []
    mean = pace.mean or (pace.forward + pace.backward) / 2
    added = recipe.guard.added(recipe.batch_size * recipe.views, len(batches), mean)
    return [f"the guard looks {recipe.guard.checks} times an epoch, which adds up to {100 * added:.3g} % of the passes"]


def _remembering(
    recipe: Recipe, run: RunFolder, train: LabelledData, backend: AcceleratedCopy
) -> tuple[ExampleHistoryHook, ...]:
    return (
        ()
        if recipe.example_history is None
        else (ExampleHistoryHook(recipe.example_history, run, train, backend, recipe.seed),)
    )


def _looks(recipe: Recipe, train: LabelledData) -> list[str]:
    if recipe.example_history is None:
        return []
    every = "epoch" if recipe.example_history.every == 1 else f"{recipe.example_history.every} epochs"
    return [f"every {every} all {len(train):,} training examples are attacked once more, to be remembered: not counted"]


def _banks(state: State) -> list[str]:
    found = [str(module) for module in state.memory.modules() if isinstance(module, Bank)]
    head = knn_head(state.model)
    if head is not None:
        found.append(
            f"{len(head.rows):,} training images are the bank of {head.k} nearest neighbours, encoded anew after each "
            "epoch: not counted"
        )
    return found


def _readers(
    state: State, train: LabelledData, run: RunFolder, say: Callable[[str], None]
) -> tuple[EncodeBankHook, ...]:
    return () if knn_head(state.model) is None else (EncodeBankHook(train, run, say),)


def _watch(recipe: Recipe, train: LabelledData, backend: AcceleratedCopy) -> OverfittingMonitor | None:
    """The guard of the recipe, with the training images that it looks at, the same throughout."""
    if recipe.guard is None:
        return None
    rows = torch.randperm(len(train), generator=make_rng(1))[: recipe.guard.examples].to(train.y.device)
    return OverfittingMonitor(recipe.guard, train[rows], backend, recipe.seed)


def _train(
    loop: Loop, recipe: Recipe, state: State, batches: Batches, watch: OverfittingMonitor | None, back: "_Back"
) -> dict[str, str]:
    """To the end, or until the guard stops it: then the status says why."""
    if watch is None:
        loop.run(recipe.method, state, batches)
        return {}
    notes = watch.notes(state)
    back.checkpoints.pinned = notes["healthy"]
    back.run.set_guard(notes["events"])  # a kill may have come before it was written
    if notes["events"] and notes["events"][-1]["action"] == "stopped":
        return {"stopped": notes["events"][-1]["what"]}
    while state.step < loop.epochs * len(batches):
        method, until = watch.now(recipe.method, state)
        try:
            loop.run(method, state, batches, until)
        except Alarm as alarm:
            gone_back = back.go(state, watch)
            if watch.guard.action == "stop":
                back.tell(state, watch, watch.stopped(state, alarm, gone_back))
                return {"stopped": watch.notes(state)["events"][-1]["what"]}
            back.tell(state, watch, watch.rescued(state, alarm, len(batches), gone_back))
    return {}


@dataclass(frozen=True, slots=True)
class _Back:
    """Takes a run back to its last healthy checkpoint, with all that was written since."""

    run: RunFolder
    checkpoints: Checkpoints
    best: "_Best"
    say: Callable[[str], None]

    def go(self, state: State, watch: OverfittingMonitor) -> bool:
        """Without a healthy checkpoint, training stays where it is, and this is False."""
        kept = watch.notes(state)
        gone_back = kept["healthy"] is not None and self.checkpoints.go_back(state, kept["healthy"])
        if gone_back:
            self.run.rewind(state.step)
            self.best.forget_later(state)
        watch.notes(state)["events"] = kept["events"]
        return gone_back

    def tell(self, state: State, watch: OverfittingMonitor, event: str) -> None:
        self.checkpoints.save(state)
        if state.best.get("step") == state.step:
            self.best.write(state)
        self.run.set_guard(watch.notes(state)["events"])
        self.say(event)


@dataclass(frozen=True, slots=True)
class _Best:
    """The file of the best weights, which follows the checkpoint that knows of them."""

    run: RunFolder
    recipe: Recipe
    train: LabelledData

    def write(self, state: State) -> None:
        _write_weights(self.run, "best", self.recipe, state, self.train)

    def settle(self, state: State) -> None:
        """When training goes on."""
        if state.best.get("step") == state.step:  # the process may have died before it wrote them
            self.write(state)
        else:
            self.forget_later(state)

    def forget_later(self, state: State) -> None:
        """After going back, the best weights may be of a future that need not come again."""
        path = self.run.weights("best")
        if path.exists() and read_weights(path)[1].get("step", math.inf) > state.step:
            path.unlink()
        if not path.exists():
            state.best = {}


def _prepare(recipe: Recipe, folder: Path, device: torch.device) -> tuple[Training, TensorData | None]:
    """What is trained on and what selects "best", if anything does, on the device.

    The test images are checked, and then left alone.
    """
    train, test = recipe.data.load()
    for data, name in ((train, "training"), (test, "test")):
        check_data(
            data if isinstance(data, TensorData) else data[:8], name
        )  # files show what they hold when they are read
    if train.shape != test.shape:
        raise UserError(f"training images are {train.shape}, but test images are {test.shape}")
    return recipe.split(train, folder, device)


def _admit(run: RunFolder, recipe: Recipe, overwrite: bool) -> bool:
    """Whether the folder holds a run to go on with; if it can be used at all."""
    if run.foreign():
        raise UserError(f"{run.path} holds files that are not of a run: choose another folder")
    if overwrite:
        run.clearable()  # what stands in the way is better known before
    plain, known = recipe.plain(), run.recipe()
    if known is None or overwrite:
        return False
    if run.finished():
        raise UserError(f"{run.path} holds a finished run: --overwrite it, or choose another folder with --out")
    if known != plain:
        changed = differences(known, plain)
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run.path} holds an unfinished run of another recipe ({'; '.join(changed[:3])}{more}): choose another "
            "folder with --out, or --overwrite it"
        )
    return True


@torch.no_grad()
def _begin(recipe: Recipe, train: LabelledData, folder: Path, device: torch.device) -> State:
    """The state before the first step, with a model that was seen to give logits for these data."""
    model = recipe.initial_model(train, folder).to(device).train()
    encode_bank(model, train)
    with eval_mode(model):
        few = pixels(train[:8].x)
        check_logits(model(few), len(few), len(train.classes))
    prefer_channels_last(model, few)
    state = State.start(recipe.method, model, recipe.optimizer.build(model), train, recipe.seed)
    if recipe.averaging is not None:
        state.average = recipe.averaging.init(model)
    return state


def _search(run: RunFolder, precision: Precision, compile: Compile) -> AcceleratedCopy:
    """What the run was begun with, if that is what is asked for: other rounding would not be the same run."""
    begun = run.backend() or {}
    for name, asked in (("precision", precision), ("compile", compile)):
        if asked not in ("auto", begun[name]):
            raise UserError(
                f"{run.path} was begun with --{name} {begun[name]}, and {asked} would round otherwise: leave it out, "
                "or start anew in another folder with --out"
            )
    return AcceleratedCopy(begun["precision"], begun["compile"])


def _emulated(backend: AcceleratedCopy, device: torch.device) -> Iterator[str]:
    if backend.dtype(device) == torch.bfloat16 and not computes_bf16(device):
        yield "this processor has no instructions for bf16, so attacks are many times slower than with --precision fp32"


def _write_weights(run: RunFolder, which: str, recipe: Recipe, state: State, train: LabelledData) -> None:
    about = {"recipe": recipe.plain(), "step": state.step, "classes": train.classes, "shape": train.shape}
    save_weights(run.weights(which), state.evaluated, about)


@contextmanager
def _explained(run: RunFolder, state: State) -> Iterator[None]:
    """What stops a run, with what is left of it and what to do."""
    try:
        yield
    except NotFinite as error:
        raise UserError(
            f"{error}; {_last_good(run)}. Start anew in another folder (--out) with a lower learning rate, with "
            f"clipping (--update.max-norm 1) or with a warm-up{_best_so_far(run)}"
        ) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"the disk stopped the run in {run.path} after step {state.step} ({error.strerror or error}); "
            f"{_last_good(run)}. Make room and give the same command again: it goes on from there"
        ) from error


def _last_good(run: RunFolder) -> str:
    paths = Checkpoints(run.checkpoints).paths()
    return f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"


def _best_so_far(run: RunFolder) -> str:
    path = run.weights("best")
    return f"; the best weights before are {path} (step {read_weights(path)[1].get('step')})" if path.exists() else ""


@contextmanager
def _drawn(run: RunFolder) -> Iterator[None]:
    """The learning curve, however training ends. That it cannot be drawn must not hide why training ended."""
    try:
        yield
    finally:
        try:
            plot_learning_curve(run.metrics(), run.learning_curve)
        except OSError as error:
            warnings.warn(f"the learning curve could not be drawn: {error}", stacklevel=2)


def _board(run: RunFolder) -> Callable[[int], AbstractContextManager[Any]]:
    """TensorBoard's writer, from the step that training goes on after; what was written after that is forgotten."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed: pip install 'sparring[tensorboard]'") from error
    return lambda step: SummaryWriter(str(run.tensorboard), purge_step=step + 1)


def _no_board(step: int) -> AbstractContextManager[None]:
    del step
    return nullcontext()
