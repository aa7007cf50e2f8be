"""What attacks search on: the model itself, or something that gives the same answers sooner."""

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.errors import need_one_of
from ..core.modes import mode_matters
from ..core.types import Classifier
from .body_copy import Low, Shadow, lowered
from .compiled import Compiled
from .convolution import unsafe_in_channels_last
from .fingerprint import Fingerprint, global_hooks, patched
from .proof import BORN_LOW, doubt, flaw

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off", "max-autotune"]

_WORTH_SECONDS = 900.0
_AHEAD = 4
_KEPT = 2  # copies of a model: a view may change how it looks, again and again


_KINDS = {  # precision, and whether convolutions and batch norm are exchanged; the first that is proved is taken
    "bf16 in channels-last order": (torch.bfloat16, True),
    "bf16": (torch.bfloat16, False),
    "fp32 in channels-last order": (torch.float32, True),
    "fp32": (torch.float32, False),
}
_ITSELF = "the model itself"


@dataclass(slots=True)
class _Known:
    """What was found out about a model as it was: of which kinds a copy can be, and those that were made."""

    marks: list[Any]
    kinds: tuple[str, ...]
    notes: dict[str, str]
    """What a user should know, by the kind of copy that it is about: the last time counts."""
    made: dict[str, Shadow | str] = field(default_factory=dict)
    """A copy, or why there can be none, whatever its weights are."""
    kind: str = _ITSELF
    """What was taken the last time."""

    def left(self, kind: str) -> bool:
        """Whether a copy of the kind may do: in bf16, none does if the logits of another were born in it."""
        born_low = kind.startswith("bf16") and BORN_LOW in self.made.values()
        return kind in self.kinds and not born_low and not isinstance(self.made.get(kind), str)


class OriginalModel:
    """Attacks search on the model as it is."""

    def __repr__(self) -> str:
        return "OriginalModel()"

    def describe(self, device: torch.device) -> str:
        del device
        return "attacks on the model as it is"

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> Generator[nn.Module]:
        del few, kind
        yield model

    def kind(self, model: nn.Module) -> str | None:
        del model
        return None

    def in_float32(self) -> "OriginalModel":
        return self

    def batches_in_flight(self, device: torch.device) -> int:
        del device
        return 1

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        del model
        return ()


