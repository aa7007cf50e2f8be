"""Why a model is as robust as it is."""

from .complexity import complexity
from .landscape import Landscape, estimate, landscape
from .memory import Remember, remembering
from .representation import Information, Reading, Representation, effective_rank, information, representation
from .stability import Stability, bound, losses, stability

PHASES = ("first third", "second third", "last third")
"""Of training, in which the length of the gradient is averaged."""

__all__ = [
    "PHASES",
    "Information",
    "Landscape",
    "Reading",
    "Remember",
    "Representation",
    "Stability",
    "bound",
    "complexity",
    "effective_rank",
    "estimate",
    "information",
    "landscape",
    "losses",
    "remembering",
    "representation",
    "stability",
]
