"""Measurements that help to explain why a model is as robust as it is."""

from .information.effective import effective_information
from .information.measure import Information, measure_information
from .inversion.measure import (
    Inversion,
    Inverter,
    interpolate,
    invert,
    invert_annealed,
    measure_inversion,
    visualize_features,
)
from .inversion.similarity import psnr, ssim
from .landscape.measure import LossLandscape, estimate, measure_landscape
from .memorization.complexity import complexity_measures
from .memorization.stability import Stability, measure_gradient_stability, robustness_bound, standard_methods
from .representation.measure import (
    MutualInformation,
    Reading,
    Representation,
    effective_rank,
    measure_representation,
    mutual_information,
)
from .transfer.measure import (
    FineTuning,
    Mode,
    TransferResult,
    measure_transfer_learning,
    shots,
    task_distance,
    task_embedding,
)

PHASES = ("first third", "second third", "last third")
"""Parts of training in each of which the length of the gradient is averaged."""

__all__ = [
    "PHASES",
    "FineTuning",
    "Information",
    "Inversion",
    "Inverter",
    "LossLandscape",
    "Mode",
    "MutualInformation",
    "Reading",
    "Representation",
    "Stability",
    "TransferResult",
    "complexity_measures",
    "effective_information",
    "effective_rank",
    "estimate",
    "interpolate",
    "invert",
    "invert_annealed",
    "measure_gradient_stability",
    "measure_information",
    "measure_inversion",
    "measure_landscape",
    "measure_representation",
    "measure_transfer_learning",
    "mutual_information",
    "psnr",
    "robustness_bound",
    "shots",
    "ssim",
    "standard_methods",
    "task_distance",
    "task_embedding",
    "visualize_features",
]
