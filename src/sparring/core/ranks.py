"""The processes that train one model together (`torch.distributed`): sums, gathered rows, values of the first process.

Without a process group there is one process, and every function returns what it was given. All functions besides
`world`, `rank` and `first` have to be called by all processes, in the same order.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import Echo, UserError

T = TypeVar("T")


class _Alone(threading.local):
    depth = 0


_ALONE = _Alone()


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if _together() else 0


def first() -> bool:
    """Return True on the first process, which alone writes files and speaks."""
    return rank() == 0


def _together() -> bool:
    return not _ALONE.depth and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Compute as if there were one process, for work that only some processes do."""
    _ALONE.depth += 1
    try:
        yield
    finally:
        _ALONE.depth -= 1


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in one collective.

    Args:
        tensors: Floating-point tensors, of the same shapes on every process.
    """
    if world() == 1 or not tensors:
        return
    widest = max((t.dtype for t in tensors), key=lambda dtype: torch.finfo(dtype).bits)
    widest = torch.float32 if torch.finfo(widest).bits < 32 else widest
    flat = torch.cat([t.detach().to(widest).flatten() for t in tensors])
    dist.all_reduce(flat)
    sums = flat.split([t.numel() for t in tensors])
    with torch.no_grad():
        torch._foreach_copy_(list(tensors), [each.view(t.shape) for each, t in zip(sums, tensors, strict=True)])


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the processes, without gradients.

    Args:
        rows: Tensor `[B, ...]`; B may differ between processes.
    """
    return torch.cat(_parts(rows)) if world() > 1 else rows


def gathered_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes, of which those of this process alone have a gradient.

    Where every process computes the same loss of all rows, the sum of the gradients over the processes is the gradient
    of that loss.

    Args:
        rows: Tensor `[B, ...]`; B may differ between processes.
    """
    if world() == 1:
        return rows
    parts = _parts(rows)
    parts[rank()] = rows
    return torch.cat(parts)


def _parts(rows: Tensor) -> list[Tensor]:
    rows = rows.detach().contiguous()
    sizes = each_of(len(rows))
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    held = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(held, padded)
    return [each[:size] for each, size in zip(held, sizes, strict=True)]


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def place(count: int) -> slice:
    """Return the place of `count` rows of this process among the gathered ones."""
    if world() == 1:
        return slice(count)
    before = sum(each_of(count)[: rank()])
    return slice(before, before + count)


def total(count: int) -> int:
    """Return the sum of a number over all processes."""
    return count if world() == 1 else sum(each_of(count))


def any_of(here: bool) -> bool:
    """Return True if something holds on one of the processes."""
    return here if world() == 1 else any(each_of(here))


def each_of(value: T) -> list[T]:
    """Return the values of all processes, in their order; they are pickled on the way."""
    if world() == 1:
        return [value]
    held: list[Any] = [None] * world()
    dist.all_gather_object(held, value)
    return held


def from_first(make: Callable[[], T]) -> T:
    """Call a function on the first process alone, and return its result on all.

    Raises:
        UserError: On all processes, if it is raised on the first; on the others it is an `Echo`.
    """
    if world() == 1:
        return make()
    said: list[Any] = [None, None]
    error: BaseException | None = None
    if first():
        try:
            said[0] = make()
        except UserError as mistake:
            said[1], error = str(mistake), mistake
        except BaseException as failure:  # the others must not wait for a word that never comes
            said[1], error = f"the first process failed: {failure}", failure
    dist.broadcast_object_list(said)
    if error is not None:
        raise error
    if said[1] is not None:
        raise Echo(said[1])
    value: T = said[0]
    return value


def wait() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def own(count: int) -> slice:
    """Return the rows of this process among `count`: neighbours, as equal in number as can be."""
    size, number = world(), rank()
    return slice(number * count // size, (number + 1) * count // size)
