"""A copy of a model for attacks to search on: the same function, cheaper to evaluate and to differentiate by its input.

In the copy, weights are constant, convolutions are `FrozenConv`, and batch normalisation that follows a convolution is
folded into it. The copy is filled anew, in place, whenever the weights of the model may have moved.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..core import Classifier
from .convolution import FrozenConv


@dataclass(frozen=True, slots=True)
class Site:
    """A convolution by name, and the batch norm and the ReLU that follow it and nothing else."""

    conv: str
    norm: str | None
    act: str | None


def sites(model: nn.Module) -> list[Site]:
    """The convolutions that can be replaced: those that run once in a forward, in a model that can be traced."""
    try:
        graph = fx.Tracer().trace(_unhooked(model))
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

    found = []
    for node in called:
        if str(node.target) in free and FrozenConv.fits(modules[str(node.target)]):
            norm = follows(node, nn.BatchNorm2d)
            if norm is not None and not modules[str(norm.target)].track_running_stats:
                norm = None
            act = follows(norm or node, nn.ReLU)
            names = (None if each is None else str(each.target) for each in (norm, act))
            found.append(Site(str(node.target), *names))
    return found


def _unhooked(model: nn.Module) -> nn.Module:
    """A copy without hooks, which a tracer would call with what is no tensor."""
    net = copy.deepcopy(model)
    for module in net.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return net


def _bare(module: nn.Module) -> bool:
    """Nothing hooks into it: a hook may compute its weight, as that of the older spectral norm does, or read it."""
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class Low(nn.Module):
    """Runs what is inside in `dtype`, where autocast finds that safe, and gives float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low, cache_enabled=False):
            out: Tensor = self.inner(x)
        return out.float()


def lowered(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same model, not a copy, run in `dtype`; of a `Classifier`, only the body is, and it stays one."""
    if isinstance(model, Classifier) and type(model).forward is Classifier.forward:
        return Classifier(Low(model.body, dtype), model.head, model.normalize)
    return Low(model, dtype)


class Shadow:
    """A copy of `model` in `dtype`, as `net`, kept in step with the model by `refresh`.

    Without `convolutions`, these stay as they are: what they give is in the order in memory that the model knows.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, convolutions: bool = True) -> None:
        self.structure = structure(model)
        net = copy.deepcopy(model).eval().requires_grad_(False)
        self._convs = [(site, _replace(net, site, dtype)) for site in (sites(model) if convolutions else ())]
        filled = {id(tensor) for _, conv in self._convs for tensor in conv.buffers()}
        self._others = {name: tensor for name, tensor in _tensors(net).items() if id(tensor) not in filled}
        for module in reversed(list(net.modules())):
            if type(module) is nn.Linear:
                module.__class__ = _FullLinear
                break
        self.net = lowered(net, dtype)
        self.refresh(model)

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """The weights and statistics of `model` as they are now."""
        for site, kept in self._convs:
            conv = model.get_submodule(site.conv)
            norm = None if site.norm is None else model.get_submodule(site.norm)
            assert isinstance(conv, nn.Conv2d) and (norm is None or isinstance(norm, nn.BatchNorm2d))
            kept.load(*_folded(conv, norm))
        live = _tensors(model)
        if self._others:
            torch._foreach_copy_(list(self._others.values()), [live[name] for name in self._others])


def structure(model: nn.Module) -> tuple[int, ...]:
    """What a shadow stands for: it is made anew when a module has been exchanged or hooked into."""
    return tuple(part for m in model.modules() for part in (id(m), len(m._forward_hooks), len(m._forward_pre_hooks)))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _replace(net: nn.Module, site: Site, dtype: torch.dtype) -> FrozenConv:
    conv = net.get_submodule(site.conv)
    assert isinstance(conv, nn.Conv2d)
    frozen = FrozenConv(conv, site.act is not None, dtype)
    net.set_submodule(site.conv, frozen)
    for gone in (site.norm, site.act):
        if gone is not None:
            net.set_submodule(gone, nn.Identity())
    return frozen


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its batch norm in eval mode."""
    bias = torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    if norm is None:
        return conv.weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (bias - norm.running_mean) * scale
    return conv.weight * scale[:, None, None, None], shift if norm.bias is None else shift + norm.bias


class _FullLinear(nn.Linear):
    """A linear layer in float32 whatever surrounds it: the last one, whose differences an attack raises."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
