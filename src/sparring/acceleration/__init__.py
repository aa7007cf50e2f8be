"""Acceleration: fast copies of a model for attacks, and process settings for speed. No other room knows the details."""

from .backend import AcceleratedCopy, Compile, OriginalModel, Precision, computes_bf16, worth_compiling
from .captured import Unread
from .layout import prefer_channels_last
from .process import tune_process

__all__ = [
    "AcceleratedCopy",
    "Compile",
    "OriginalModel",
    "Precision",
    "Unread",
    "computes_bf16",
    "prefer_channels_last",
    "tune_process",
    "worth_compiling",
]
