"""Searches that are recorded once on a GPU, as a CUDA graph, and replayed with other images by a single launch.

A search is a few hundred short kernels, and for small batches a processor launches them more slowly than a GPU carries
them out. A replay repeats the same kernels on the same memory. So the inputs are copied to fixed places, the random
numbers are drawn beforehand (`Drawn`), and the search must not depend on anything else that changes: neither on numbers
in Python nor on values that the processor would have to wait for.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.rng import Drawn
from ..core.types import SearchCall

_KEPT = 4
"""Recordings that are kept; each holds memory for one search."""


class Graph(Protocol):
    """Records the work that a function gives to a device, and repeats it."""

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor: ...
    def record(self, run: Callable[[], Tensor]) -> Tensor: ...
    def replay(self) -> None: ...


class CudaGraph:
    """`Graph` of a CUDA device."""

    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """Run once on the stream of the recording: libraries set up their memory at the first call on a stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            out = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return out

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        # other threads, such as one that pins memory for the next batch, may go on meanwhile
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return run()

    def replay(self) -> None:
        self._graph.replay()


def new_graph() -> Graph:
    """Return an empty graph."""
    return CudaGraph()


@dataclass(slots=True)
class _Recording:
    graph: Graph
    attacked: nn.Module
    """Kept, since the graph reads its weights in place, and so that no other module gets its `id`."""
    inputs: tuple[Tensor, ...]
    drawn: Drawn
    out: Tensor


class Recordings:
    """Recorded searches, by the model that is attacked, by a key, and by the shapes of the inputs."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Recording | str] = {}

    def notes(self) -> tuple[str, ...]:
        """Return why searches could not be recorded."""
        return tuple(dict.fromkeys(found for found in self._kept.values() if isinstance(found, str)))

    def search(self, attacked: nn.Module, call: SearchCall) -> Tensor:
        """Carry out a search, by a replay if it was recorded before; random numbers are drawn in the same order.

        The weights of `attacked` must stay at the same place in memory while its recordings are used.
        """
        place = (id(attacked), call.key, *((tuple(t.shape), t.dtype, t.stride()) for t in call.inputs))
        found = self._kept.pop(place, None)
        if isinstance(found, _Recording):
            self._kept[place] = found  # the last one used is the last in order
            for held, given in zip(found.inputs, call.inputs, strict=True):
                held.copy_(given)
            found.drawn.refill(call.rng)
            found.graph.replay()
            return found.out.clone()
        if isinstance(found, str):
            self._kept[place] = found
            return call.carried_out()
        out, self._kept[place] = self._recorded(attacked, call)
        for old in [place for place, kept in self._kept.items() if isinstance(kept, _Recording)][:-_KEPT]:
            del self._kept[old]
        return out

    def _recorded(self, attacked: nn.Module, call: SearchCall) -> tuple[Tensor, _Recording | str]:
        """Return the points of this search, which is carried out, and its recording or why there is none."""
        held, drawn, graph = tuple(t.detach().clone() for t in call.inputs), Drawn(call.rng), new_graph()
        out = graph.warm_up(lambda: call.find(held, drawn)).clone()
        drawn.rewind()
        try:
            static = graph.record(lambda: (call.fixed or call.find)(held, drawn))
        except Exception as error:  # a user's model may do anything, also what cannot be recorded
            return out, f"the search is not recorded as a CUDA graph: {type(error).__name__}: {_first_line(error)}"
        return out, _Recording(graph, attacked, held, drawn, static)


class Unread:
    """Stands for a value that changes between steps while a search is recorded: it must not be read.

    Args:
        name: What it stands for.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise RuntimeError(f"the search reads the {self._name} of training, which changes")

    def __int__(self) -> int:
        raise RuntimeError(f"the search reads the {self._name} of training, which changes")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
