"""Memory format of the weights in training."""

import torch
from torch import Tensor, nn

from ..core.modes import eval_mode
from .convolution import unsafe_in_channels_last


def prefer_channels_last(model: nn.Module, few: Tensor) -> None:
    """Put the weights of convolutions in channels-last order, if the model runs with it on a few images.

    The values of the weights stay the same. A model that calls `view` on the output of a convolution does not run in
    this order and is left unchanged.

    Args:
        model: The model, changed in place.
        few: A few images `[B, C, H, W]` on which the model is run forward and backward as a check.
    """
    if unsafe_in_channels_last(model):
        return
    before = {p: p.data for p in model.parameters() if p.ndim == 4}
    for p, data in before.items():
        p.data = data.contiguous(memory_format=torch.channels_last)
    try:
        with eval_mode(model), torch.enable_grad():
            wanted = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(model(few).sum(), wanted, allow_unused=True)
    except RuntimeError:
        for p, data in before.items():
            p.data = data
