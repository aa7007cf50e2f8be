"""Settings of a run that its recipe leaves open: number formats, compilation, determinism, division of batches."""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from ..acceleration import AcceleratedCopy, Compile, Precision, computes_bf16
from ..core.errors import UserError, need_one_of, need_whole
from ..core.modes import float32_format, full_precision
from ..core.types import Schedule, Update
from ..training.updates import mixed_precision, recomputing

UpdatePrecision = Literal["auto", "fp32", "tf32", "bf16"]
BatchNorm = Literal["global", "local"]


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """The settings of a run that say how it computes. A run keeps them when it is resumed.

    Args:
        precision: Precision of the attack (see `AcceleratedCopy`).
        compile: Compilation of the attack (see `AcceleratedCopy`).
        update_precision: Precision of the update of the weights. "auto" leaves torch as it is set: on CUDA that is TF32
            in convolutions. "fp32" computes in float32 on CUDA too. "bf16" runs the update under autocast.
        capture: Whether searches are recorded as CUDA graphs (see `AcceleratedCopy`).
        deterministic: Whether torch computes the same bits each time on CUDA too.
        accumulate: Number of micro-batches into which a step divides a batch, at least 1.
        batch_norm: Over which images batch norm takes mean and variance in the updates of several processes: those of
            all, "global", or those of its own process, "local", which saves two collectives for each layer.
        recompute: Whether the update computes the activations of repeated blocks again instead of keeping them.

    Raises:
        UserError: If an argument is none of its values.
    """

    precision: Precision = "auto"
    compile: Compile = "auto"
    update_precision: UpdatePrecision = "auto"
    capture: bool = False
    deterministic: bool = False
    accumulate: int = 1
    batch_norm: BatchNorm = "global"
    recompute: bool = False

    def __post_init__(self) -> None:
        need_whole("accumulate", self.accumulate)
        need_one_of("batch_norm", self.batch_norm, get_args(BatchNorm))
        AcceleratedCopy(self.precision, self.compile)  # checks these two
        need_one_of("update_precision", self.update_precision, get_args(UpdatePrecision))

    def resolved(self, device: torch.device) -> "ComputeSettings":
        """Replace "auto" by its meaning on this device."""
        copy = AcceleratedCopy.resolved(device, self.precision, self.compile)
        update = float32_format(device) if self.update_precision == "auto" else self.update_precision
        return replace(self, precision=copy.precision, compile=copy.compile, update_precision=update)  # type: ignore[arg-type]

    def kept(self, begun: Mapping[str, Any], where: object) -> "ComputeSettings":
        """Return the settings that the run `where` was begun with.

        Raises:
            UserError: If something else was asked for, which would round otherwise.
        """
        saved = {**_OLDER, **{key: value for key, value in begun.items() if key in _NAMES}}
        saved.pop("recompute")  # it changes no bits
        for name, value in saved.items():
            asked = getattr(self, name)
            if asked not in (_UNASKED[name], value):
                flag = name.replace("_", "-")
                how = f"without --{flag}" if value is False else f"with --{flag} {value}"
                raise UserError(
                    f"{where} was begun {how}, and {'this' if asked is True else asked} would round otherwise: leave "
                    "it out, or start anew in another folder with --out"
                )
        return ComputeSettings(**saved, recompute=self.recompute)

    def backend(self) -> AcceleratedCopy:
        """Return the backend of the attacks."""
        return AcceleratedCopy(self.precision, self.compile, self.capture)

    def update(self, update: "Update | Schedule[Update]") -> "Update | Schedule[Update]":
        """Return an update of the recipe as these settings carry it out."""
        found = mixed_precision(update) if self.update_precision == "bf16" else update
        return recomputing(found) if self.recompute else found

    @contextmanager
    def applied(self, device: torch.device) -> Generator[None]:
        """Compute by these settings inside the context."""
        with ExitStack() as stack:
            if self.update_precision == "fp32" and device.type == "cuda":
                stack.enter_context(full_precision())
            if self.deterministic:
                stack.enter_context(_deterministic(device))
            yield

    def describe(self, device: torch.device) -> Iterator[str]:
        """Yield lines for the user."""
        if self.update_precision == "tf32" and device.type == "cuda":
            yield "updates in TF32, as torch is set: --update-precision fp32 computes in float32"
        if self.update_precision == "bf16":
            yield "updates in bf16: that they train as well as those in float32 has not been shown"
        if device.type == "cuda" and not self.deterministic:
            yield "a resumed run ends with other bits on a GPU: --deterministic makes them the same, and is slower"
        if self.precision == "bf16" and not computes_bf16(device):
            yield (
                "this processor has no instructions for bf16, so attacks are many times slower than with "
                "--precision fp32"
            )

    def plain(self) -> dict[str, Any]:
        """Return the settings as they are saved in the run folder."""
        return asdict(self)


_NAMES = frozenset(field.name for field in fields(ComputeSettings))
_UNASKED: dict[str, Any] = {field.name: field.default for field in fields(ComputeSettings)}
_OLDER = {name: value for name, value in _UNASKED.items() if name not in ("precision", "compile")}
"""What runs of older versions do not say."""


@contextmanager
def _deterministic(device: torch.device) -> Generator[None]:
    """Let torch refuse operations whose result depends on the order in which threads end."""
    if device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        if torch.cuda.is_initialized():
            raise UserError(
                "with --deterministic, cuBLAS must be set before it starts: set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the "
                "environment of the process"
            )
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    cudnn, inductor = torch.backends.cudnn, _inductor()
    filled: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filled.fill_uninitialized_memory,
        cudnn.benchmark,
        getattr(inductor, "deterministic", None),
    )
    torch.use_deterministic_algorithms(True)
    filled.fill_uninitialized_memory = False  # nothing here reads memory that was not written
    cudnn.benchmark = False
    if before[-1] is not None:
        inductor.deterministic = True
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" in str(error):
            first = str(error).partition(" does not have")[0]
            raise UserError(
                f"with --deterministic: {first} has no deterministic implementation on CUDA in this version of torch; "
                "leave --deterministic out, or choose another attack or model"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filled.fill_uninitialized_memory, cudnn.benchmark = before[2], before[3]
        if before[-1] is not None:
            inductor.deterministic = before[-1]


def _inductor() -> Any:
    from torch._inductor import config

    return config
