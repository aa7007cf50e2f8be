"""Attack backends: the network that an attack searches on, either the model itself or an accelerated copy."""

import math
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.errors import need_one_of
from ..core.modes import mode_matters
from ..core.types import Classifier, SearchCall
from ..core.whole_batch import by_batch
from .body_copy import Low, Shadow, known_sites, lowered
from .captured import Recordings
from .compiled import Compiled
from .convolution import unsafe_in_channels_last
from .fingerprint import Fingerprint, global_hooks, patched
from .proof import BORN_LOW, disagreement, flaw

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off", "max-autotune"]

_WORTH_SECONDS = {"cpu": 900.0, "cuda": 300.0}
_AHEAD = 4  # batches in flight where sizes matter
_KEPT = 2  # states of a model that are remembered: a view may change the model and undo that, again and again


_KINDS = {  # precision, and whether convolutions and batch norm are replaced; the first kind that passes is used
    "bf16 in channels-last order": (torch.bfloat16, True),
    "bf16": (torch.bfloat16, False),
    "fp32 in channels-last order": (torch.float32, True),
    "fp32": (torch.float32, False),
}
_ITSELF = "the model itself"


@dataclass(slots=True)
class _Known:
    """Copies of a model in one state (its fingerprint), and the kinds of copy that are possible."""

    marks: list[Any]
    kinds: tuple[str, ...]
    notes: dict[str, str]
    """Notes for the user by kind of copy; a new note replaces the old one of its kind."""
    made: dict[str, Shadow | str] = field(default_factory=dict)
    """By kind: the copy, or the reason why it is impossible whatever the weights are."""
    kind: str = _ITSELF
    """Kind that was used last."""

    def possible(self, kind: str) -> bool:
        """Return True if a copy of the kind may pass: in bf16 none does if another computed its logits in bf16."""
        born_low = kind.startswith("bf16") and BORN_LOW in self.made.values()
        return kind in self.kinds and not born_low and not isinstance(self.made.get(kind), str)


class OriginalModel:
    """Backend without acceleration: attacks search on the model itself."""

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

    def search(self, attacked: nn.Module, call: SearchCall) -> Tensor:
        del attacked
        return call.carried_out()

    def batches_in_flight(self, device: torch.device) -> int:
        del device
        return 1

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        del model
        return ()


