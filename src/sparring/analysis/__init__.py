"""Why a model is as robust as it is."""

from .complexity import complexity
from .information import Information, effective, information
from .inversion import Inversion, Inverter, annealed, interpolated, inversion, invert, visualised
from .landscape import Landscape, estimate, landscape
from .likeness import psnr, ssim
from .representation import (
    MutualInformation,
    Reading,
    Representation,
    effective_rank,
    mutual_information,
    representation,
)
from .stability import Stability, bound, losses, stability
from .transfer import Mode, Transferred, Tuning, shots, task_distance, task_embedding, transfer

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
