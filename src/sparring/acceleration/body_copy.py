"""A copy of a model for attacks to search on: the same function, cheaper to evaluate and to differentiate by its input.

In the copy, weights are constant, convolutions are `FrozenConv`, batch normalisation that follows a convolution is
folded into it, and other batch normalisation is `FrozenNorm`. The copy is filled anew, in place, whenever the weights
of the model may have moved.
"""

import copy
import inspect
from collections.abc import Iterator
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
    """A convolution or a batch norm by name, what follows it alone: for a convolution a batch norm, and then a ReLU."""

    layer: str
    norm: str | None
    act: str | None


def sites(model: nn.Module) -> list[Site]:
    """The layers that can be replaced: those that run once in a forward, in a model that can be traced."""
    try:
        graph = _Tracer().trace(copied(model, hooks=False), _defaults(model))
    except Exception:  # control flow that depends on data, and whatever else a tracer cannot follow
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
        names = [None if each is None else str(each.target) for each in (after, act)]
        folded_in.add(names[0])
        found.append(Site(name, *names))
    return found


def _of_pixels(node: fx.Node) -> bool:
    """Whether a layer reads the images themselves, which are normalised in float32."""
    return any(isinstance(arg, fx.Node) and arg.op == "placeholder" for arg in node.args)


class _Tracer(fx.Tracer):
    """Does not look into activations of ours, whose gradients are written by hand, nor into what reads a bank."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Pointwise | Reference) or super().is_leaf_module(m, module_qualified_name)


def copied(model: nn.Module, hooks: bool = True) -> nn.Module:
    """A copy whose hooks are those of the model, not copies of them and of all that they know; or that has none.

    A hook that is a method of a module of the model becomes that of the copied module: through it, the copy would keep
    the model alive. The buffers that a `Reference` reads are shared. Raises `ValueError` if anything else is, as of a
    module that copies itself as itself: what is done to the copy would be done to the model.
    """
    own = set(model.modules())
    found = [hook for m in model.modules() for held in hooks_of(m) for hook in held.values()]
    kept: list[Any] = [hook for hook in found if getattr(hook, "__self__", None) not in own]
    read = [buffer for m in model.modules() if isinstance(m, Reference) for buffer in m.buffers(recurse=False)]
    net = copy.deepcopy(model, {id(each): each for each in (*kept, *read)})
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
    """What a forward takes besides the images, by default: with a stand-in for it, another branch would be traced."""
    rest = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty} or None


def _bare(module: nn.Module) -> bool:
    """Nothing hooks into it: a hook may compute its weight, as that of the older spectral norm does, or read it."""
    return not any(hooks_of(module))


class Low(nn.Module):
    """Runs what is inside in `dtype`, where autocast finds that safe, and gives float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def __getattr__(self, name: str) -> Any:
        """Also what the model inside has, for attacks that know it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, **parts: bool) -> Any:
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low, cache_enabled=False):
            out = self.inner(x, **parts)
        return tuple(each.float() for each in out) if isinstance(out, tuple) else out.float()


def lowered(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same model, not a copy, run in `dtype`; of a `Classifier`, only the body is, and the rest stays as it is."""
    if type(model) is not Classifier:
        return Low(model, dtype)
    twin = copy.copy(model)
    twin._modules = {**model._modules, "body": Low(model.body, dtype)}
    return twin


class Shadow:
    """A copy of `model` in `dtype`, as `net`, kept in step with the model by `refresh`.

    Without `convolutions`, these and batch norm stay as they are: what they give is in the order in memory that the
    model knows.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, convolutions: bool = True) -> None:
        self.dtype = dtype
        net = copied(model).eval().requires_grad_(False)
        self._frozen = [(site, _replace(net, site, dtype)) for site in (sites(model) if convolutions else ())]
        filled = {id(tensor) for _, layer in self._frozen for tensor in layer.buffers()}
        shared = {id(tensor) for tensor in _tensors(model).values()}
        self._others = {name: t for name, t in _tensors(net).items() if id(t) not in filled | shared}
        self._head = next((m for m in reversed(list(net.modules())) if type(m) is nn.Linear), None)
        if self._head is not None:
            self._head.__class__ = _FullLinear
        self.net = lowered(net, dtype)
        self.refresh(model)

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """Collects where in memory the last linear layer, which computes in float32, puts what it gives."""
        found: list[int] = []
        if self._head is None:
            yield found
            return
        with self._head.register_forward_hook(lambda module, args, out: found.append(out.data_ptr())):
            yield found

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """The weights and statistics of `model` as they are now."""
        for site, kept in self._frozen:
            layer = model.get_submodule(site.layer)
            norm = None if site.norm is None else model.get_submodule(site.norm)
            if isinstance(kept, FrozenNorm):
                assert isinstance(layer, nn.BatchNorm2d)
                kept.load(*folded(layer))
            else:
                assert isinstance(layer, nn.Conv2d) and (norm is None or isinstance(norm, nn.BatchNorm2d))
                kept.load(*_folded_in(layer, norm))
        live = _tensors(model)
        if self._others:
            torch._foreach_copy_(list(self._others.values()), [live[name] for name in self._others])


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


def _folded_in(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its batch norm in eval mode."""
    bias = torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    if norm is None:
        return conv.weight, bias
    scale, shift = folded(norm)
    return conv.weight * scale[:, None, None, None], bias * scale + shift


class _FullLinear(nn.Linear):
    """A linear layer in float32 whatever surrounds it: the last one, whose differences an attack raises."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
