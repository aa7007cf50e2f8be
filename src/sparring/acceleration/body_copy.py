"""Accelerated copy of a model: the same function, with a cheaper forward pass and a cheaper input gradient.

In the copy, weights are constant, convolutions are `FrozenConv`, batch normalisation that follows a convolution is
folded into it, and other batch normalisation is `FrozenNorm`. The weights of the copy are reloaded, in place, whenever
those of the model may have changed.
"""

import copy
import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..core.types import Classifier, Pointwise, Reference
from .convolution import FrozenConv
from .fingerprint import hooks_of
from .normalisation import FrozenNorm, folded


@dataclass(frozen=True, slots=True)
class Site:
    """Names of layers that are replaced together: a convolution or batch norm and its only followers."""

    layer: str
    """A convolution, or a batch norm that is not folded into one."""
    norm: str | None
    """The batch norm that follows a convolution, if any."""
    act: str | None
    """The ReLU that follows, if any."""


_SITES: weakref.WeakKeyDictionary[nn.Module, tuple[list[Any], list[Site]]] = weakref.WeakKeyDictionary()


def known_sites(model: nn.Module, marks: list[Any]) -> list[Site]:
    """Return `sites` of a model whose fingerprint has these marks; it is traced once, whatever copies are made."""
    kept = _SITES.get(model)
    if kept is None or kept[0] != marks:
        _SITES[model] = kept = marks, sites(model)
    return kept[1]


def sites(model: nn.Module) -> list[Site]:
    """Return the layers that can be replaced: those that run once per forward pass of a model that can be traced."""
    try:
        graph = _Tracer().trace(copied(model, hooks=False), _defaults(model))
    except Exception:  # control flow that depends on data, or anything else that a tracer cannot follow
        return []
    called = [node for node in graph.nodes if node.op == "call_module"]
    counts: dict[str, int] = {}
    for node in called:
        counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    modules = dict(model.named_modules())
    free = {name for name, count in counts.items() if count == 1 and name not in read and _bare(modules[name])}

    def follows(node: fx.Node, kind: type[nn.Module]) -> fx.Node | None:
        users = list(node.users)
        one = users[0] if len(users) == 1 and users[0].op == "call_module" else None
        return one if one is not None and str(one.target) in free and type(modules[str(one.target)]) is kind else None

    found, folded_in = [], set()
    for node in called:
        name = str(node.target)
        conv = FrozenConv.fits(modules[name])
        norm = FrozenNorm.fits(modules[name]) and not _of_pixels(node)
        if name not in free or name in folded_in or not (conv or norm):
            continue
        after = follows(node, nn.BatchNorm2d) if conv else None
        if after is not None and not FrozenNorm.fits(modules[str(after.target)]):
            after = None
        act = follows(after or node, nn.ReLU)
        names = [None if follower is None else str(follower.target) for follower in (after, act)]
        folded_in.add(names[0])
        found.append(Site(name, *names))
    return found


def _of_pixels(node: fx.Node) -> bool:
    """Return True if a layer reads the images themselves, which are normalised in float32."""
    return any(isinstance(arg, fx.Node) and arg.op == "placeholder" for arg in node.args)


class _Tracer(fx.Tracer):
    """Treats our activations, whose gradients are written by hand, and modules that read a bank as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Pointwise | Reference) or super().is_leaf_module(m, module_qualified_name)


def copied(model: nn.Module, hooks: bool = True) -> nn.Module:
    """Copy a model; hooks are shared with the model rather than copied with all they refer to, or are removed.

    A hook that is a method of a module of the model becomes the method of the copied module; otherwise the copy would
    keep the model alive. The buffers that a `Reference` reads are shared.

    Raises:
        ValueError: If anything else is shared, for example because a module returns itself as its copy: changes to the
            copy would change the model.
    """
    own = set(model.modules())
    found = [hook for m in model.modules() for held in hooks_of(m) for hook in held.values()]
    kept: list[Any] = [hook for hook in found if getattr(hook, "__self__", None) not in own]
    read = [buffer for m in model.modules() if isinstance(m, Reference) for buffer in m.buffers(recurse=False)]
    net = copy.deepcopy(model, {id(value): value for value in (*kept, *read)})
    shared = own & set(net.modules()) or _ids(model) & _ids(net) - {id(buffer) for buffer in read}
    if shared:
        raise ValueError("it would share modules or weights with the model")
    for module in () if hooks else net.modules():
        for held in hooks_of(module):
            held.clear()
    return net


def _ids(model: nn.Module) -> set[int]:
    return {id(tensor) for tensor in _tensors(model).values()}


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Return the defaults of the other arguments of forward: with placeholders, another branch could be traced."""
    rest = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty} or None


