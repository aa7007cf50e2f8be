"""The order in memory of the weights that training moves."""

import torch
from torch import Tensor, nn

from ..core.modes import eval_mode
from .convolution import unsafe_in_channels_last


def prefer_channels_last(model: nn.Module, few: Tensor) -> None:
    """Puts the weights of convolutions in channels-last order, if the model runs with it, as seen on a few images.

    The numbers stay the same. A model that calls `view` on what a convolution gives does not run, and is left alone.
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
