"""The fast path: what attacks search on, and what a process does to be quick. No other room knows how."""

from .backend import AcceleratedCopy, Compile, OriginalModel, Precision, computes_bf16, worth_compiling
from .layout import prefer_channels_last
from .process import tune_process

__all__ = [
    "AcceleratedCopy",
    "Compile",
    "OriginalModel",
    "Precision",
    "computes_bf16",
    "prefer_channels_last",
    "tune_process",
    "worth_compiling",
]
