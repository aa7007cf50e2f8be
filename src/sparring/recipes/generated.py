"""Recipes that lead the boards for CIFAR-10: generated images, CutMix, averaged weights, SiLU. None has been run."""

from dataclasses import replace

from ..attacks import PGD, RandomStart
from ..attacks.threats import Linf
from ..core.modes import batch_statistics
from ..core.schedules import Cosine, WarmUp
from ..core.serialization import Build
from ..data import CIFAR10, Crop, CutMix, ExtraData, Flip, GeneratedImages, SmoothedLabels
from ..models import dm_wide_resnet
from ..objectives.batch_norm_statistics import BatchNormStatistics
from ..objectives.trades import TRADES
from ..runs.recipe import Recipe
from ..training.averaging import EMA
from ..training.engine import Method
from ..training.optimizers import SGD
from ._common import pgd_50_10, select_by_pgd


def cifar10_wrn28_10_edm(eps: float = 8 / 255, beta: float = 5.0, images: str = "1m.npz") -> Recipe:
    """TRADES of WRN-28-10 on CIFAR-10 and EDM's images, Linf 8/255, 400 epochs (untested here: no data).

    The settings of the command in the README of https://arxiv.org/abs/2302.04638 (wzekai99/DM-Improves-AT): SiLU,
    batch 512 of which 358 are generated, rate 0.2 along a cosine after a warm-up over 2.5 % of the training,
    Nesterov momentum, weight decay 5e-4 but not of batch norm, label smoothing 0.1, weights averaged with decay
    0.995, ten steps of eps / 4 from a random start with the statistics of the batch. `images` is the file of
    generated images, which that README links to; another file is named by --extra-data generated:FILE. The README
    reports 67.31 % under AutoAttack for the best checkpoint of this net, and does not say on how many generated
    images it was trained.

    Here the warm-up is linear and the cosine is that of the whole training, and momentum of batch norm is torch's
    0.1, where their code has 0.01.
    """
    threat = Linf(eps)
    attack = PGD(threat, steps=10, step_size=threat.eps / 4, start=RandomStart())
    return Recipe(
        data=CIFAR10(),
        model=Build(dm_wide_resnet),
        normalize=False,
        extra_data=ExtraData(GeneratedImages(images), 0.7, steps_per_epoch=96),
        method=Method(attack, TRADES(beta), inner_mode=batch_statistics),
        epochs=400,
        batch_size=512,
        lr=WarmUp(Cosine(0.2), epochs=10, start=0.008),
        augment=(Crop(4), Flip(), SmoothedLabels(0.1)),
        optimizer=SGD(nesterov=True, weight_decay=5e-4, decay_vectors=False),
        averaging=EMA(0.995, warm_up=0.025),
        held_out=1024 / 50_000,
        selection=select_by_pgd(threat, steps=40),
        evaluation=pgd_50_10(threat),
    )


def cifar10_wrn70_16_edm(eps: float = 8 / 255, beta: float = 5.0, images: str = "50m.npz") -> Recipe:
    """TRADES of WRN-70-16 on CIFAR-10 and EDM's images, Linf 8/255, 400 epochs (untested here: no data).

    `cifar10_wrn28_10_edm` with the larger net, for which the README reports 70.69 % under AutoAttack. It gives no
    command for this net, so batch, rate and number of epochs are those for WRN-28-10.
    """
    return replace(cifar10_wrn28_10_edm(eps, beta, images), model=Build(dm_wide_resnet, depth=70, width=16))


def cifar10_wrn28_10_ddpm(eps: float = 8 / 255, beta: float = 6.0, images: str = "cifar10_ddpm.npz") -> Recipe:
    """TRADES with CutMix of WRN-28-10 on CIFAR-10 and DDPM's images, Linf 8/255 (untested here: no data).

    https://arxiv.org/abs/2103.01946 with the settings of its released code (google-deepmind/deepmind-research):
    batch 1,024 of which 70 % are generated, rate 0.4 along a cosine after a warm-up of ten epochs, weight decay
    5e-4, averaged weights with decay 0.995, crafting with the statistics of the batch away from the mixed labels,
    running statistics of adversarial images alone. The README reports 60.75 % under AutoAttack for this net with
    CutMix and images of a DDPM; it links to the file.

    Here the ten steps of the attack are sign steps of eps / 4, where that code uses Adam with rate 0.1 and then
    0.01; that code smooths the labels of generated images, this recipe none.
    """
    threat = Linf(eps)
    base = cifar10_wrn28_10_edm(eps, beta, images)
    attack = PGD(threat, steps=10, step_size=threat.eps / 4, start=RandomStart())
    objective = BatchNormStatistics(TRADES(beta, away_from="target"), "adversarial")
    return replace(
        base,
        extra_data=ExtraData(GeneratedImages(images), 0.7, steps_per_epoch=48),
        method=Method(attack, objective, inner_mode=batch_statistics),
        batch_size=1024,
        lr=WarmUp(Cosine(0.4), epochs=10),
        augment=(Crop(4), Flip(), CutMix()),
        averaging=EMA(0.995),
    )


def cifar10_wrn28_10_cutmix(eps: float = 8 / 255, beta: float = 6.0) -> Recipe:
    """TRADES with CutMix of WRN-28-10 on CIFAR-10, Linf 8/255, 400 epochs (untested here: no data).

    `cifar10_wrn28_10_ddpm` without generated images: the part of https://arxiv.org/abs/2103.01946 that needs no
    other data than CIFAR-10.
    """
    return replace(cifar10_wrn28_10_ddpm(eps, beta), extra_data=None)
