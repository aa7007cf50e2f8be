"""The training step, the training loop, and the hooks that run around the steps."""

from .averaging import EMA, SWA
from .engine import Loop, Method, State, train_step
from .example_history import ExampleHistory
from .free import Free
from .guard import Guard
from .hooks import Interrupted, Saving, TrainingProgress
from .optimizers import SGD, Adam, AdamW
from .updates import AWP, GradientStep

__all__ = [
    "AWP",
    "EMA",
    "SGD",
    "SWA",
    "Adam",
    "AdamW",
    "ExampleHistory",
    "Free",
    "GradientStep",
    "Guard",
    "Interrupted",
    "Loop",
    "Method",
    "Saving",
    "State",
    "TrainingProgress",
    "train_step",
]