class AcceleratedCopy:
    """Gives, for a model and a few images, what attacks search on: `with fast(model, few) as attacked: ...`

    In eval mode that is a copy in channels-last order with its batch norm folded, filled anew from the model at each
    call; in training mode, the model itself under autocast. `precision` is that of its body (pixels are normalised, and
    logits are computed, in float32): `auto` is bf16 where the processor computes in it. With `compile="on"` the body is
    compiled, once for each of four sizes of batch; `auto` compiles on CUDA. With `"max-autotune"` torch tries more ways
    of each product, which takes longer once; on the CPU it gains nothing.

    A model that is not in float32, that cannot be copied, or whose copy has other logits or gradients, is searched on
    as it is; `notes` say why. A copy is proved on the few images when it is made, at every `every`th use, and whenever
    anything in the model has changed but the numbers in its weights and buffers. It lives as long as this object and
    the model. Not for two threads at once: the copy is filled anew while the other attacks.
    """

    def __init__(self, precision: Precision = "auto", compile: Compile = "auto") -> None:
        for name, value, known in (("precision", precision, Precision), ("compile", compile, Compile)):
            need_one_of(name, value, get_args(known))
        self.precision, self.compile = precision, compile
        self._fine: AcceleratedCopy | None = None
        self._known: weakref.WeakKeyDictionary[nn.Module, list[_Known]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"AcceleratedCopy(precision={self.precision!r}, compile={self.compile!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Copies of models are made anew by whoever unpickles it."""
        return {"precision": self.precision, "compile": self.compile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> Generator[nn.Module]:
        yield self._searched(model, few, kind)

    def kind(self, model: nn.Module) -> str | None:
        kept = self._known.get(model)
        return kept[0].kind if kept else None

    def in_float32(self) -> "AcceleratedCopy":
        if self._fine is None:
            self._fine = self if self.precision == "fp32" else AcceleratedCopy("fp32", self.compile)
        return self._fine

    def batches_in_flight(self, device: torch.device) -> int:
        """On the CPU, batches of any size are as quick for an example, unless they are filled up to be compiled for."""
        return _AHEAD if device.type == "cuda" or self._compiles(device) else 1

    @classmethod
    def resolved(
        cls, device: torch.device, precision: Precision = "auto", compile: Compile = "auto"
    ) -> "AcceleratedCopy":
        """With what `auto` means on this device."""
        wanted = cls(precision, compile)
        low = wanted.dtype(device) == torch.bfloat16
        compiled: Compile = "on" if wanted._compiles(device) else "off"
        return cls("bf16" if low else "fp32", compiled if compile == "auto" else compile)

    def describe(self, device: torch.device) -> str:
        """In words, for the user."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype(device)]
        how = {"max-autotune": "compiled with max-autotune"}.get(self.compile, "compiled")
        return f"attacks in {name}, {how if self._compiles(device) else 'not compiled'}"

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for known in self._known.get(model, ()) for note in known.notes.values()))

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the body of a model is computed in on this device."""
        low = self.precision == "bf16" or (self.precision == "auto" and computes_bf16(device))
        return torch.bfloat16 if low else torch.float32

    def _compiles(self, device: torch.device) -> bool:
        return self.compile in ("on", "max-autotune") or (self.compile == "auto" and device.type == "cuda")

    def _searched(self, model: nn.Module, few: Tensor, kind: str | None) -> nn.Module:
        if mode_matters(model) is not None:
            return model if _refusal(model) else lowered(model, self.dtype(few.device))
        kept, found = self._known.setdefault(model, []), Fingerprint.of(model)
        known = next((each for each in kept if each.marks == found.marks), None)
        changed = bool(kept) and known is not kept[0]
        known = known or self._new(model, found, few.device)
        kept[:] = [known, *(each for each in kept if each is not known)][:_KEPT]
        if kind is None or changed or (kind != _ITSELF and self._filled(known, kind, model) is None):
            kind = next((each for each in known.kinds if self._proved(known, each, model, few)), _ITSELF)
        known.kind = kind
        copy = known.made.get(kind)
        return copy.net if isinstance(copy, Shadow) else model

    def _new(self, model: nn.Module, found: Fingerprint, device: torch.device) -> _Known:
        why = _refusal(model) or _unfollowed(found)
        # a layer that is exchanged in the copy would still be found, as it was, where else it is held
        plain = found.aliases or unsafe_in_channels_last(model)
        dtypes = (self.dtype(device), torch.float32)
        kinds = [name for name, (dtype, exchanged) in _KINDS.items() if dtype in dtypes and not (plain and exchanged)]
        notes = {} if why is None else {_ITSELF: f"attacks search on the model as it is, for {why}"}
        return _Known(found.marks, tuple(kinds) if why is None else (), notes)

    def _filled(self, known: _Known, kind: str, model: nn.Module) -> Shadow | None:
        """A copy of the kind with the weights as they are, made if need be; None if there can be none."""
        if not known.left(kind):
            return None
        try:
            copy = known.made.get(kind)
            if isinstance(copy, Shadow):
                copy.refresh(model)
                return copy
            known.made[kind] = copy = Shadow(model, *_KINDS[kind])
            self._compile(copy.net, next(model.parameters()).device, known.notes)
        except Exception as error:  # a model of somebody else's may fail in any way
            self._refuse(known, kind, _first_line(error), for_ever=True)
            return None
        return copy

    def _proved(self, known: _Known, kind: str, model: nn.Module, few: Tensor) -> bool:
        """Whether there is a copy of the kind that agrees with the model as both are now."""
        new = kind not in known.made
        copy = self._filled(known, kind, model)
        if copy is None:
            return False
        try:
            if new and (why := flaw(copy, few)) is not None:
                return self._refuse(known, kind, why, for_ever=True)
            why = doubt(copy, model, few, new)
        except Exception as error:
            return self._refuse(known, kind, _first_line(error), for_ever=True)
        return why is None or self._refuse(known, kind, why)

    def _refuse(self, known: _Known, kind: str, why: str, for_ever: bool = False) -> bool:
        """Notes why a copy is not used; for ever, if that is not for its weights alone."""
        if for_ever:
            known.made[kind] = why
        known.notes[kind] = f"a copy of the model in {kind} does not do: {why}"
        if kind == known.kinds[-1]:
            known.notes[_ITSELF] = "attacks search on the model as it is"
        return False

    def _compile(self, net: nn.Module, device: torch.device, notes: dict[str, str]) -> None:
        if not self._compiles(device):
            return

        mode = "max-autotune-no-cudagraphs" if self.compile == "max-autotune" else None

        def failed(why: str) -> None:
            notes["compiled"] = f"the copy of the model that attacks search on is not compiled: {why}"

        if isinstance(net, Classifier):
            net.body = Compiled(net.body, failed, mode)
        elif isinstance(net, Low):
            net.inner = Compiled(net.inner, failed, mode)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def worth_compiling(model: nn.Module, device: torch.device, seconds: float) -> bool:
    """Whether so many seconds of attacks repay on the CPU what compiling costs, up to a minute; on CUDA it always does.

    It gains 5 to 18 % on a ResNet (two cores with bf16), and nothing on a plain convolutional net.
    """
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return device.type == "cuda" or (device.type == "cpu" and normalised and seconds > _WORTH_SECONDS)


def computes_bf16(device: torch.device) -> bool:
    """Whether the processor has instructions for bf16; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch keeps them to itself
    return any(bool(getattr(torch.cpu, name, bool)()) for name in known)


def _refusal(model: nn.Module) -> str | None:
    """Why a model is neither copied nor run in another precision."""
    if isinstance(model, Classifier) and type(model) is not Classifier:
        return f"a {type(model).__name__} may see its parts otherwise than a Classifier"
    tensors = [p for p in model.parameters() if p.is_floating_point()]
    other = sorted({str(p.dtype) for p in tensors if p.dtype != torch.float32})
    if other:
        return f"its weights are in {', '.join(other)}"
    if global_hooks():
        return "hooks on all modules are set, which would see other modules in a copy"
    for name, module in model.named_modules():
        if (method := patched(module)) is not None:
            return f"{method} of {name or 'the model'} was exchanged, which a copy cannot follow"
    return None if tensors else "it has no weights"


def _unfollowed(found: Fingerprint) -> str | None:
    return None if found.loose is None else f"{found.loose} holds trainable tensors that parameters() does not give"
