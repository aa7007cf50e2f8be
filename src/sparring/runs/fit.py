"""Trains a recipe in a run folder, and resumes it after an interruption."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..acceleration import Compile, Precision, worth_compiling
from ..core import ranks
from ..core.errors import Echo, UserError
from ..core.serialization import differences
from ..core.types import Objective, Progress
from ..core.walk import walk
from ..data import Batches, TrainingSet
from ..objectives.example_bank import Bank
from ..records.run_folder import RunFolder
from ..report.figures import plot_learning_curve
from ..training.checkpoint import Checkpoints, read_weights
from ..training.engine import NotFinite, State, TrainingLoop
from ..training.hooks import Saving, TrainingProgress, stopping
from ..training.profiling import PROFILE, StepProfile, measure
from .compute import BatchNorm, ComputeSettings, UpdatePrecision
from .environment import device_of, session
from .guarded import train as train_guarded
from .recipe import Recipe
from .run_hooks import RunContext, build_hooks
from .start import check_annotations, initial_state, load_data
from .trackers import Together, Track, tracked


def fit(
    recipe: Recipe,
    folder: Path | str,
    *,
    device: str = "auto",
    overwrite: bool = False,
    saving: Saving = Saving(),  # noqa: B008
    track: Track = (),
    precision: Precision = "auto",
    compile: Compile = "auto",
    update_precision: UpdatePrecision = "auto",
    capture: bool = False,
    deterministic: bool = False,
    accumulate: int = 1,
    batch_norm: BatchNorm = "global",
    recompute: bool = False,
    profile: bool = False,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
    log: Callable[[str], None] = lambda text: None,
) -> RunFolder:
    """Trains a recipe in a folder, continuing from the newest checkpoint if there is one.

    A run that was killed at any moment and is continued ends with the same bits as an uninterrupted one (on the CPU
    with the same number of threads, on a GPU with `deterministic`). The cost of a step is measured on two steps, which
    are undone, and is reported in a line to `log`. SIGINT and SIGTERM save after the present step and raise
    `Interrupted`. Nothing is overwritten before all other checks have passed.

    Args:
        recipe: The recipe.
        folder: The run folder, created if it does not exist.
        device: Device to train on: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        overwrite: Delete the run that the folder holds, and start anew.
        saving: How often checkpoints are written, besides the end of each epoch.
        track: Trackers that show the run, too: "tensorboard", "wandb", "mlflow", "trackio", a `Tracker` of one's own,
            or several of these.
        precision: Precision of the attack (see `AcceleratedCopy`); a resumed run keeps the one it was begun with.
        compile: Compilation of the attack (see `AcceleratedCopy`); a resumed run keeps the one it was begun with.
        update_precision: Precision of the update: "fp32", "bf16" (not shown to train as well), or "auto", which leaves
            torch as it is set: on CUDA that is TF32. A resumed run keeps it.
        capture: Record attacks that allow it as CUDA graphs (see `AcceleratedCopy`).
        deterministic: Compute the same bits each time on CUDA too, which is slower; an operation that cannot is
            refused. A resumed run keeps it.
        accumulate: Number of micro-batches into which a step divides a batch, one after the other, to save memory.
        batch_norm: On several processes, whether batch norm in the update is "global", over the batch of all, or
            "local". A resumed run keeps it.
        recompute: Compute the activations of repeated blocks again in the backward pass of the update, to save memory;
            it changes no bits.
        profile: Write `profile.json` and `profile.txt`, with the time of each operation.
        on_progress: Called after each step and each epoch.
        log: Called with lines of text for the user.

    Returns:
        The run folder, which holds the finished run. Of several processes, the first writes it.

    Raises:
        UserError: If the folder holds a finished run, another recipe or other files; if the data are invalid; if a loss
            or a weight is not finite; if the disk is full.
        Interrupted: If SIGINT or SIGTERM asks the training to stop; everything is saved then.
    """
    run, where = RunFolder(folder, writes=ranks.first()), device_of(device)
    check_annotations(recipe)
    fresh = ranks.from_first(lambda: _is_fresh(run, recipe, overwrite))
    asked = ComputeSettings(
        precision, compile, update_precision, capture, deterministic, accumulate, batch_norm, recompute
    )
    settings = ranks.from_first(lambda: asked.resolved(where) if fresh else asked.kept(run.backend() or {}, run.path))
    training, held_out, extra = load_data(recipe, run.path, where)
    state = initial_state(recipe, training.data, extra, run, where, overwrite)
    state.local_batch_norm = settings.batch_norm == "local"
    batches = Batches(
        training.data,
        recipe.batch_size,
        recipe.augment,
        recipe.seed,
        recipe.views_per_image,
        recipe.drop_last,
        settings.accumulate,
        recipe.image_size,
        extra,
        any(each.needs_places for each in walk(recipe.method) if isinstance(each, Objective)),
    )
    if not run.writes:
        track, log, on_progress = (), lambda text: None, lambda progress: None
    with _locked(run), _explained(run, state, recipe.batch_size), settings.applied(where):
        resumed = _resumed(run, recipe, state, overwrite)
        trace, backend = run.path if profile else None, settings.backend()
        update = settings.update(recipe.update)
        found = measure(recipe.method, state, batches, recipe.epochs, update, backend, trace)
        cost = ranks.from_first(lambda: found)
        if not resumed:  # a run that was there is deleted now that a step of this one was seen to work
            ranks.from_first(lambda: _begin(run, recipe, profile))
        _settle(run, recipe, state, training)
        notes = backend.notes(state.model)
        settings = _settled(settings, state, cost, may_compile=fresh and compile == "auto")
        run.set_backend({**settings.plain(), "notes": list(notes)})
        backend = settings.backend() if settings.compile != backend.compile else backend
        with stopping() as stop, tracked(track, run, state.step) as tracker, _learning_curve(run, tracker):
            context = RunContext(
                run=run,
                recipe=recipe,
                train=training.data,
                held_out=held_out,
                state=state,
                backend=backend,
                batches=batches,
                saving=saving,
                stop=stop,
                tracker=tracker,
                on_progress=on_progress,
                log=log,
            )
            _train(context, settings, cost, notes)
    return run


def _settled(settings: ComputeSettings, state: State, cost: StepProfile, *, may_compile: bool) -> ComputeSettings:
    """Compile the copy if the attacks to come take long enough to repay that."""
    device, seconds = state.device, cost.seconds_left * cost.in_attack
    worth = may_compile and worth_compiling(state.model, device, seconds)
    return replace(settings, compile="on") if worth else settings


def _train(context: RunContext, settings: ComputeSettings, cost: StepProfile, notes: Sequence[str]) -> None:
    """Log what the run will do, train, and write the last weights and the status."""
    recipe, run, state, backend = context.recipe, context.run, context.state, context.backend
    device = state.device
    hooks = build_hooks(context)
    lines = [
        f"{cost}, {backend.describe(device)}",
        *_divided(recipe.batch_size, settings),
        *(str(module) for module in state.memory.modules() if isinstance(module, Bank)),
        *(line for hook in hooks for line in hook.describe(cost.mean or (cost.forward + cost.backward) / 2)),
        *settings.describe(device),
        *notes,
        *recipe.never(),
    ]
    context.log("\n".join(lines))
    run.add_session(session(recipe.seed, device))
    context.weights.reconcile_best(state)
    update = settings.update(recipe.update)
    loop = TrainingLoop(recipe.epochs, recipe.lr, update, recipe.averaging, hooks, backend)
    stopped = train_guarded(loop, context)
    if stopped is not None:
        for hook in hooks:
            hook.on_stop(state, Progress(state.step, len(context.batches), recipe.epochs))
        context.weights.reconcile_best(state)
    context.weights.write("last", state)
    status = {"finished": True, "step": state.step, "best": state.best, "selected": recipe.selected}
    run.set_status(status if stopped is None else {**status, "stopped": stopped})
    if run.writes:
        best = {f"best/{name}": value for name, value in (state.best or {}).items()}
        context.tracker.verdict({**best, "outcome": run.outcome()})
    ranks.wait()  # all may read what the first has written


def _is_fresh(run: RunFolder, recipe: Recipe, overwrite: bool) -> bool:
    """Check the folder, and return True if the settings of the run are not settled yet."""
    _check_folder(run, recipe, overwrite)
    return overwrite or run.backend() is None


@contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Lock the folder on the first process, for all."""
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(run.locked()))
        yield


