"""What several recipes share."""

from ..attacks import FGSM, PGD, Restarts
from ..evaluate import WhiteBox
from ..recipe import Evaluation
from ..threats import L2, Linf


def pgd_50_10(threat: Linf | L2, examples: int | None = None) -> Evaluation:
    """FGSM, and PGD-50 with 10 restarts and steps of eps / 4, as in https://arxiv.org/abs/2001.03994.

    An example rests once it is fooled, which changes no result.
    """
    strong = Restarts(PGD(threat, steps=50, step_size=threat.eps / 4, patience=0), 10)
    return Evaluation({"fgsm": WhiteBox(FGSM(threat)), "pgd-50-10": WhiteBox(strong)}, examples)


def select_by_pgd(threat: Linf | L2, steps: int = 10) -> PGD:
    """The attack by which the best epoch is chosen on the held-out part."""
    return PGD(threat, steps=steps, step_size=threat.eps / 4, patience=0)
