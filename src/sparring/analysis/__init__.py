"""Why a model is as robust as it is."""

from .information.measure import Information, effective, information
from .inversion.measure import Inversion, Inverter, annealed, interpolated, inversion, invert, visualised
from .inversion.similarity import psnr, ssim
from .landscape.measure import Landscape, estimate, landscape
from .memorization.complexity import complexity
from .memorization.stability import Stability, bound, losses, stability
from .representation.measure import (
    MutualInformation,
    Reading,
    Representation,
    effective_rank,
    mutual_information,
    representation,
)
from .transfer.measure import Mode, Transferred, Tuning, shots, task_distance, task_embedding, transfer

PHASES = ("first third", "second third", "last third")
"""Of training, in which the length of the gradient is averaged."""

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
    "complexity",
    "effective",
    "effective_rank",
    "estimate",
    "information",
    "interpolated",
    "inversion",
    "invert",
    "landscape",
    "losses",
    "mutual_information",
    "psnr",
    "representation",
    "shots",
    "ssim",
    "stability",
    "task_distance",
    "task_embedding",
    "transfer",
    "visualised",
]
