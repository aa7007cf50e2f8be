"""Published weights for our models.

The state dicts of RobustBench's networks differ from ours only in this:

| theirs | ours |
|---|---|
| `module.`, `model.`, `0.` before every name | nothing |
| `linear`, `fc`, `logits`, `head`, `head.fc` | `head` |
| `mu`, `sigma`; `mean`, `std`; `normalizer.new_mean`, `normalizer.new_std` | `normalize.mean`, `normalize.std` |
| all other names, such as `conv1`, `layer1.`, `init_conv` | the same under `body.` |
| `stem_conv`, `norm1` of WRN-34-R and WRN-A4 | `conv1`, `bn1` |
| `blocks.0.layer.`, `shortcut.0` of the same | `block1.layer.`, `convShortcut` |
| `activation.alpha`, one module at all places | `relu.alpha`, `relu1.alpha`, .., a module at each place |
| `attacker.*` (a copy of the model in checkpoints of the robustness library) | nothing |
| `sub_block1.*`, `model_preact_hl1.*`, `*.scores` (which some checkpoints carry and never run) | nothing |
| `flag_update_statistics`, `batch_num` (with which `MeanSparse` was fitted) | nothing |
| `num_batches_tracked` may be missing | 0 |

A state dict without `mu` and `sigma` belongs to a model that takes pixels as they are, or to one whose normalisation is
in RobustBench's code alone (`robustbench_zoo`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.optional import library
from ..core.types import Classifier
from .classifier import Normalize

M = TypeVar("M", bound=nn.Module)
_OUTER = re.compile(r"^(module\.|model\.|0\.)+")
_UNUSED = re.compile(r"^(sub_block1|attacker|model_preact_hl1)\.|\.(scores|flag_update_statistics|batch_num)$")
_MEANS = ("mu", "mean", "normalize.mean", "normalizer.new_mean")
_STDS = ("sigma", "std", "normalize.std", "normalizer.new_std")
_NORMALIZE = {**dict.fromkeys(_MEANS, "normalize.mean"), **dict.fromkeys(_STDS, "normalize.std")}
_HEAD = re.compile(r"^(linear|fc|logits|head|head\.fc)\.(?=weight$|bias$)")
_GROUP = re.compile(r"^blocks\.(\d)\.layer\.(\d+)\.(?:(shortcut)\.0\.)?")


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names that our `Classifier` uses."""
    return {ours: tensor for name, tensor in state.items() for ours in _ours(_OUTER.sub("", name))}


def _ours(name: str) -> Iterator[str]:
    if _UNUSED.search(name):
        return
    if name in _NORMALIZE:
        yield _NORMALIZE[name]
    elif _HEAD.match(name):
        yield _HEAD.sub("head.", name)
    elif name.startswith("activation."):
        yield name.replace("activation", "body.relu")
    elif ".activation." in name:
        yield from ("body." + name.replace("activation", place) for place in ("relu1", "relu2"))
    else:
        name = _GROUP.sub(_in_group, name).replace("stem_conv.", "conv1.")
        yield "body." + re.sub(r"^norm1\.", "bn1.", name)


def _in_group(found: re.Match[str]) -> str:
    shortcut = "convShortcut." if found[3] else ""
    return f"block{int(found[1]) + 1}.layer.{found[2]}.{shortcut}"


def load_robustbench(model: Classifier, state: Mapping[str, Tensor]) -> Classifier:
    """Load published weights into a model, in place.

    The normalisation of the model is replaced too: by that of the weights, or by none if they have none.

    Args:
        model: The model of the architecture of the weights.
        state: State dict with the names of RobustBench.

    Returns:
        The same model.

    Raises:
        UserError: If a weight does not fit; the message names the first one.
    """
    named = our_names(state)
    model.normalize = normalize_of(named) if "normalize.mean" in named else nn.Identity()
    return fit_names(model, named)


def fill_published(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load published weights into a classifier, in place, which keeps its normalisation if they have none.

    Raises `UserError` for weights that do not fit.
    """
    assert isinstance(model, Classifier)
    named = our_names(_filtered(model.body, state))
    if "normalize.mean" in named:
        model.normalize = normalize_of(named)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("normalize.")}
    fit_names(model, {**own, **named})


def _filtered(body: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights of a Swin transformer under the names of today's timm, and others as they are."""
    if type(body).__name__ != "SwinTransformer":
        return state
    bare = {_OUTER.sub("", name): tensor for name, tensor in state.items()}
    filtered = library("timm.models.swin_transformer", "imagenet", "this model").checkpoint_filter_fn(bare, body)
    return dict(filtered)


def normalize_of(named: Mapping[str, Tensor]) -> Normalize:
    """Return the normalisation in a state dict that has our names."""
    return Normalize(named["normalize.mean"].flatten().tolist(), named["normalize.std"].flatten().tolist())


def fit_names(model: M, named: Mapping[str, Tensor]) -> M:
    """Load tensors that have the names of `model`, in place.

    Counts of batches may be missing, and dimensions of size 1 may be missing or too many. Raises `UserError` if a
    tensor is missing, left over or of another shape.
    """
    wanted = model.state_dict()
    counts = {name: torch.zeros_like(t) for name, t in wanted.items() if name.endswith("num_batches_tracked")}
    given = {**counts, **named}
    wrong = [
        n for n in {**wanted, **given} if n not in wanted or n not in given or _sizes(given[n]) != _sizes(wanted[n])
    ]
    if wrong:
        raise UserError(
            f"these weights are of another architecture: {len(wrong)} of {len(wanted)} tensors do not fit, first "
            f"{wrong[0]!r}, wanted {_shape(wanted.get(wrong[0]))}, given {_shape(given.get(wrong[0]))}"
        )
    model.load_state_dict({name: tensor.reshape(wanted[name].shape) for name, tensor in given.items()})
    return model


def _sizes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))
