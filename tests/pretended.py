"""A pretended GPU on any build of torch: its tensors say "cuda:0" and compute on the CPU.

It refuses what a GPU refuses, or what costs time there silently: tensors of two devices in one operation, a generator
of another device, float64 if the device has none. It counts operations, and what makes the processor wait for it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo  # which optimisers import, and which must not see the patches below
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

from sparring.core import devices

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXED = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
WAITS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2, aten.bincount),
    aten.is_nonzero,
}
counts: "Counter[str]" = Counter()
"""Operations on the pretended GPU: "kernels", "waits: WHY", "op NAME"."""

_making = [False]
"""Whether what torch makes at the moment lies on the GPU; the last entry counts."""
_float64 = [True]


class MixedDevicesError(RuntimeError):
    """Tensors, an index or a generator of two devices meet in one operation."""


class NoFloat64Error(RuntimeError):
    """A tensor of float64 is made on a device that has none."""


class OnGPU(Tensor):
    """A tensor that says it is on the GPU, around the one on the CPU that holds its values."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        if held.dtype == torch.float64 and not _float64[-1] and held.ndim:
            raise NoFloat64Error(f"float64 {tuple(held.shape)} on a device without it")
        self = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
            requires_grad=held.requires_grad,
        )
        self.held = held.detach()
        return self

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.held!r})"


def _bare(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


def _numbers(values: Any) -> bool:
    """Return True for sizes, strides and data, which may be long."""
    return not values or (isinstance(values[0], int | float) and isinstance(values[-1], int | float))


def _tensors(args: Any, found: list[Tensor]) -> list[Tensor]:
    """Add the tensors of arguments to `found`; torch's own walk takes longer than the operations here."""
    for each in args:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, tuple | list) and not _numbers(each):
            _tensors(each, found)
    return found


def _all_bare(args: Any) -> Any:
    """Return arguments, and lists and tuples of them, as a list in which the tensors are those of the CPU."""
    return [
        each.held
        if isinstance(each, OnGPU)
        else type(each)(_all_bare(each))
        if type(each) in (tuple, list) and not _numbers(each)
        else each
        for each in args
    ]


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    packet = func.overloadpacket
    tensors = _tensors(kwargs.values(), _tensors(args, []))
    here = [each for each in tensors if isinstance(each, OnGPU)]
    elsewhere = [each for each in tensors if not isinstance(each, OnGPU)]
    on = bool(here) or (not tensors and _making[-1])
    if here:
        _check(func, packet, args, elsewhere)
        counts[f"waits: {packet.__name__}"] += packet in WAITS
    if on and not func.is_view:
        counts["kernels"] += 1
        counts[f"op {packet.__name__}"] += 1
    out = func(*_all_bare(args), **dict(zip(kwargs, _all_bare(kwargs.values()), strict=True)))
    if not on or (packet is aten.copy_ and not isinstance(args[0], OnGPU)):
        return args[0] if packet is aten.copy_ else out
    out = OnGPU(out) if isinstance(out, Tensor) else tree_map(lambda e: OnGPU(e) if isinstance(e, Tensor) else e, out)
    aliased = here and (func.is_view or func._schema.is_mutable)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliased else out


