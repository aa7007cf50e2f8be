"""A module that is compiled for a few batch sizes, and runs uncompiled where compilation fails."""

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SIZES = 4  # a full batch, and its half, quarter and eighth
_AS_IT_IS = ContextVar("_AS_IT_IS", default=False)


@contextmanager
def as_it_is() -> Iterator[None]:
    """Run `Compiled` modules uncompiled within the context: a few images would be one more size to compile."""
    token = _AS_IT_IS.set(True)
    try:
        yield
    finally:
        _AS_IT_IS.reset(token)


class Compiled(nn.Module):
    """Compiles `inner`, whose examples do not depend on each other, once for each of four batch sizes.

    Batches of sizes in between are padded with zeros, so that nothing is recompiled when examples leave. If compilation
    fails, `inner` runs uncompiled from then on, and `on_failure` is called with the reason.
    """

    def __init__(self, inner: nn.Module, on_failure: Callable[[str], None], mode: str | None = None) -> None:
        super().__init__()
        keep_compiled_code()
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # sizes, modes, models
        self.inner, self.largest = inner, 0
        self.in_parts = getattr(inner, "in_parts", False)
        self._on_failure = on_failure
        self._run: Callable[[Tensor], Tensor] | None = torch.compile(inner, dynamic=False, mode=mode)

    def forward(self, x: Tensor, **parts: bool) -> Any:
        """Run `inner`; with `parts`, when an `Encoder` gives more than its features, uncompiled."""
        if self._run is None or parts or not len(x) or _AS_IT_IS.get():
            return self.inner(x, **parts)
        try:
            return self._run(self._filled(x))[: len(x)]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may raise anything for a model that it cannot compile
            self._run = None
            self._on_failure(f"it cannot be compiled ({_first_line(error)})")
            return self.forward(x)

    def _filled(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        sizes = [-(-self.largest // 2**i) for i in range(_SIZES)]
        size = min(s for s in sizes if s >= len(x)) if len(x) > sizes[-1] else sizes[-1]
        return x if size == len(x) else torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def keep_compiled_code() -> None:
    """Let the compiler reuse code that an earlier process compiled: on the CPU, two seconds instead of thirty.

    Each kind of processor has a folder of its own. The compiler finds code by the graph, whatever instructions the code
    was made for, and with vectors of another width it returns wrong gradients; a home folder may be that of many
    machines. A folder that the user has set is kept; torch sets one itself when an optimizer takes its first step.
    """
    known = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if known is None or known.startswith(str(Path(tempfile.gettempdir(), "torchinductor_"))):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparring" / "compiled"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / _processor())


def _processor() -> str:
    """Return a name for the instructions that this processor has, and those of them that torch and oneDNN use."""
    able = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    limits = [os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA") if name in os.environ]
    digest = hashlib.sha256(" ".join((platform.machine(), *able, *limits)).encode()).hexdigest()
    return f"{torch.backends.cpu.get_cpu_capability().lower()}-{digest[:8]}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
