"""The training step, the training loop, and the hooks that run around the steps."""

from .averaging import EMA, SWA
from .engine import Method, State, TrainingLoop, train_step
from .example_history import ExampleHistory
from .flatness import ASAM, RWP, SAM
from .free import Free
from .guard import Guard
from .hooks import Interrupted, Saving, TrainingProgress
from .optimizers import LAMB, LARS, SGD, Adam, AdamW, RMSProp
from .updates import AWP, BatchLoss, OptimizerStep, backward, gradients

__all__ = [
    "ASAM",
    "AWP",
    "EMA",
    "LAMB",
    "LARS",
    "RWP",
    "SAM",
    "SGD",
    "SWA",
    "Adam",
    "AdamW",
    "BatchLoss",
    "ExampleHistory",
    "Free",
    "Guard",
    "Interrupted",
    "Method",
    "OptimizerStep",
    "RMSProp",
    "Saving",
    "State",
    "TrainingLoop",
    "TrainingProgress",
    "backward",
    "gradients",
    "train_step",
]
