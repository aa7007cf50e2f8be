"""Self-supervised adversarial training (https://arxiv.org/abs/1911.06470), read by nearest neighbours."""

from dataclasses import replace
from typing import Literal

from ..attacks import PGD
from ..attacks.threats import Linf
from ..core.schedules import MultiStep, WarmUp
from ..core.serialization import Build
from ..data import Crop, FashionMNIST, Flip, Grey, Jitter, ResizedCrop
from ..models import amdim, contrastive_encoder
from ..objectives.acl import ACL
from ..objectives.contrastive import ContrastiveAT, ContrastivePretraining, KNNContrastiveAT
from ..objectives.contrasts import InfoNCE, Multiscale, NTXent
from ..objectives.instance_discrimination import InstanceDiscrimination
from ..objectives.rocl import RoCL
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.optimizers import Adam
from ._common import select_by_pgd
from ._digits import pgd_on_digits
from ._selfsup import as_released, hardened, pretrained, worst_on_neighbours
from .cifar10 import cifar10_rn18_pgd

Maximized = Literal["contrast", "distance", "cosine"]

_DIGITS = (Crop(1), ResizedCrop((0.5, 1.0)), Jitter(saturation=0.0))
_CLOTHES = (Crop(2, "reflect"), Flip(), ResizedCrop((0.4, 1.0)), Jitter(saturation=0.0))


def digits_amdim(eps: float = 0.1) -> Recipe:
    """AMDIM of a tiny encoder on the digits without labels, read by 15 nearest neighbours: half a minute.

    The starting point of self-supervised adversarial training at Linf `eps`: next, `sparring train digits_amdim_sat`.
    """
    base = replace(pgd_on_digits(eps), model=Build(amdim, width=16, dim=64, depth=1, k=15), batch_size=128)
    objective = ContrastivePretraining(Multiscale(regularise=0.05))
    recipe = pretrained(base, objective, epochs=30, lr=1e-3, augment=_DIGITS)
    return replace(recipe, evaluation=worst_on_neighbours(Linf(eps), steps=20, restarts=2))


def digits_amdim_sat(eps: float = 0.1, start: str = "digits_amdim", maximizes: Maximized = "contrast") -> Recipe:
    """Self-supervised adversarial training of that encoder, without labels, Linf 0.1: half a minute.

    It starts from the run `digits_amdim` in the same parent folder as its own.
    """
    attack = PGD(Linf(eps), steps=5, step_size=eps / 3)
    return hardened(digits_amdim(eps), start, attack, ContrastiveAT(Multiscale(), maximizes), epochs=10, lr=5e-4)


def fashion_amdim(eps: float = 0.05, width: int = 16) -> Recipe:
    """AMDIM of a small encoder on Fashion-MNIST without labels, read by 75 nearest neighbours.

    The starting point of self-supervised adversarial training at Linf `eps`: next, `sparring train fashion_sat`.
    """
    return _fashion(eps, ContrastivePretraining(Multiscale(regularise=0.05)), width)


def fashion_simclr(eps: float = 0.05, width: int = 16) -> Recipe:
    """SimCLR (https://arxiv.org/abs/2002.05709) with a small CNN on Fashion-MNIST, read by 75 nearest neighbours."""
    recipe = _fashion(eps, ContrastivePretraining(NTXent(0.2)), width)
    return replace(recipe, model=Build(contrastive_encoder, width=width))


def fashion_npid(eps: float = 0.05, width: int = 16) -> Recipe:
    """Instance discrimination (NPID, https://arxiv.org/abs/1805.01978) with a small CNN on Fashion-MNIST.

    The kNN head reads the projection that the loss contrasts: 128 numbers, linear in the features.
    """
    recipe = _fashion(eps, InstanceDiscrimination(), width)
    return replace(
        recipe, model=Build(contrastive_encoder, width=width, projection=128, read="projection"), views_per_image=1
    )


def fashion_sat(
    eps: float = 0.05,
    start: str = "fashion_amdim",
    train: Literal["amdim", "simclr", "npid"] = "amdim",
    maximizes: Maximized = "contrast",
) -> Recipe:
    """Self-supervised adversarial training on Fashion-MNIST, without labels, Linf 0.05: hundreds of updates.

    It starts from the run `start`, whose kind `train` gives: --start fashion_simclr --train simclr.
    """
    before = {"amdim": fashion_amdim, "simclr": fashion_simclr, "npid": fashion_npid}[train](eps)
    attack = PGD(Linf(eps), steps=5, step_size=eps / 3)
    loss = Multiscale() if train == "amdim" else InfoNCE()
    return hardened(before, start, attack, ContrastiveAT(loss, maximizes), epochs=1, lr=5e-4)


