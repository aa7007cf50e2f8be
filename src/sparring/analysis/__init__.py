"""Why a model is as robust as it is."""

from .landscape import Landscape, estimate, landscape
from .memory import Remember

__all__ = ["Landscape", "Remember", "estimate", "landscape"]
