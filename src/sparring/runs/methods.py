"""Training methods by their names in the field."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..attacks import FGSM, PGD, Benign, GaussianStart
from ..attacks.single_step import NFGSM, MultiGrad, SignStart, ZeroGrad
from ..attacks.threats import Linf
from ..core import foreign
from ..core.errors import UserError, nearest
from ..core.types import Threat
from ..objectives.atta import ATTA
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.elle import ELLE
from ..objectives.fare import FARE
from ..objectives.fat_trades import FATTRADES
from ..objectives.gat import GAT
from ..objectives.grad_align import GradAlign
from ..objectives.ikl import IKL
from ..objectives.logit_pairing import LogitPairing
from ..objectives.mail import MAILAT, MAILTRADES
from ..objectives.mart import MART
from ..objectives.mlcat import MLCAT
from ..objectives.nuat import NuAT
from ..objectives.prior_guided import FGSMMEP
from ..objectives.regularizers import Sum
from ..objectives.score import SCORE
from ..objectives.tdat import TDAT
from ..objectives.trades import TRADES
from ..training.engine import Method
from ..training.flatness import ASAM, RWP, SAM
from ..training.free import Free
from ..training.updates import AWP

Fields = Mapping[str, Any]
Make = Callable[[Threat, int], Fields]


def _pgd(threat: Threat, steps: int) -> PGD:
    return PGD(threat, steps, threat.eps / 4 if steps > 1 else 1.25 * threat.eps)


def _near(threat: Threat, steps: int) -> PGD:
    """PGD that starts next to the image, as losses of a divergence need: its gradient is 0 at the image itself."""
    return PGD(threat, steps, threat.eps / 4, GaussianStart())


METHODS: dict[str, tuple[str, Make]] = {
    "standard": (
        "no adversary",
        lambda threat, steps: {"method": Method(Benign(), CrossEntropy()), "selection": Benign()},
    ),
    "pgd": ("PGD-AT (Madry)", lambda threat, steps: {"method": Method(_pgd(threat, steps), CrossEntropy())}),
    "trades": ("TRADES, beta 6", lambda threat, steps: {"method": Method(_near(threat, steps), TRADES(6.0))}),
    "mart": ("MART, weight 5", lambda threat, steps: {"method": Method(_near(threat, steps), MART(5.0))}),
    "ikl": ("IKL, weights 4 and 20", lambda threat, steps: {"method": Method(_near(threat, steps), IKL())}),
    "score": ("SCORE, beta 4", lambda threat, steps: {"method": Method(_pgd(threat, steps), SCORE(4.0))}),
    "mail-at": ("MAIL-AT", lambda threat, steps: {"method": Method(_near(threat, steps), MAILAT())}),
    "mail-trades": (
        "MAIL-TRADES, beta 5",
        lambda threat, steps: {"method": Method(_near(threat, steps), MAILTRADES())},
    ),
    "fat-trades": (
        "FAT with TRADES, beta 6, patience 0",
        lambda threat, steps: {"method": Method(replace(_near(threat, steps), patience=0), FATTRADES())},
    ),
    "fare": (
        "FARE, unsupervised fine-tuning of an encoder",
        lambda threat, steps: {"method": Method(_pgd(threat, steps), FARE())},
    ),
    "mlcat": ("MLCAT, threshold 1.5", lambda threat, steps: {"method": Method(_pgd(threat, steps), MLCAT())}),
    "alp": (
        "adversarial logit pairing, weight 0.5",
        lambda threat, steps: {
            "method": Method(_pgd(threat, steps), Sum((CrossEntropy(clean=0.5), LogitPairing(0.5))))
        },
    ),
    "awp": (
        "PGD-AT with adversarial weight perturbation, gamma 0.01",
        lambda threat, steps: {"method": Method(_pgd(threat, steps), CrossEntropy()), "update": AWP(0.01)},
    ),
    "sam": (
        "PGD-AT with sharpness-aware minimisation, rho 0.05",
        lambda threat, steps: {
            "method": Method(_pgd(threat, steps), CrossEntropy()),
            "update": SAM(),
        },
    ),
    "asam": (
        "PGD-AT with adaptive sharpness-aware minimisation, rho 0.5",
        lambda threat, steps: {
            "method": Method(_pgd(threat, steps), CrossEntropy()),
            "update": ASAM(),
        },
    ),
    "rwp": (
        "PGD-AT with random weight perturbation, gamma 0.01",
        lambda threat, steps: {
            "method": Method(_pgd(threat, steps), CrossEntropy()),
            "update": RWP(),
        },
    ),
    "trades-awp": (
        "TRADES with adversarial weight perturbation, gamma 0.005",
        lambda threat, steps: {"method": Method(_near(threat, steps), TRADES(6.0)), "update": AWP(0.005)},
    ),
    "fgsm-rs": (
        "FGSM from a random start, step 1.25 eps",
        lambda threat, steps: {"method": Method(_pgd(threat, 1), CrossEntropy())},
    ),
    "n-fgsm": ("N-FGSM", lambda threat, steps: {"method": Method(NFGSM(_linf(threat, "n-fgsm")), CrossEntropy())}),
    "fgsm-mep": (
        "FGSM-PGI with the prior of all previous epochs",
        lambda threat, steps: {"method": Method(FGSM(threat), FGSMMEP(_linf(threat, "fgsm-mep")))},
    ),
    "atta": (
        "ATTA, PGD that goes on from epoch to epoch",
        lambda threat, steps: {
            "method": Method(replace(_pgd(threat, steps), start=GaussianStart()), Sum((CrossEntropy(), ATTA())))
        },
    ),
    "elle": (
        "FGSM from a random start with ELLE, weight 1000",
        lambda threat, steps: {"method": Method(_pgd(threat, 1), Sum((CrossEntropy(), ELLE(_linf(threat, "elle")))))},
    ),
    "elle-a": (
        "FGSM from a random start with ELLE-A, weight 4000",
        lambda threat, steps: {
            "method": Method(
                _pgd(threat, 1), Sum((CrossEntropy(), ELLE(_linf(threat, "elle-a"), 4000.0, adaptive=True)))
            )
        },
    ),
    "gat": (
        "GAT, guided adversarial training, weight 10",
        lambda threat, steps: {"method": Method(FGSM(_linf(threat, "gat"), start=SignStart(0.5)), GAT())},
    ),
    "nuat": (
        "NuAT, nuclear norm of the changes of logits, weight 4",
        lambda threat, steps: {"method": Method(FGSM(_linf(threat, "nuat"), start=SignStart(0.5)), NuAT())},
    ),
    "tdat": (
        "TDAT, taxonomy driven fast adversarial training",
        lambda threat, steps: {"method": Method(FGSM(threat), TDAT(_linf(threat, "tdat")))},
    ),
    "zero-grad": (
        "ZeroGrad",
        lambda threat, steps: {"method": Method(ZeroGrad(_linf(threat, "zero-grad")), CrossEntropy())},
    ),
    "multi-grad": (
        "MultiGrad",
        lambda threat, steps: {"method": Method(MultiGrad(_linf(threat, "multi-grad")), CrossEntropy())},
    ),
    "grad-align": (
        "FGSM from a random start with GradAlign, weight 0.2",
        lambda threat, steps: {
            "method": Method(_pgd(threat, 1), Sum((CrossEntropy(), GradAlign(_linf(threat, "grad-align")))))
        },
    ),
    "free": ("free adversarial training, 8 replays", lambda threat, steps: {"method": Free(threat, 8)}),
}
"""Name of each method: what it is, and the fields of a recipe that it decides, for a threat and a number of steps."""


def method_named(name: str, threat: Threat, steps: int = 10) -> Fields:
    """Gives the fields of a recipe that a method decides.

    Args:
        name: Name of the method, such as `pgd`, `trades` or `mart`.
        threat: The set of its attack.
        steps: Number of steps of its attack, where it has a choice.

    Returns:
        The fields by name: `method`, and `update` where the method has one of its own.

    Raises:
        UserError: If there is no such method, or it is not defined for this threat.
    """
    known = name.lower().replace("_", "-")
    registered = foreign.plugins("methods")
    if known not in METHODS and name in registered:
        found: Fields = foreign.plugin(registered[name])(threat, steps)
        return found
    if known not in METHODS:
        raise UserError(f"no method {name!r}: {nearest(known, [*METHODS, *registered])}")
    return METHODS[known][1](threat, steps)


def _linf(threat: Threat, name: str) -> Linf:
    if not isinstance(threat, Linf):
        raise UserError(f"{name} is defined for Linf, not for {type(threat).__name__}: take pgd or trades")
    return threat
