"""Why a model is as robust as it is."""

from .landscape import Landscape, landscape

__all__ = ["Landscape", "landscape"]
