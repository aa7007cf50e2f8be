"""What attacks search on: the model itself, or something that gives the same answers sooner."""

import itertools
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Classifier
from ..errors import need_one_of
from ..views import mode_matters
from .compiled import Compiled
from .convolution import worth
from .shadow import Low, Shadow, lowered, structure

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off", "max-autotune"]

_WORTH_SECONDS = 900.0
_CHECKED_EVERY = 64  # uses of a copy
_AHEAD = 4
_KEPT = 2  # copies of a model: a view may change how it looks, again and again
# of the length of the logits; a ResNet in bf16 differs by 0.003
_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(slots=True)
class _Known:
    """What was found out about a model as it looked: its shadow, or that it is searched on as it is."""

    structure: tuple[Any, ...]
    shadow: Shadow | None = None
    notes: list[str] = field(default_factory=list)
    uses: int = 0


class Plain:
    """Attacks search on the model as it is."""

    def __repr__(self) -> str:
        return "Plain()"

    def said(self, device: torch.device) -> str:
        del device
        return "attacks on the model as it is"

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor) -> Generator[nn.Module]:
        del few
        yield model

    def fine(self) -> "Plain":
        return self

    def ahead(self, device: torch.device) -> int:
        del device
        return 1

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        del model
        return ()


class Fast:
    """Gives, for a model and a few images, what attacks search on: `with fast(model, few) as searched: ...`

    In eval mode that is a copy in channels-last order with its batch norm folded, filled anew from the model at each
    call; in training mode, the model itself under autocast. `precision` is that of its body (pixels are normalised, and
    logits are computed, in float32): `auto` is bf16 where the processor computes in it. With `compile="on"` the body is
    compiled, once for each of four sizes of batch; `auto` compiles on CUDA. With `"max-autotune"` torch tries more ways
    of each product, which takes longer once; on the CPU it gains nothing.

    A model that is not in float32, that cannot be copied, or whose copy gives other logits, is searched on as it is;
    `notes` say why. A copy is compared with its model when it is made and, unless compiled, every 64 uses. Not for two
    threads at once: the copy is filled anew while the other attacks.
    """

    def __init__(self, precision: Precision = "auto", compile: Compile = "auto") -> None:
        for name, value, known in (("precision", precision, Precision), ("compile", compile, Compile)):
            need_one_of(name, value, get_args(known))
        self.precision, self.compile = precision, compile
        self._fine: Fast | None = None
        self._known: weakref.WeakKeyDictionary[nn.Module, list[_Known]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Fast(precision={self.precision!r}, compile={self.compile!r})"

    @contextmanager
    def __call__(self, model: nn.Module, few: Tensor) -> Generator[nn.Module]:
        yield self._searched(model, few)

    def fine(self) -> "Fast":
        if self._fine is None:
            self._fine = self if self.precision == "fp32" else Fast("fp32", self.compile)
        return self._fine

    def ahead(self, device: torch.device) -> int:
        """On the CPU, batches of any size are as quick for an example, unless they are filled up to be compiled for."""
        return _AHEAD if device.type == "cuda" or self._compiles(device) else 1

    @classmethod
    def resolved(cls, device: torch.device, precision: Precision = "auto", compile: Compile = "auto") -> "Fast":
        """With what `auto` means on this device."""
        wanted = cls(precision, compile)
        low = wanted.dtype(device) == torch.bfloat16
        compiled: Compile = "on" if wanted._compiles(device) else "off"
        return cls("bf16" if low else "fp32", compiled if compile == "auto" else compile)

    def said(self, device: torch.device) -> str:
        """In words, for the user."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype(device)]
        how = {"max-autotune": "compiled with max-autotune"}.get(self.compile, "compiled")
        return f"attacks in {name}, {how if self._compiles(device) else 'not compiled'}"

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for known in self._known.get(model, ()) for note in known.notes))

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the body of a model is computed in on this device."""
        low = self.precision == "bf16" or (self.precision == "auto" and computes_bf16(device))
        return torch.bfloat16 if low else torch.float32

    def _compiles(self, device: torch.device) -> bool:
        return self.compile in ("on", "max-autotune") or (self.compile == "auto" and device.type == "cuda")

    def _searched(self, model: nn.Module, few: Tensor) -> nn.Module:
        if mode_matters(model) is not None:
            return model if _refusal(model) else lowered(model, self.dtype(few.device))
        kept, looks = self._known.setdefault(model, []), structure(model)
        known = next((each for each in kept if each.structure == looks), None)
        if known is None or not self._refreshed(known, model, few, back=known is not kept[0]):
            kept[:] = [each for each in kept if each is not known]
            known = _Known(looks)
            known.shadow = self._shadow(model, few, known.notes)
        kept[:] = [known, *(each for each in kept if each is not known)][:_KEPT]
        return model if known.shadow is None else known.shadow.net

    def _refreshed(self, known: _Known, model: nn.Module, few: Tensor, back: bool) -> bool:
        """Whether the copy could be filled anew and, as is seen now and then, still agrees with the model.

        It is always seen when the model looks as it once did again (`back`).
        """
        if known.shadow is None:
            return True
        known.uses += 1
        try:
            known.shadow.refresh(model)
            # a compiled copy is not asked again: a few images would be one more size to compile
            due = (back or known.uses % _CHECKED_EVERY == 0) and not self._compiles(few.device)
            return not due or _difference(known.shadow, model, few) is None
        except Exception:  # why, is found out and noted when the copy is made anew
            return False

    def _shadow(self, model: nn.Module, few: Tensor, notes: list[str]) -> Shadow | None:
        """A copy that agrees with the model, in the precision wanted or else in float32; None if there is none."""
        why, device = _refusal(model), few.device
        dtypes = dict.fromkeys((self.dtype(device), torch.float32))
        for dtype, convolutions in itertools.product(dtypes, (True, False)) if why is None else ():
            try:
                shadow = Shadow(model, dtype, convolutions)
                doubt = _difference(shadow, model, few)
                if doubt is None:
                    self._compile(shadow.net, few.device, notes)
                    return shadow
            except Exception as error:  # a model of somebody else's may fail in any way
                doubt = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            kind = "in channels-last order" if convolutions else "in the order of the model"
            notes.append(f"a copy of the model in {str(dtype).removeprefix('torch.')} {kind} does not do: {doubt}")
        notes.append(f"attacks search on the model as it is{f', for {why}' if why else ''}")
        return None

    def _compile(self, net: nn.Module, device: torch.device, notes: list[str]) -> None:
        if not self._compiles(device):
            return

        mode = "max-autotune-no-cudagraphs" if self.compile == "max-autotune" else None

        def failed(why: str) -> None:
            notes.append(f"the copy of the model that attacks search on is not compiled: {why}")

        if isinstance(net, Classifier):
            net.body = Compiled(net.body, failed, mode)
        elif isinstance(net, Low):
            net.inner = Compiled(net.inner, failed, mode)


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
    """Why a model is not copied at all."""
    if isinstance(model, Classifier) and type(model) is not Classifier:
        return f"a {type(model).__name__} may see its parts otherwise than a Classifier"
    tensors = [p for p in model.parameters() if p.is_floating_point()]
    other = sorted({str(p.dtype) for p in tensors if p.dtype != torch.float32})
    if other:
        return f"its weights are in {', '.join(other)}"
    return None if tensors else "it has no weights"


def _difference(shadow: Shadow, model: nn.Module, few: Tensor) -> str | None:
    """What speaks against the copy in place of `model`, as seen on a few images: None if nothing does.

    On the CPU its convolutions are also asked as they will be asked about many images.
    """
    with torch.random.fork_rng(devices=[few.device] if few.device.type == "cuda" else []):
        with torch.no_grad():
            wanted = _given(model, few)
        doubt = _unlike(shadow, wanted, few)
        if doubt is None and shadow.minds_size and few.device.type == "cpu":
            with worth(0):
                doubt = _unlike(shadow, wanted, few)
    return doubt


def _unlike(shadow: Shadow, wanted: list[Tensor], few: Tensor) -> str | None:
    net, most = shadow.net, _AGREEMENT[shadow.dtype]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.enable_grad():
        x = few.detach().clone().requires_grad_()
        found = _given(net, x)
        if found[0].requires_grad:
            torch.autograd.grad(found[0].sum(), x, allow_unused=True)
    for what, mine, true in zip(("logits", *["parts"] * len(wanted)), found, wanted, strict=False):
        if mine.shape != true.shape or not torch.equal(mine.isfinite(), true.isfinite()):
            return f"its {what} are {tuple(mine.shape)} and not all finite where the model's are"
        share = float((mine.detach() - true).nan_to_num().norm() / true.nan_to_num().norm().clamp_min(1e-12))
        if share > most:
            return f"its {what} differ by {100 * share:.2g} %"
    changed = [name for name, buffer in net.named_buffers() if not torch.equal(buffer, buffers[name])]
    return f"its forward changes {changed[0]}" if changed else None


def _given(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The logits and, if its body is an `Encoder`, the parts of what that gives."""
    if isinstance(model, Classifier) and getattr(model.body, "in_parts", False):
        return [model(x), *model.body(model.normalize(x), parts=True)]
    return [model(x)]
