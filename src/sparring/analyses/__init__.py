"""Runs looked into: their models and training sets are loaded, measured, and what was found is written beside them."""

from .information import informed, look_at_information, write_information
from .inversion import Inverted, how_to_invert, inverted, judge_of, look_at_inversion, look_together, write_inversion
from .memorization import (
    Agreement,
    Memorization,
    agreement,
    difficulties,
    look_for_memorization,
    memorization,
    write_memorization,
)
from .opening import Looked, last_of, opened
from .representation import look_at_representation, represented, write_representation
from .transfer import Transfers, look_at_transfer, task_for, transfers, write_transfers

__all__ = [
    "Agreement",
    "Inverted",
    "Looked",
    "Memorization",
    "Transfers",
    "agreement",
    "difficulties",
    "how_to_invert",
    "informed",
    "inverted",
    "judge_of",
    "last_of",
    "look_at_information",
    "look_at_inversion",
    "look_at_representation",
    "look_at_transfer",
    "look_for_memorization",
    "look_together",
    "memorization",
    "opened",
    "represented",
    "task_for",
    "transfers",
    "write_information",
    "write_inversion",
    "write_memorization",
    "write_representation",
    "write_transfers",
]
