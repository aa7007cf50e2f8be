"""A linear reading of features: multinomial logistic regression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

PENALTY = 1e-3


@torch.enable_grad()
def linear_probe(
    features: Tensor, y: Tensor, num_classes: int, penalty: float = PENALTY, iterations: int = 200
) -> nn.Linear:
    """The layer that minimises mean cross-entropy + `penalty` / 2 x |W|² on standardised features `[N, F]`, `y` `[N]`.

    By L-BFGS in double precision; the standardisation is inside the layer. Raises `UserError` for features that are
    not finite.
    """
    z = features.detach().flatten(1).double()
    if not bool(z.isfinite().all()):
        raise UserError("the features for a linear probe are NaN or infinite: the encoder has diverged")
    mean, spread = z.mean(0), z.std(0).clamp_min(1e-6)
    z = (z - mean) / spread
    weight = torch.zeros(num_classes, z.shape[1], dtype=z.dtype, device=z.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=z.dtype, device=z.device, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(z @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    layer = nn.Linear(z.shape[1], num_classes).to(features.device)
    with torch.no_grad():
        layer.weight.copy_(weight / spread)
        layer.bias.copy_(bias - (weight / spread) @ mean)
    return layer
