"""Measurements that help to explain why a model is as robust as it is."""

from .information.measure import Information, effective_information, measure_information
from .inversion.measure import Inversion, Inverter, annealed, interpolated, invert, measure_inversion, visualised
from .inversion.similarity import psnr, ssim
from .landscape.measure import Landscape, estimate, measure_landscape
from .memorization.complexity import measure_complexity
from .memorization.stability import Stability, bound, losses, measure_stability
from .representation.measure import (
    MutualInformation,
    Reading,
    Representation,
    effective_rank,
    measure_representation,
    mutual_information,
)
from .transfer.measure import Mode, Transferred, Tuning, measure_transfer, shots, task_distance, task_embedding

PHASES = ("first third", "second third", "last third")
"""Parts of training in each of which the length of the gradient is averaged."""

__all__ = [
    "PHASES",
    "Information",
    "Inversion",
    "Inverter",
    "Landscape",
    "Mode",
    "MutualInformation",
    "Reading",
    "Representation",
    "Stability",
    "Transferred",
    "Tuning",
    "annealed",
    "bound",
    "effective_information",
    "effective_rank",
    "estimate",
    "interpolated",
    "invert",
    "losses",
    "measure_complexity",
    "measure_information",
    "measure_inversion",
    "measure_landscape",
    "measure_representation",
    "measure_stability",
    "measure_transfer",
    "mutual_information",
    "psnr",
    "shots",
    "ssim",
    "task_distance",
    "task_embedding",
    "visualised",
]