def fashion_sat_released(eps: float = 0.05, start: str = "fashion_amdim") -> Recipe:
    """Self-supervised AT as in the paper's released code, on Fashion-MNIST, Linf 0.05: labels, fooled images only.

    The attack, ten steps of eps / 6, moves away from the neighbours of the label towards those of the nearest other
    class, and only images that it fools are contrasted. The bank is encoded anew every ten steps; in the released code
    at every step.
    """
    return _released(fashion_amdim(eps), start, eps, unit=0.05, lr=5e-4)


def fashion_rocl(eps: float = 0.05, width: int = 16) -> Recipe:
    """Robust contrastive learning (RoCL, https://arxiv.org/abs/2006.07589), from scratch: Fashion-MNIST, Linf 0.05."""
    return _attacked(fashion_simclr(eps, width), eps, RoCL())


def fashion_acl(eps: float = 0.05, width: int = 16) -> Recipe:
    """Adversarial contrastive learning (ACL, dual stream, https://arxiv.org/abs/2010.13337) from scratch, Linf 0.05.

    On Fashion-MNIST. In the paper, the clean and the adversarial stream have separate batch norm; here they share it.
    """
    return _attacked(fashion_simclr(eps, width), eps, ACL())


def cifar10_amdim(eps: float = 2 / 255) -> Recipe:
    """AMDIM pre-training on CIFAR-10, 300 epochs, read by 75 nearest neighbours (untested here: no data).

    The published layers and settings: width 128, three units per block, Adam 2e-4 with betas 0.8 and 0.999, weight
    decay 1e-5, a warm-up of 500 steps, batch 200, rate x 0.2 at epochs 250 and 280. Features are 128 numbers, as in
    https://arxiv.org/abs/1911.06470 (the released encoder, made for 512 and more, refuses so few). Flips are drawn for
    each view, in the released code for both at once, and jitter does not change the hue. That paper's encoder, whose
    layers were not released, has 84.5 % with nearest neighbours (its notebook).
    """
    augment = (Flip(), Crop(4, "reflect", p=0.8), Jitter(), Grey(0.25))
    objective = ContrastivePretraining(Multiscale(regularise=0.05))
    return replace(
        pretrained(cifar10_rn18_pgd(eps), objective, epochs=300, lr=2e-4, augment=augment),
        model=Build(amdim, published=True),
        lr=WarmUp(MultiStep(2e-4, (250, 280), 0.2), 500 / 225),
        batch_size=200,
        optimizer=Adam(betas=(0.8, 0.999), weight_decay=1e-5),
        held_out=0.1,
        evaluation=worst_on_neighbours(Linf(eps), 2 / 255, examples=1000),
    )


def cifar10_amdim_sat_released(eps: float = 2 / 255, start: str = "cifar10_amdim") -> Recipe:
    """Self-supervised AT on CIFAR-10 as released, Linf 2/255, 450 updates (untested here: no data).

    Adam 1e-4, batch 100, steps of a third of 1/255, ten at 2/255 and 20 at 4/255, 300 guides by label, only fooled
    images are contrasted (https://arxiv.org/abs/1911.06470). Its eps of 0.03, applied to normalised images, is likely
    about 2/255 of pixels, and its 0.06 about 4/255. Its notebook and log report 84.5 % accuracy before and about 74.5 %
    after, of which 52 % and 86 % are defended.
    """
    return _released(cifar10_amdim(eps), start, eps, unit=2 / 255, lr=1e-4)


def _released(before: Recipe, start: str, eps: float, unit: float, lr: float) -> Recipe:
    objective = KNNContrastiveAT(Multiscale(), maximizes="guides", labels="all", only_fooled=True)
    return hardened(before, start, as_released(Linf(eps), unit), objective, epochs=1, lr=lr)


def _fashion(eps: float, objective: ContrastivePretraining | InstanceDiscrimination, width: int) -> Recipe:
    model = Build(amdim, width=width, dim=64, depth=1)
    base = replace(pgd_on_digits(eps), data=FashionMNIST(), model=model, batch_size=200, held_out=0.02)
    recipe = pretrained(base, objective, epochs=8, lr=1e-3, augment=_CLOTHES)
    return replace(recipe, evaluation=worst_on_neighbours(Linf(eps), 0.05, examples=500, steps=20, restarts=2))


def _attacked(pretraining: Recipe, eps: float, objective: RoCL | ACL) -> Recipe:
    attack = PGD(Linf(eps), steps=5, step_size=eps / 3)
    return replace(pretraining, method=Method(attack, objective), selection=select_by_pgd(Linf(eps)))
