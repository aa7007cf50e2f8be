"""Memory of a training step: predicted for any batch size from two small ones, and the largest batch that fits."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..core import ranks
from ..core.errors import UserError
from ..core.types import Progress, at
from ..data import Batches
from ..records.run_folder import RunFolder
from .compute import ComputeSettings
from .environment import device_of
from .recipe import Recipe
from .start import initial_state, load_data

_SIZES = (32, 64)
_USED = 0.92
"""Share of a device's memory that training may take; the rest is for libraries and fragmentation."""
_TRIALS = 5
_END = "end of a step"


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Peak memory of a training step: `fixed` bytes, and `per_image` bytes for each image of the batch.

    Args:
        fixed: Bytes of the weights, gradients, the state of the optimiser, the accelerated copy and, on CUDA, the data.
        per_image: Bytes of each image of the batch, mostly of activations.
    """

    fixed: float
    per_image: float

    def peak(self, images: int) -> float:
        """Return the bytes for a batch of this size."""
        return self.fixed + self.per_image * images

    def largest(self, limit: float) -> int:
        """Return the largest batch size within `limit` bytes."""
        return max(0, int((limit - self.fixed) / self.per_image))


def step_memory(
    recipe: Recipe,
    device: str = "auto",
    settings: ComputeSettings = ComputeSettings(),  # noqa: B008
    folder: Path | str = ".",
) -> StepMemory:
    """Predict the peak memory of a training step for any batch size, from the peaks of two small ones.

    It is linear in the batch size, since activations are. On the CPU, what a library takes inside an operation does not
    count.

    Args:
        recipe: The recipe.
        device: The device: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        settings: Precision, compilation and the rest.
        folder: Folder of the run, next to which runs lie that the recipe begins with.

    Returns:
        The fixed part, and the part for each image.
    """
    return Trials(recipe, device_of(device), settings, Path(folder)).predicted()


def largest_batch(
    recipe: Recipe,
    device: str = "auto",
    settings: ComputeSettings = ComputeSettings(),  # noqa: B008
    folder: Path | str = ".",
    limit: float | None = None,
) -> int:
    """Find the largest batch of a recipe that fits into the memory of a GPU: by prediction, then by trial.

    Args:
        recipe: The recipe; its learning rate is not adapted.
        device: The device: `auto` (the GPU if there is one), `cuda` or `cuda:N`; with a limit, also `cpu`.
        settings: Precision, compilation and the rest.
        folder: Folder of the run, next to which runs lie that the recipe begins with.
        limit: Bytes that training may take; None for 92 % of the memory of the GPU.

    Returns:
        The batch size, a multiple of 8 from 32 on, and at most the size of the training set.

    Raises:
        UserError: If the device is no GPU and no limit is given, or if no batch fits.
    """
    where = device_of(device)
    if limit is None:
        if where.type != "cuda":
            raise UserError(
                f"the largest batch is looked for on a GPU, and the device is {where}: on a CPU the time per image "
                "hardly depends on the batch size. Give --batch-size"
            )
        limit = _USED * torch.cuda.get_device_properties(where).total_memory
    trials = Trials(recipe, where, settings, Path(folder))
    size = min(len(trials.data), _rounded(trials.predicted().largest(limit)))
    for _ in range(_TRIALS if size else 0):
        try:
            if trials.peak(size) <= limit:
                return size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        size = max(1, _rounded(size * 0.95))
    raise UserError(f"not even a small batch of this recipe fits into {limit / 2**30:.3g} GiB: choose a smaller model")


def _rounded(size: float) -> int:
    return int(size) // 8 * 8 if size >= 32 else int(size)


class Trials:
    """Takes two steps of training at a time, which are forgotten, and looks at their memory."""

    def __init__(self, recipe: Recipe, device: torch.device, settings: ComputeSettings, folder: Path) -> None:
        self.recipe, self.device, self.settings, self.folder = recipe, device, settings.resolved(device), folder
        self.data = load_data(recipe, folder, device)[0].data

    def predicted(self) -> StepMemory:
        few, more = (self.peak(size) for size in _SIZES)
        per_image = max(1.0, (more - few) / (_SIZES[1] - _SIZES[0]))
        return StepMemory(more - per_image * _SIZES[1], per_image)

    def peak(self, size: int) -> float:
        """Return the largest number of bytes that were in use at once in a step, with batches of `size` images."""
        gc.collect()
        with self.settings.applied(self.device):
            return (_peak_on_cuda if self.device.type == "cuda" else _peak)(lambda: self._steps(size))

    def _steps(self, size: int) -> Iterator[None]:
        """Take two steps; the second one counts, as the optimiser has its state and the copy is made by then."""
        recipe, backend = self.recipe, self.settings.backend()
        state = initial_state(recipe, self.data, None, RunFolder(self.folder), self.device, overwrite=True)
        batches = Batches(self.data, size, recipe.augment, recipe.seed, recipe.views_per_image, drop_last=False)
        batches = replace(batches, accumulate=self.settings.accumulate, resizing=recipe.image_size)
        largest = 0 if recipe.image_size is None else recipe.image_size.largest
        batch = next(iter(batches.rest_of_epoch(largest * len(batches))))
        for step in range(2):
            now = Progress(step, len(batches), recipe.epochs)
            recipe.method.step(state, batch, now, at(self.settings.update(recipe.update), now), backend)
            yield


def _peak_on_cuda(steps: Callable[[], Iterator[None]]) -> float:
    torch.cuda.empty_cache()
    for _ in steps():
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return float(most)


def _peak(steps: Callable[[], Iterator[None]]) -> float:
    """Return the largest sum of what torch has allocated and not freed in the last step, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        for _ in steps():
            with record_function(_END):
                pass
    events = sorted(
        (event.start_ns(), event.name(), event.nbytes()) for event in found.profiler.kineto_results.events()
    )
    held = most = last = 0
    for _, name, change in events:
        if name == _END:
            last, most = most, held
        elif name == "[memory]":
            held += change
            most = max(most, held)
    return float(last)


def with_largest_batch(
    recipe: Recipe, out: Path | str, device: str, settings: ComputeSettings, overwrite: bool
) -> Recipe:
    """Return the recipe with the largest batch that fits, or with that of the run in the folder `out` to be resumed."""

    def found() -> int:
        begun = None if overwrite else RunFolder(out).recipe()
        if begun is not None:
            return int(begun["batch_size"])
        with ranks.alone():
            here = largest_batch(recipe, device, settings, out)
        return here * ranks.world()

    return replace(recipe, batch_size=ranks.from_first(found))
