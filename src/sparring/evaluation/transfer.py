"""Attacks on another model, whose adversarial examples are then shown to the evaluated one."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..attacks.losses import CE
from ..core.errors import UserError
from ..core.gate import as_taken
from ..core.rng import Rng
from ..core.types import Attack, Forward, PerExampleLoss
from ..core.validation import check_attack
from .adversaries import Dividing, WhiteBox
from .journal import fingerprint


@dataclass(frozen=True, slots=True)
class Transfer(Dividing):
    """A transfer attack: it attacks a surrogate and never asks the evaluated model.

    Args:
        name: Name of the surrogate, for people.
        fingerprint: Hash of the weights of the surrogate.
        attack: The attack.
        loss: Builds the loss that the attack maximises from the surrogate and the labels `[B]`.
        surrogate: The surrogate, on the device of the evaluated model; None where a recipe was read from a file.
        at_once: Number of images that pass through the surrogate at once; None for all. It has no influence on results.

    Raises:
        UserError: If `attack` is no attack; when it runs, if there is no surrogate.

    References:
        Transfer: https://arxiv.org/abs/1605.07277.
    """

    name: str
    fingerprint: str
    attack: Attack
    loss: Callable[[Forward, Tensor], PerExampleLoss] = CE
    surrogate: nn.Module | None = field(default=None, repr=False, compare=False, metadata={"on_disk": False})

    def __post_init__(self) -> None:
        check_attack(self.attack)

    @classmethod
    def of(cls, name: str, surrogate: nn.Module, attack: Attack) -> "Transfer":
        """Attack a surrogate.

        Args:
            name: Name of the surrogate, for people.
            surrogate: The surrogate, which gives logits.
            attack: The attack, which maximises cross-entropy; one that stops at the first point that fools gives weak
                examples for other models.

        Returns:
            The adversary.
        """
        return cls(name, fingerprint(surrogate.state_dict()), attack, surrogate=surrogate)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        del model
        if self.surrogate is None:
            raise UserError(
                f"the surrogate {self.name} was handed over as an object, which no file holds: name it again, with "
                "--transfer-from"
            )
        taken = as_taken(self.surrogate, x)  # a surrogate may have another precision
        return WhiteBox(self.attack, self.loss, at_once=self.at_once)(self.surrogate, taken, y, rng).to(x)