class AcceleratedCopy:
    """Backend that gives attacks an accelerated copy of a model: `with fast(model, few) as attacked: ...`.

    In eval mode, the copy is in channels-last order with its batch norm folded, and its weights are loaded from the
    model at each call. In training mode, attacks search on the model itself under autocast.

    A model that is not in float32, that cannot be copied, or whose copy has other logits or gradients, is attacked
    without a copy; `notes` give the reason. A copy is verified on the few images at each call without a `kind`, and
    whenever anything in the model has changed other than the values of its weights and buffers. It lives as long as
    this object and the model. Two threads must not share this object: one would reload the copy while the other
    attacks it.

    Args:
        precision: Precision of the body, "auto", "fp32" or "bf16"; pixels are normalised, and logits are computed, in
            float32. "auto" is bf16 where the processor computes in it.
        compile: "on" compiles the body, once for each of four batch sizes; "off" does not, nor does "auto": `fit`
            replaces it by "on" where the attacks take long enough. With "max-autotune" torch tries more implementations
            of each product, which takes longer once; on the CPU it gains nothing.
        capture: Whether a search that never waits for the device (PGD without patience, FGSM, N-FGSM) is recorded as a
            CUDA graph and replayed, which saves most of the time of launching at small batches, and takes memory for
            one search more. It changes nothing on other devices. It has not been measured on a GPU yet.

    Raises:
        UserError: If `precision` or `compile` is another word.
    """

    def __init__(self, precision: Precision = "auto", compile: Compile = "auto", capture: bool = False) -> None:
        for name, value, known in (("precision", precision, Precision), ("compile", compile, Compile)):
            need_one_of(name, value, get_args(known))
        self.precision, self.compile, self.capture = precision, compile, capture
        self._recordings = Recordings()
        self._fine: AcceleratedCopy | None = None
        self._known: weakref.WeakKeyDictionary[nn.Module, list[_Known]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        captured = ", capture=True" if self.capture else ""
        return f"AcceleratedCopy(precision={self.precision!r}, compile={self.compile!r}{captured})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only; copies of models are made anew after unpickling."""
        return {"precision": self.precision, "compile": self.compile, "capture": self.capture}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor, kind: str | None = None) -> Generator[nn.Module]:
        yield self._searched(model, few, kind)

    def kind(self, model: nn.Module) -> str | None:
        """Return the kind of copy that was used last for a model, or None before the first use."""
        kept = self._known.get(model)
        return kept[0].kind if kept else None

    def in_float32(self) -> "AcceleratedCopy":
        """Return a backend with copies in float32, for attacks that search for a boundary."""
        if self._fine is None:
            self._fine = self if self.precision == "fp32" else AcceleratedCopy("fp32", self.compile, self.capture)
        return self._fine

    def batches_in_flight(self, device: torch.device) -> int:
        """Return the number of batches an attack holds at once, so that rows of finished examples can be refilled.

        It is 1 without compilation: on the CPU the time per example does not depend on the batch size, unless batches
        are padded to a compiled size, and on CUDA one large batch takes fewer launches than four small ones.
        """
        del device
        return _AHEAD if self._compiles() else 1

    def search(self, attacked: nn.Module, call: SearchCall) -> Tensor:
        """Carry out a search; on CUDA with `capture` it is recorded, if `attacked` is a copy."""
        copies = (copy for held in self._known.values() for known in held for copy in known.made.values())
        ours = any(isinstance(copy, Shadow) and copy.net is attacked for copy in copies)
        if not (self.capture and ours and call.inputs[0].device.type == "cuda"):
            return call.carried_out()
        return self._recordings.search(attacked, call)

    @classmethod
    def resolved(
        cls,
        device: torch.device,
        precision: Precision = "auto",
        compile: Compile = "auto",
        capture: bool = False,
    ) -> "AcceleratedCopy":
        """Return a backend in which "auto" is replaced by its meaning on this device."""
        wanted = cls(precision, compile)
        low = wanted.dtype(device) == torch.bfloat16
        compiled: Compile = "on" if wanted._compiles() else "off"
        return cls("bf16" if low else "fp32", compiled if compile == "auto" else compile, capture)

    def describe(self, device: torch.device) -> str:
        """Return precision and compilation in words, for the user."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype(device)]
        how = {"max-autotune": "compiled with max-autotune"}.get(self.compile, "compiled")
        captured = ", recorded as CUDA graphs" if self.capture and device.type == "cuda" else ""
        return f"attacks in {name}, {how if self._compiles() else 'not compiled'}{captured}"

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """Return the reasons why copies of a model cannot be used, are not compiled, or searches are not recorded."""
        of_model = (note for known in self._known.get(model, ()) for note in known.notes.values())
        return tuple(dict.fromkeys((*of_model, *self._recordings.notes())))

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the data type in which the body of a model is computed on this device."""
        low = self.precision == "bf16" or (self.precision == "auto" and computes_bf16(device))
        return torch.bfloat16 if low else torch.float32

    def _compiles(self) -> bool:
        return self.compile in ("on", "max-autotune")

    def _searched(self, model: nn.Module, few: Tensor, kind: str | None) -> nn.Module:
        if mode_matters(model) is not None:
            dtype = self.dtype(few.device)
            whole = dtype != torch.float32 and type(model) is not Classifier  # its logits would be in low precision
            return model if whole or _refusal(model) else lowered(model, dtype)
        kept, found = self._known.setdefault(model, []), Fingerprint.of(model)
        known = next((each for each in kept if each.marks == found.marks), None)
        changed = bool(kept) and known is not kept[0]
        known = known or self._new(model, found, few.device)
        kept[:] = [known, *(each for each in kept if each is not known)][:_KEPT]
        if kind is None or changed or (kind != _ITSELF and self._filled(known, kind, model) is None):
            kind = next((each for each in known.kinds if self._verified(known, each, model, few)), _ITSELF)
            if kind != _ITSELF:  # what stood in the way of a copy before does so no longer
                for name in (kind, _ITSELF):
                    known.notes.pop(name, None)
        known.kind = kind
        copy = known.made.get(kind)
        return copy.net if isinstance(copy, Shadow) else model

    def _new(self, model: nn.Module, found: Fingerprint, device: torch.device) -> _Known:
        why = _refusal(model) or _unfollowed(found)
        # With aliases, a layer that is replaced in the copy would still be reached, unreplaced, through the alias.
        plain = found.aliases or unsafe_in_channels_last(model)
        dtypes = (self.dtype(device), torch.float32)
        kinds = [name for name, (dtype, replaced) in _KINDS.items() if dtype in dtypes and not (plain and replaced)]
        notes = {} if why is None else {_ITSELF: f"attacks run on the model itself, not on an accelerated copy: {why}"}
        return _Known(found.marks, tuple(kinds) if why is None else (), notes)

    def _filled(self, known: _Known, kind: str, model: nn.Module) -> Shadow | None:
        """Return a copy of the kind with the present weights, made if necessary; None if there can be none."""
        if not known.possible(kind):
            return None
        try:
            copy = known.made.get(kind)
            if isinstance(copy, Shadow):
                copy.refresh(model)
                return copy
            dtype, replaced = _KINDS[kind]
            known.made[kind] = copy = Shadow(model, dtype, known_sites(model, known.marks) if replaced else ())
            self._compile(copy.net, known.notes)
        except Exception as error:  # a user's model may fail in any way
            self._refuse(known, kind, _first_line(error), permanently=True)
            return None
        return copy

    def _verified(self, known: _Known, kind: str, model: nn.Module, few: Tensor) -> bool:
        """Return True if there is a copy of the kind that agrees with the model in its present state."""
        new = kind not in known.made
        copy = self._filled(known, kind, model)
        if copy is None:
            return False
        try:
            if new and (why := flaw(copy, few)) is not None:
                return self._refuse(known, kind, why, permanently=True)
            why = disagreement(copy, model, few, new)
        except Exception as error:
            return self._refuse(known, kind, _first_line(error), permanently=True)
        return why is None or self._refuse(known, kind, why)

    def _refuse(self, known: _Known, kind: str, why: str, permanently: bool = False) -> bool:
        """Note why a copy is not used, permanently if the reason does not depend on the weights; return False."""
        if permanently:
            known.made[kind] = why
        known.notes[kind] = f"a copy of the model in {kind} cannot be used: {why}"
        if kind == known.kinds[-1]:
            known.notes[_ITSELF] = "attacks run on the model itself, not on an accelerated copy"
        return False

    def _compile(self, net: nn.Module, notes: dict[str, str]) -> None:
        if not self._compiles():
            return

        if (layer := by_batch(net)) is not None:
            notes["compiled"] = (
                f"the accelerated copy of the model is not compiled: {layer} takes its mean and variance of the batch, "
                "which the rows that fill a compiled batch would change"
            )
            return
        mode = "max-autotune-no-cudagraphs" if self.compile == "max-autotune" else None

        def failed(why: str) -> None:
            notes["compiled"] = f"the accelerated copy of the model is not compiled: {why}"

        if isinstance(net, Classifier):
            net.body = Compiled(net.body, failed, mode)
        elif isinstance(net, Low):
            net.inner = Compiled(net.inner, failed, mode)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def worth_compiling(model: nn.Module, device: torch.device, seconds: float) -> bool:
    """Return True if attacks are long enough to repay compilation.

    On the CPU, compilation takes up to a minute and gains 5 to 18 % on a ResNet (two cores with bf16), and nothing on a
    plain convolutional net. On CUDA the gain is estimated at a fifth, and is not measured. An evaluation compiles on
    request only: AutoAttack meets four batch sizes, with and without gradients, in two precisions.

    Args:
        model: The model to attack.
        device: Device of the attacks.
        seconds: Expected duration of all attacks together.

    Returns:
        True on CUDA if the attacks take more than 300 seconds; on the CPU if they take more than 900 and the model has
        batch norm.
    """
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return seconds > _WORTH_SECONDS.get(device.type, math.inf) and (normalised or device.type == "cuda")


