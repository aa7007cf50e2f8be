"""Processes that read the batches of training ahead, and stay for the next epoch."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.rng import make_rng

AHEAD = 3
"""Number of batches that each worker prepares ahead."""


class Workers:
    """Processes that read batches, from the first time that batches are asked for until this object is gone.

    A second reader at the same time gets processes of its own. Only the process that trains handles signals: workers
    end only when it tells them to.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[DataLoader[Any], _Wanted]] = []

    def read(
        self, dataset: Dataset[Any], batches: Iterable[Tensor], seed: int, count: int, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield the rows of each batch with what `dataset.__getitems__((seed, rows))` returns in one of the workers.

        Workers keep the data set of the first call. `count` is their number; with 0, this process reads. Batches for
        CUDA are in pinned memory.
        """
        loader, wanted = self._idle.pop() if self._idle else _started(dataset, count, device)
        wanted.begin(batches, seed)
        try:
            for found in loader:
                yield wanted.sent.popleft(), found
        except GeneratorExit:  # the reader has had enough; after an error of a worker they are not used again
            self._rest(loader, wanted)
            raise
        self._rest(loader, wanted)

    def _rest(self, loader: DataLoader[Any], wanted: "_Wanted") -> None:
        wanted.begin((), 0)  # the rows of an epoch may be large
        self._idle.append((loader, wanted))


class _Wanted:
    """The batches to read, as a sampler of a loader, which asks for them one by one."""

    def __init__(self) -> None:
        self.begin((), 0)

    def begin(self, batches: Iterable[Tensor], seed: int) -> None:
        self.batches, self.seed = batches, seed
        self.sent: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for rows in self.batches:
            self.sent.append(rows)
            yield self.seed, rows.tolist()


def _started(dataset: Dataset[Any], count: int, device: torch.device | str) -> "tuple[DataLoader[Any], _Wanted]":
    wanted: Any = _Wanted()
    ahead: dict[str, Any] = {"prefetch_factor": AHEAD, "persistent_workers": True} if count else {}
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=wanted,
        num_workers=count,
        collate_fn=_as_it_is,
        worker_init_fn=_heed_parent_only,
        pin_memory=torch.device(device).type == "cuda",
        generator=make_rng(0),  # else it would draw from torch's own generator, and change what training draws
        **ahead,
    )
    return loader, wanted


def _as_it_is(batch: Any) -> Any:
    return batch


def _heed_parent_only(worker: int) -> None:
    """Ignore SIGINT and SIGTERM to the process group, so that the process that trains can finish its step."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