def _check(func: Any, packet: Any, args: Any, elsewhere: list[Tensor]) -> None:
    if packet in INDEXED:
        if not isinstance(args[0], OnGPU):
            raise MixedDevicesError(f"{func}: a tensor on the CPU is indexed by one on the GPU")
        index = [each for each in args[1] if isinstance(each, Tensor)]
        counts["waits: index from the CPU"] += any(not isinstance(each, OnGPU) for each in index)
        counts["waits: mask"] += any(each.dtype in (torch.bool, torch.uint8) for each in index)
    elif packet in COPIES:
        counts["waits: copy between devices"] += bool(elsewhere)
    elif any(each.ndim for each in elsewhere):
        raise MixedDevicesError(f"{func}: on the CPU are {[tuple(each.shape) for each in elsewhere]}")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Function(TorchFunctionMode):
    """Decides by `device=` and by the arguments where a result lies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        on = any(isinstance(each, OnGPU) for each in _tensors(kwargs.values(), _tensors(args, [])))
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return _moved(func, name, args, kwargs)
        if name == "tolist" and on:
            counts["waits: tolist"] += 1
            return args[0].held.tolist()
        if name == "numpy" and on:
            raise MixedDevicesError("can't convert cuda:0 device type tensor to numpy: use .cpu()")
        asked = kwargs.pop("device", None)
        wanted = on if asked is None else torch.device(asked).type == "cuda"
        if asked is not None and on and not wanted:
            args, kwargs = _all_bare(args), dict(zip(kwargs, _all_bare(kwargs.values()), strict=True))
        generator = kwargs.get("generator")
        if generator is not None and (generator.device.type == "cuda") != wanted:
            raise MixedDevicesError(
                f"{name}: a generator on {generator.device} for a tensor on {'cuda' if wanted else 'cpu'}"
            )
        with _made_on(wanted and name != "tensor"):
            out = func(*args, **kwargs)
        if wanted and asked is not None and isinstance(out, Tensor) and not isinstance(out, OnGPU):
            counts["waits: to the GPU"] += 1
            return OnGPU(out.detach()).requires_grad_(out.requires_grad)
        return out


@contextlib.contextmanager
def _made_on(gpu: bool) -> Iterator[None]:
    _making.append(gpu)
    try:
        yield
    finally:
        _making.pop()


def _moved(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry out `to`, `cpu` and `cuda`: first the type, then the device."""
    x, rest = args[0], [each for each in args[1:] if each is not None and not isinstance(each, bool)]
    where = kwargs.pop("device", None) if name == "to" else name
    for i, each in enumerate(rest if name == "to" else ()):
        if isinstance(each, str | torch.device):
            where = rest.pop(i)
            break
        if isinstance(each, Tensor):
            where, rest[i] = each.device, each.dtype
            break
    kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking" and value is not None}
    leaves = where is not None and torch.device(where).type != "cuda" and isinstance(x, OnGPU)
    if leaves:
        counts["waits: copy between devices"] += 1
        x = x.held.clone()
    if name == "to" and (rest or kwargs):
        with _made_on(isinstance(x, OnGPU)):
            x = func(x, *rest, **kwargs)
    if where is None or torch.device(where).type != "cuda" or isinstance(x, OnGPU):
        return x
    counts["waits: copy between devices"] += 1
    return OnGPU(x.detach().clone()).requires_grad_(x.requires_grad)


def _reading(values: Tensor) -> Any:
    """Stands for `devices.reading`, whose wait comes after the next step was launched, and is counted by itself."""
    counts["read late"] += isinstance(values, OnGPU)
    return _bare(values).tolist


class _Generator(torch.Generator):
    """A generator of the CPU that may say it is of the GPU."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        self = super().__new__(cls, "cpu")
        self.where = GPU if torch.device(device).type == "cuda" else CPU
        return self

    def __init__(self, device: Any = "cpu") -> None: ...

    device = property(lambda self: self.where)


@contextlib.contextmanager
def pretended(*, float64: bool = True) -> Iterator["Counter[str]"]:
    """Inside, `device="cuda"` is there; without `float64` it has none, as Apple's GPUs. Yields `counts`."""
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        fork, save, autocast = torch.random.fork_rng, torch.save, torch.autocast
        patch(torch, "Generator", _Generator)
        same = "_has_compatible_shallow_copy_type"  # else `.to` of a module would only exchange the data of a weight
        patch(torch, same, lambda a, b: not (isinstance(a, OnGPU) or isinstance(b, OnGPU)))
        patch(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
        patch(torch.cuda, "set_rng_state", lambda *_: None)
        patch(torch.cuda, "synchronize", lambda *_: None)
        patch(torch.cuda, "get_device_name", lambda *_: "pretended")
        patch(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch(torch.random, "fork_rng", lambda devices=(), **how: fork(devices=[], **how))
        patch(torch, "save", lambda held, *more, **how: save(tree_map(_bare, held), *more, **how))
        patch(torch, "autocast", lambda device_type, *more, **how: autocast("cpu", *more, **how))
        patch(devices, "reading", _reading)
        _float64.append(float64)
        stack.callback(_float64.pop)
        if not float64:
            patch(devices, "NO_FLOAT64", devices.NO_FLOAT64 | {"cuda"})
        counts.clear()
        stack.enter_context(_Dispatch())
        stack.enter_context(_Function())
        yield counts


def waits() -> dict[str, int]:
    """Return what waited for the device, and how often."""
    return {name.removeprefix("waits: "): count for name, count in counts.items() if name.startswith("waits") and count}