def _divided(size: int, settings: ComputeSettings) -> Iterator[str]:
    """Yield a line for the user if batches are divided."""
    parts = [f"{ranks.world()} processes"] if ranks.world() > 1 else []
    parts += [f"{settings.accumulate} micro-batches each"] if settings.accumulate > 1 else []
    if parts:
        yield f"batches of {size} images are divided between {' of '.join(parts).removesuffix(' each')}"


def _resumed(run: RunFolder, recipe: Recipe, state: State, overwrite: bool) -> bool:
    """Load the newest checkpoint; return False if there is none to load."""
    checkpoints = Checkpoints(run.checkpoints)
    if not ranks.from_first(lambda: _check_folder(run, recipe, overwrite) and bool(checkpoints.paths())):
        return False
    checkpoints.load_latest(state)
    return True


def _begin(run: RunFolder, recipe: Recipe, profile: bool) -> None:
    """Begin the run folder anew, but for the profile that was just written."""
    run.clear(keep=PROFILE if profile else ())
    run.begin(recipe.plain())


def _settle(run: RunFolder, recipe: Recipe, state: State, training: TrainingSet) -> None:
    """Check or write what the run is trained on, and leave out what was logged after the step that it goes on from."""
    if recipe.alterations or recipe.example_history:
        ranks.from_first(lambda: run.settle_training(training.arrays()))
    ranks.wait()  # before others look at what the first has deleted
    run.rewind(state.step)


