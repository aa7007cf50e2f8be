from ..attacks import CleanStart
from ..core.errors import UserError
from ..core.types import Attack, Objective


def leave_clean_image(objective: Objective, attack: Attack) -> None:
    """Check that an attack can raise a distance from the clean prediction, which has no gradient at the clean image.

    Args:
        objective: The objective, which the message names.
        attack: The attack.

    Raises:
        UserError: If the attack begins at the clean image.
    """
    if isinstance(getattr(attack, "start", None), CleanStart):
        raise UserError(
            f"the attack of {type(objective).__name__} begins at the clean image, where its loss has no gradient: give "
            "it another start, such as GaussianStart()"
        )