def _bare(module: nn.Module) -> bool:
    """Return True if a module has no hooks; a hook may read its weight, or compute it, as older spectral norm does."""
    return not any(hooks_of(module))


class Low(nn.Module):
    """Runs the inner module in `dtype` where autocast considers that safe, and returns float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def __getattr__(self, name: str) -> Any:
        """Give access to the attributes of the inner module, for attacks that use them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, **parts: bool) -> Any:
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low, cache_enabled=False):
            out = self.inner(x, **parts)
        return tuple(part.float() for part in out) if isinstance(out, tuple) else out.float()


def lowered(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Wrap a model, without copying its weights, to run in `dtype`; of a `Classifier`, only the body runs in it."""
    if type(model) is not Classifier:
        return Low(model, dtype)
    twin = copy.copy(model)
    twin._modules = {**model._modules, "body": Low(model.body, dtype)}
    return twin


class Shadow:
    """Accelerated copy of `model` in `dtype`: `net` is the copy, and `refresh` reloads its weights from the model.

    The layers at the sites `replaced` are replaced; without any, outputs keep the memory format that the model expects.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, replaced: Sequence[Site]) -> None:
        self.dtype = dtype
        net = copied(model).eval().requires_grad_(False)
        self._frozen = [(site, _replace(net, site, dtype)) for site in replaced]
        filled = {id(tensor) for _, layer in self._frozen for tensor in layer.buffers()}
        shared = {id(tensor) for tensor in _tensors(model).values()}
        self._others = {name: t for name, t in _tensors(net).items() if id(t) not in filled | shared}
        self._head = next((m for m in reversed(list(net.modules())) if type(m) is nn.Linear), None)
        if self._head is not None:
            self._head.__class__ = _FullLinear
        self.net = lowered(net, dtype)
        self.refresh(model)

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Collect the outputs of the last linear layer, which computes in float32."""
        found: list[Tensor] = []
        if self._head is None:
            yield found
            return
        with self._head.register_forward_hook(lambda module, args, out: found.append(out)):
            yield found

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Load the present weights and statistics of `model`, most of them together."""
        live = _tensors(model)
        norms = [name for site, kept in self._frozen if (name := _norm_of(site, kept)) is not None]
        layers: Any = [model.get_submodule(name) for name in norms]
        found = dict(zip(norms, folded(layers), strict=True))
        filled = [(tensor, live[name]) for name, tensor in self._others.items()]
        for site, kept in self._frozen:
            layer: Any = model.get_submodule(site.layer)
            filled += _fillings(kept, layer, found.get(_norm_of(site, kept) or ""))
        if filled:
            torch._foreach_copy_([tensor for tensor, _ in filled], [value for _, value in filled])
        for _, kept in self._frozen:
            if isinstance(kept, FrozenConv):
                kept.loaded()


def _norm_of(site: Site, kept: FrozenConv | FrozenNorm) -> str | None:
    """Return the name of the batch norm that a layer of the copy stands for, alone or folded in."""
    return site.layer if isinstance(kept, FrozenNorm) else site.norm


def _fillings(
    kept: FrozenConv | FrozenNorm, layer: nn.Conv2d, norm: tuple[Tensor, Tensor] | None
) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of a layer of the copy with their values; a weight that is scaled by `norm` is set here."""
    if isinstance(kept, FrozenNorm):
        assert norm is not None
        return list(zip((kept.scale, kept.shift), norm, strict=True))
    if norm is None:
        return [(kept.weight, layer.weight), *([] if layer.bias is None else [(kept.bias, layer.bias)])]
    scale, shift = norm
    torch.mul(layer.weight, scale[:, None, None, None], out=kept.weight)
    return [(kept.bias, shift if layer.bias is None else layer.bias * scale + shift)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _replace(net: nn.Module, site: Site, dtype: torch.dtype) -> FrozenConv | FrozenNorm:
    layer, relu = net.get_submodule(site.layer), site.act is not None
    frozen: FrozenConv | FrozenNorm
    if isinstance(layer, nn.BatchNorm2d):
        frozen = FrozenNorm(layer, relu, dtype)
    else:
        assert isinstance(layer, nn.Conv2d)
        frozen = FrozenConv(layer, relu, dtype)
    net.set_submodule(site.layer, frozen)
    for gone in (site.norm, site.act):
        if gone is not None:
            net.set_submodule(gone, nn.Identity())
    return frozen


class _FullLinear(nn.Linear):
    """Linear layer that computes in float32 also under autocast: the last one, since attacks compare its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
