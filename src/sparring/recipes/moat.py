"""Multi-stage Optimization based Adversarial Training (https://arxiv.org/abs/2106.15357).

The abstract is all that is known to us: stages of benign, single-step and multi-step examples, visited periodically.
Order, lengths, weights and steps are ours, and parameters of the recipes.
"""

from dataclasses import replace

from ..attacks.threats import Linf
from ..core.schedules import MultiStep
from ..runs.recipe import Recipe
from ._moat import Reading, moat
from .single_step import cifar10_prn18_fgsm_rs
from .small import fashion_pgd


def cifar10_prn18_moat(
    eps: float = 8 / 255,
    benign: int = 1,
    single: int = 4,
    multi: int = 1,
    period: float = 1.0,
    slot: int | None = None,
    order: str = "bsm",
    steps: int = 7,
    reading: Reading = "pure",
    clean: float = 0.5,
    alpha: float = 1.0,
) -> Recipe:
    """MOAT of PreActResNet-18 on CIFAR-10, Linf 8/255, 110 epochs (untested here: no data).

    A `period` is an epoch of clean images, FGSM-RS and PGD-7 in the shares `benign`, `single` and `multi`: 2.83 passes
    per step. Training ends with a period, and so with its multi-step stage, at the lowest rate. With `slot`, a stage
    lasts its share times `slot` steps, and training may end in any stage. `reading` is "pure" (one kind of example in a
    stage), "mixed" (clean images with weight `clean` in every stage) or "mixup". `order` may leave letters out. The
    schedule is that of Bag of Tricks, the net that of `cifar10_prn18_fgsm_rs`; those of the paper are not known to us.
    """
    threat = Linf(eps)
    return replace(
        cifar10_prn18_fgsm_rs(eps),
        method=moat(
            threat,
            {"b": benign, "s": single, "m": multi},
            order,
            period,
            slot,
            steps,
            threat.eps / 4,
            reading,
            clean,
            alpha,
        ),
        epochs=110,
        lr=MultiStep(0.1, (100, 105)),
    )


def fashion_moat(
    eps: float = 0.1,
    benign: int = 1,
    single: int = 4,
    multi: int = 1,
    period: float = 1.0,
    slot: int | None = None,
    order: str = "bsm",
    steps: int = 5,
    reading: Reading = "pure",
    clean: float = 0.5,
    alpha: float = 1.0,
) -> Recipe:
    """MOAT of a small CNN on Fashion-MNIST, Linf 0.1: `fashion_pgd` by stages, at less than half of its passes.

    The stages are those of `cifar10_prn18_moat`.
    """
    threat = Linf(eps)
    stages = {"b": benign, "s": single, "m": multi}
    method = moat(threat, stages, order, period, slot, steps, threat.eps / 3, reading, clean, alpha)
    return replace(fashion_pgd(eps), method=method)
