"""Why a model is as robust as it is."""

from .landscape import Landscape, estimate, landscape

__all__ = ["Landscape", "estimate", "landscape"]
