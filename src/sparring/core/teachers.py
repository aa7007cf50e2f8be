"""Frozen models that objectives learn from. A checkpoint holds a hash of their weights, and not the weights."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .types import ForwardCache


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen model that an objective learns from, in eval mode.

    Args:
        source: A run folder, whose best weights are used, or the name of a run next to the folder of this run, where
            {seed} stands for the seed; or a file of weights; or the name of a published model, as `sparring.load`
            takes it; or {original} for the model of this run as it is before the first step.
        model: The model as an object, which then needs no source (`Teacher.of`). A file only describes it.
    """

    source: str
    model: nn.Module | None = field(default=None, repr=False, compare=False, metadata={"on_disk": False})

    @classmethod
    def of(cls, model: nn.Module) -> "Teacher":
        """Make a teacher of a model."""
        count = sum(p.numel() for p in model.parameters())
        return cls(f"{type(model).__name__} with {count:,} weights, hash {weights_hash(model):x}", model)

    def memory(self) -> "TeacherMemory":
        """Return what an objective returns from `init`; training loads the model into it if it has a source."""
        return TeacherMemory(self)


ORIGINAL = Teacher("{original}")
"""The model that is trained, as it is before the first step."""


class TeacherMemory(nn.Module):
    """The model of a teacher, which is moved with the memory of a training, but not saved with it.

    Args:
        teacher: The teacher.

    Raises:
        UserError: When loaded, if the saved hash is that of other weights; in a call, if the model was not loaded.
    """

    fingerprint: Tensor

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("fingerprint", torch.zeros((), dtype=torch.long))
        self._held: tuple[ForwardCache, ...] = ()  # in a tuple, so that it is no submodule
        if teacher.model is not None:
            self.fill(copy.deepcopy(teacher.model))

    @property
    def is_filled(self) -> bool:
        """True if the model is loaded."""
        return bool(self._held)

    def fill(self, model: nn.Module) -> None:
        """Take the model, which is switched to eval mode and frozen."""
        self._held = (ForwardCache(model.to(self.fingerprint.device).eval().requires_grad_(False)),)
        self.fingerprint.fill_(weights_hash(model))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the teacher; those of the latest two tensors are remembered."""
        return self._lens().logits(x)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of the teacher, which must be a `Classifier`; the latest two are remembered."""
        return self._lens().features(x)

    def _lens(self) -> ForwardCache:
        if not self._held:
            raise UserError(
                f"the teacher {self.teacher.source!r} is not loaded: sparring.fit loads it; in a loop of your own, "
                "give the model, as Teacher.of(sparring.load(..))"
            )
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TeacherMemory":
        super()._apply(fn, recurse)
        for held in self._held:
            held.model._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = int(state_dict[prefix + "fingerprint"])
        if self._held and saved != int(self.fingerprint):
            raise UserError(
                f"the teacher {self.teacher.source!r} has other weights than when this training began: restore them, "
                "or start a new run"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def weights_hash(model: nn.Module) -> int:
    """Computes a hash of the weights of a model.

    Args:
        model: The model.

    Returns:
        The hash of names and values of its weights and buffers, 56 bits.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "big")
