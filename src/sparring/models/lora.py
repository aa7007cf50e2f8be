"""Low-rank adaptation of a classifier's body, by peft: `pip install 'sparring[lora]'`."""

import copy
import re
from typing import TypeVar

from torch import nn

from ..core.errors import UserError, need_whole
from ..core.optional import library
from ..core.types import Classifier

M = TypeVar("M", bound=nn.Module)


def lora(model: Classifier, rank: int = 8, alpha: float | None = None) -> Classifier:
    """Adds low-rank adapters to the linear layers of a body, so that they are trained and the body's weights are not.

    At first the adapters change nothing. The head is trained as before. Layers that other modules read the weights of,
    as in `torch.nn.MultiheadAttention`, get no adapter.

    Args:
        model: The classifier, which is changed in place.
        rank: Rank of the adapters, at least 1.
        alpha: The product of the two factors of an adapter is multiplied by `alpha` / `rank`; None for `rank`.

    Returns:
        The classifier. `merged` gives one without adapters.

    Raises:
        UserError: If peft cannot be imported, `rank` is no whole number above 0, or the body has no linear layer.

    References:
        LoRA: https://arxiv.org/abs/2106.09685.
    """
    need_whole("rank", rank)
    peft = library("peft", "lora", "low-rank adaptation")
    layers = [name for name, layer in model.body.named_modules() if name and type(layer) is nn.Linear]
    if not layers:
        raise UserError(
            f"the body of the model, a {type(model.body).__name__}, has no linear layer that an adapter could be added "
            "to: train its weights"
        )
    wanted = "|".join(map(re.escape, layers))
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=wanted)
    peft.inject_adapter_in_model(config, model.body)
    return model


def merged(model: M) -> M:
    """Adds the adapters of `lora` to the weights of their layers.

    Args:
        model: The model, which is not changed.

    Returns:
        A copy without adapters, which gives the same outputs up to rounding; a model without adapters itself.
    """
    if not any(_adapts(layer) for layer in model.modules()):
        return model
    found = copy.deepcopy(model)
    for name, layer in list(found.named_modules()):
        if _adapts(layer):
            layer.merge()
            found.set_submodule(name, layer.get_base_layer())
    return found


def _adapts(layer: nn.Module) -> bool:
    """Return True for a layer of peft: only where there is one, peft has been imported."""
    return hasattr(layer, "get_base_layer") and hasattr(layer, "merge")
