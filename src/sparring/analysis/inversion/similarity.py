"""Measures of the similarity of two images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import UserError

WINDOW, SIGMA = 11, 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB: -10 log10 of the mean squared error.

    It is at most 100, the value for equal images.

    Args:
        a: Images `[B, C, H, W]` in [0, 1].
        b: Images to compare with, of the same shape.

    Returns:
        The ratio `[B]` of each pair, in dB.
    """
    return -10 * (a - b).double().square().flatten(1).mean(1).clamp_min(1e-10).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity of pairs of images.

    The window is Gaussian, of 11x11 pixels and standard deviation 1.5; K is 0.01 and 0.03, and covariances are divided
    by N. The result is the mean over channels and over all places where the window fits: as in scikit-image with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1. Images smaller than 11x11 use the
    largest odd window that fits.

    Args:
        a: Images `[B, C, H, W]` in [0, 1].
        b: Images to compare with, of the same shape.

    Returns:
        The similarity `[B]` of each pair, 1 for equal images.

    Raises:
        UserError: If the shapes differ, or the images are smaller than 3x3, the smallest window.

    References:
        SSIM: https://doi.org/10.1109/TIP.2003.819861.
    """
    least = min(a.shape[2:])
    size = min(WINDOW, least - 1 + least % 2)
    if size < 3 or a.shape != b.shape:
        raise UserError(f"SSIM compares images of one shape and at least 3x3 pixels, not {a.shape} and {b.shape}")
    place = torch.arange(size, dtype=torch.float64, device=a.device) - size // 2
    line = (-0.5 * (place / SIGMA).square()).exp()
    line = line / line.sum()
    window = (line[:, None] * line).expand(a.shape[1], 1, size, size)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, window, groups=z.shape[1])

    x, y = a.double(), b.double()
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * both + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return found.flatten(1).mean(1)