def computes_bf16(device: torch.device) -> bool:
    """Return True if the processor has instructions for bf16; emulated, bf16 is slower than float32.

    Args:
        device: The device to check.

    Returns:
        True for CUDA devices of compute capability 8.0 or higher, and for CPUs with AVX-512 BF16 or AMX instructions
        that oneDNN may use (`ONEDNN_MAX_CPU_ISA` can forbid it).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private names in torch, as the next one
    allowed = bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)())
    return allowed and any(bool(getattr(torch.cpu, name, bool)()) for name in known)


def _refusal(model: nn.Module) -> str | None:
    """Return the reason why a model is neither copied nor run in another precision, or None."""
    if isinstance(model, Classifier) and type(model) is not Classifier:
        return f"a {type(model).__name__} may use its parts differently from a Classifier"
    tensors = [p for p in model.parameters() if p.is_floating_point()]
    other = sorted({str(p.dtype) for p in tensors if p.dtype != torch.float32})
    if other:
        return f"its weights are in {', '.join(other)}"
    if global_hooks():
        return "hooks on all modules are set, and in a copy they would receive other modules"
    for name, module in model.named_modules():
        if (method := patched(module)) is not None:
            return f"{method} of {name or 'the model'} was replaced, which a copy cannot reproduce"
    return None if tensors else "it has no weights"


def _unfollowed(found: Fingerprint) -> str | None:
    return None if found.loose is None else f"{found.loose} holds trainable tensors that parameters() does not give"
