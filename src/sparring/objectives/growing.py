"""Memory whose size is known only when the first batch is there."""

from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """A tensor that may be replaced by a larger one; when it is loaded, it takes the shape of the saved one.

    Args:
        *shape: Its shape at first.
    """

    held: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(shape))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.held = self.held.new_zeros(state_dict[prefix + "held"].shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
