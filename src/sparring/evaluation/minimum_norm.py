"""The smallest eps at which each example is broken, and so the robust accuracy at every eps."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..attacks import DDN, FAB, MinimumNormAttack, NearestAdversarial
from ..attacks.losses import Margin, microbatched
from ..attacks.threats import L1, L2, Linf
from ..core.errors import UserError
from ..core.modes import eval_mode, frozen
from ..core.rng import Rng
from ..core.types import Threat
from .adversaries import Dividing


@dataclass(frozen=True, slots=True)
class MinimumNorm(Dividing):
    """Minimum-norm attacks on every example, of which the nearest adversarial example counts.

    As an adversary, it gives the nearest adversarial examples, and the clean images where it finds none.

    Args:
        threat: The threat whose norm measures the distance; its eps bounds nothing.
        attacks: The minimum-norm attacks, which run in turn on all examples.
        at_once: Number of images that pass through the model at once; None for all. It has no influence on results.
    """

    threat: Threat
    attacks: tuple[MinimumNormAttack, ...]

    @classmethod
    def of(cls, threat: Threat, steps: int = 50) -> "MinimumNorm":
        """Use untargeted FAB, and for L2 also DDN with twice the steps.

        Args:
            threat: `Linf`, `L2` or `L1`.
            steps: Steps of FAB.

        Returns:
            The adversary.

        Raises:
            UserError: For another set than these three balls.
        """
        if not isinstance(threat, Linf | L2 | L1):
            raise UserError(f"smallest distances are found for Linf, L2 and L1, not for {threat!r}")
        fab = FAB(threat, steps)
        return cls(threat, (fab, DDN(2 * steps)) if isinstance(threat, L2) else (fab,))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        found = NearestAdversarial.none(x)
        with eval_mode(model), frozen(model):
            for attack in self.attacks:
                points, norm = attack.closest(microbatched(Margin(model.__call__, y), self.at_once), x, rng)
                norm = self.threat.norm(points - x).where(norm.isfinite(), norm)  # an attack may have another norm
                found.keep(slice(None), norm.isfinite(), points, norm)
        return found.points
