"""Our models as RobustBench's own classes: a call that builds the class, and the state dict that it loads.

It is the way back of `robustbench`. A model fits if it is one of the architectures below, of 3-channel images of 32
pixels; our normalisation becomes RobustBench's wrapper, or arguments of its class.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Classifier
from .classifier import Normalize
from .deepmind import DMPreActResNetBody, DMWideResNetBody
from .resnet import BasicBlock, PreActResNetBody, ResNetBody
from .wide_resnet import WideResNetBody

_ROOT = "robustbench.model_zoo.architectures"
_NN = "\nfrom torch import nn"


class TheirModel(NamedTuple):
    """Call by which RobustBench builds a model of ours.

    Args:
        architecture: Its name on the leaderboard, such as "WideResNet-28-10".
        imports: The lines of Python that import what `call` names.
        call: The Python expression that builds it.
        state: The state dict that it loads.
    """

    architecture: str
    imports: str
    call: str
    state: dict[str, Tensor]


class _Class(NamedTuple):
    """A class of RobustBench: its module, name and arguments, its last layer, and how it names the rest."""

    architecture: str
    module: str
    names: str
    call: str
    head: str
    rename: Callable[[str], str] = str
    normalizes: bool = False


def for_robustbench(model: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> TheirModel:
    """Describes a model as a class of RobustBench.

    Args:
        model: The model, made by `resnet18`, `resnet50`, `preact_resnet18`, `wide_resnet`, `robust_wide_resnet`,
            `dm_wide_resnet` or `dm_preact_resnet18`.
        shape: Shape of an image.

    Returns:
        The call that builds it, and its state dict.

    Raises:
        UserError: If RobustBench has no class for it.
    """
    if not isinstance(model, Classifier) or not isinstance(model.head, nn.Linear) or not model.is_bare():
        raise _unfit(f"it is a {type(model).__name__} and not a body with a linear head")
    if tuple(shape) != (3, 32, 32):
        raise _unfit(f"its images are of shape {tuple(shape)} and not (3, 32, 32)")
    if not isinstance(model.normalize, Normalize | nn.Identity):
        raise _unfit(f"its normalisation is a {type(model.normalize).__name__}")
    theirs = _class_of(model.body, model.head.out_features, _statistics(model.normalize))
    state = {theirs.rename(name): tensor for name, tensor in model.body.state_dict().items()}
    state |= {f"{theirs.head}.{name}": tensor for name, tensor in model.head.state_dict().items()}
    imports, call = f"from {_ROOT}.{theirs.module} import {theirs.names}", theirs.call
    if isinstance(model.normalize, Normalize) and not theirs.normalizes:
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        state = {f"normalize.{name}": tensor for name, tensor in model.normalize.state_dict().items()} | state
        mean, std = _statistics(model.normalize)
        call = f"normalize_model({call}, {mean}, {std})"
        imports += f"\nfrom {_ROOT}.utils_architectures import normalize_model"
    return TheirModel(theirs.architecture, imports, call, state)


def _statistics(normalize: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(normalize, Normalize):
        return (0.0,) * 3, (1.0,) * 3
    return tuple(normalize.mean.flatten().tolist()), tuple(normalize.std.flatten().tolist())


def _class_of(body: Any, classes: int, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> _Class:
    match body:
        case ResNetBody():
            return _resnet(body, classes)
        case PreActResNetBody():
            return _preact(body, classes)
        case WideResNetBody():
            return _wide(body, classes)
        case DMWideResNetBody() | DMPreActResNetBody():
            return _deepmind(body, classes, *statistics)
    raise _unfit(f"its body is a {type(body).__name__}")


def _resnet(body: Any, classes: int) -> _Class:
    _need_full(body.conv1, body.act)
    block = "BasicBlock" if isinstance(body.layer1[0], BasicBlock) else "Bottleneck"
    depths = _depths(body)
    layers = (2 if block == "BasicBlock" else 3) * sum(depths) + 2
    call = f"ResNet({block}, {depths}, num_classes={classes})"
    return _Class(f"ResNet-{layers}", "resnet", f"ResNet, {block}", call, "linear")


def _preact(body: Any, classes: int) -> _Class:
    _need_full(body.conv1, body.layer1[0].act1)
    normed, activated = isinstance(body.bn, nn.BatchNorm2d), body.layer2[0].reads_activated
    options = f"num_classes={classes}, bn_before_fc={normed}, out_shortcut={activated}"
    call = f"PreActResNet(PreActBlock, {_depths(body)}, {options})"
    return _Class("PreActResNet-18", "resnet", "PreActResNet, PreActBlock", call, "linear")


def _wide(body: Any, classes: int) -> _Class:
    kind = _activation(body.relu, ("ReLU", "SiLU"))
    blocks = [len(group.layer) for group in (body.block1, body.block2, body.block3)]
    channels = [body.conv1.out_channels, *(group.layer[0].conv2.out_channels for group in _groups(body))]
    widths = {channels[i] // (8 << i) for i in (1, 2, 3)}
    if kind == "ReLU" and len(set(blocks)) == len(widths) == 1:
        depth, width = 6 * blocks[0] + 4, widths.pop()
        call = f"WideResNet(depth={depth}, widen_factor={width}, num_classes={classes})"
        return _Class(f"WideResNet-{depth}-{width}", "wide_resnet", "WideResNet", call, "fc")
    options = f"depth_configs={blocks}, activations=('{kind}',) * 3, use_init=False"
    call = f"PreActResNet(num_classes={classes}, channel_configs={channels}, {options})"
    name = f"WideResNet-{2 * sum(blocks) + 4}"
    return _Class(name, "robust_resnet", "PreActResNet", call, "fc", _robust_name)


def _groups(body: Any) -> tuple[Any, Any, Any]:
    return body.block1, body.block2, body.block3


def _robust_name(name: str) -> str:
    name = re.sub(r"^block(\d)\.", lambda found: f"blocks.{int(found[1]) - 1}.", name)
    name = name.replace("convShortcut.", "shortcut.0.")
    return re.sub(r"^bn1\.", "norm1.", re.sub(r"^conv1\.", "stem_conv.", name))


def _deepmind(body: Any, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> _Class:
    kind = _activation(body.relu, ("ReLU", "SiLU", "GELU"))
    options = f"activation_fn=nn.{kind}, mean={mean}, std={std}"
    if isinstance(body, DMPreActResNetBody):
        _need_full(body.conv_2d)
        call = f"DMPreActResNet(num_classes={classes}, depth=18, {options})"
        return _Class(
            "PreActResNet-18", "dm_wide_resnet", "DMPreActResNet\nfrom torch import nn", call, "logits", normalizes=True
        )
    blocks, channels = [len(group.block) for group in body.layer], body.batchnorm.num_features
    wide = [group.block[0].conv_1.out_channels for group in body.layer]
    plain = isinstance(body.layer[0].block[0].se, nn.Identity) and isinstance(body.meansparse_end, nn.Identity)
    if not plain or len(set(blocks)) != 1 or wide != [channels // 4, channels // 2, channels] or channels % 64:
        raise _unfit("its blocks have squeeze and excitation or MeanSparse, or its groups differ")
    depth, width = 6 * blocks[0] + 4, channels // 64
    call = f"DMWideResNet(num_classes={classes}, depth={depth}, width={width}, {options})"
    name = f"WideResNet-{depth}-{width}"
    return _Class(name, "dm_wide_resnet", f"DMWideResNet{_NN}", call, "logits", normalizes=True)


def _depths(body: Any) -> list[int]:
    return [len(layer) for layer in (body.layer1, body.layer2, body.layer3, body.layer4)]


def _need_full(conv: nn.Conv2d, act: nn.Module | None = None) -> None:
    """Refuse a narrow residual network, and one with another activation than ReLU."""
    if conv.out_channels != 64:
        raise _unfit(f"its first convolution gives {conv.out_channels} channels and not 64")
    if act is not None:
        _activation(act, ("ReLU",))


def _activation(act: nn.Module, known: tuple[str, ...]) -> str:
    kind = type(act).__name__
    if kind not in known or getattr(act, "approximate", "none") != "none":
        raise _unfit(f"its activation is {kind} and not {' or '.join(known)}")
    return kind


def _unfit(why: str) -> UserError:
    return UserError(
        f"RobustBench has no class for this model, since {why}: export it as torch-export or onnx, or publish it with "
        "its code as --to hub"
    )