def _check_folder(run: RunFolder, recipe: Recipe, overwrite: bool) -> bool:
    """Check that the folder can be used, and return True if it holds a run to resume."""
    if run.foreign():
        raise UserError(f"{run.path} holds files that are not of a run: choose another folder")
    if overwrite:
        run.clearable()  # report what prevents overwriting before any work is done
    plain, known = recipe.plain(), run.recipe()
    if known is None or overwrite:
        return False
    if run.finished():
        raise UserError(f"{run.path} holds a finished run: overwrite it, or choose another folder (--out)")
    if known != plain:
        changed = differences(known, plain)
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run.path} holds an unfinished run of another recipe ({'; '.join(changed[:3])}{more}): choose another "
            "folder with --out, or --overwrite it"
        )
    return True


@contextmanager
def _explained(run: RunFolder, state: State, batch_size: int) -> Iterator[None]:
    """Turn errors that stop a run into a `UserError` that says which checkpoint is left and what to do."""
    try:
        yield
    except NotFinite as error:
        raise (UserError if run.writes else Echo)(
            f"{error}; {_last_good(run)}. Start anew in another folder (--out) with a lower learning rate, with "
            f"clipping (--update.max-norm 1) or with a warm-up{_best_so_far(run)}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has not enough memory for batches of {batch_size} images after step {state.step} "
            f"({_gigabytes(state)}); {_last_good(run)}. Start anew with --batch-size {max(1, batch_size // 2)}, or "
            "with --fit-batch, which finds the largest; with --capture, leave that out first"
        ) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"the disk stopped the run in {run.path} after step {state.step} ({error.strerror or error}); "
            f"{_last_good(run)}. Make room and give the same command again: it goes on from there"
        ) from error


def _gigabytes(state: State) -> str:
    device = state.device
    if device.type != "cuda":
        return str(device)
    return (
        f"{torch.cuda.get_device_name(device)}, {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
    )


def _last_good(run: RunFolder) -> str:
    paths = Checkpoints(run.checkpoints).paths()
    return f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"


def _best_so_far(run: RunFolder) -> str:
    path = run.weights("best")
    return f"; the best weights before are {path} (step {read_weights(path)[1].get('step')})" if path.exists() else ""


@contextmanager
def _learning_curve(run: RunFolder, tracker: Together) -> Iterator[None]:
    """Draw the learning curve when training ends, for whatever reason, and show it.

    A failure to draw it is only a warning: it must not hide why training ended.
    """
    try:
        yield
    finally:
        try:
            if run.writes:
                plot_learning_curve(run.metrics(), run.learning_curve)
                tracker.picture(run.learning_curve)
        except OSError as error:
            warnings.warn(f"the learning curve could not be drawn: {error}", stacklevel=2)
