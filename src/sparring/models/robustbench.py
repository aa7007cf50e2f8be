"""Published weights for our models.

The state dicts of RobustBench's ResNet-18, PreActResNet-18 and WideResNet differ from ours only in this:

| theirs | ours |
|---|---|
| `module.`, `model.`, `0.` before every name | nothing |
| `conv1`, `bn1`, `layer*`, `block*` | the same under `body.` |
| `linear`, `fc` | `head` |
| `mu`, `sigma`; `mean`, `std`; `normalizer.new_mean`, `normalizer.new_std` | `normalize.mean`, `normalize.std` |
| `attacker.*` (a copy of the model in checkpoints of the robustness library) | nothing |
| `sub_block1.*` (a copy of `block1` that some WideResNets carry and never run) | nothing |
| `num_batches_tracked` may be missing | 0 |

A state dict without `mu` and `sigma` belongs to a model that takes pixels as they are: give it no normalisation. Names
of the DM-style WideResNet (`init_conv`, `batchnorm_0`) belong to another architecture and are refused.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.types import Classifier
from .classifier import Normalize

_OUTER = re.compile(r"^(module\.|model\.|0\.)+")
_MEANS = ("mu", "mean", "normalize.mean", "normalizer.new_mean")
_STDS = ("sigma", "std", "normalize.std", "normalizer.new_std")
_NORMALIZE = {**dict.fromkeys(_MEANS, "normalize.mean"), **dict.fromkeys(_STDS, "normalize.std")}
_HEADS = ("linear.", "fc.")


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names that our `Classifier` uses."""
    return {ours: tensor for name, tensor in state.items() if (ours := _ours(_OUTER.sub("", name))) is not None}


def _ours(name: str) -> str | None:
    if name.startswith(("sub_block1.", "attacker.")):
        return None
    if name in _NORMALIZE:
        return _NORMALIZE[name]
    for head in _HEADS:
        if name.startswith(head):
            return "head." + name.removeprefix(head)
    return "body." + name


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
    if "normalize.mean" in named:
        model.normalize = Normalize(
            named["normalize.mean"].flatten().tolist(), named["normalize.std"].flatten().tolist()
        )
        for name in ("normalize.mean", "normalize.std"):
            named[name] = named[name].reshape(model.get_buffer(name).shape)
    else:
        model.normalize = nn.Identity()
    wanted = model.state_dict()
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            named.setdefault(name, torch.zeros((), dtype=torch.long))
    wrong = [n for n in {**wanted, **named} if n not in wanted or n not in named or named[n].shape != wanted[n].shape]
    if wrong:
        raise UserError(
            f"these weights are of another architecture: {len(wrong)} of {len(wanted)} tensors do not fit, first "
            f"{wrong[0]!r}, wanted {_shape(wanted.get(wrong[0]))}, given {_shape(named.get(wrong[0]))}"
        )
    model.load_state_dict(named)
    return model


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))
