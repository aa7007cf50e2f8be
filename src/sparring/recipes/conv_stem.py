"""Adversarial training of ConvNeXt and ViT with a stem of convolutions on ImageNet, Linf 4/255. None has been run."""

from dataclasses import replace

from ..attacks import APGD, CleanStart
from ..attacks.threats import Linf
from ..core.schedules import Cosine, WarmUp
from ..core.serialization import Build
from ..data import CutMix, Flip, ImageStream, InputMixup, RandAugment, RandomChoice, SmoothedLabels
from ..evaluation import AutoAttack
from ..models import conv_stem
from ..objectives.cross_entropy import CrossEntropy
from ..runs.recipe import Evaluation, Recipe
from ..training.averaging import EMA
from ..training.engine import Method
from ..training.optimizers import AdamW
from ._common import select_by_pgd


def imagenet_convnext_t_cvst(eps: float = 4 / 255, folder: str = "imagenet", steps: int = 2) -> Recipe:
    """APGD-2 AT of ConvNeXt-T with ConvStem on ImageNet, Linf 4/255, 300 epochs (untested here: no data).

    The settings of the script and the code of https://arxiv.org/abs/2303.01870 (nmndeep/revisiting-at): two steps of
    APGD from the image in eval mode, AdamW with betas 0.9 and 0.95 and weight decay 0.05, rate 1e-3 after a warm-up of
    20 epochs, along a cosine to 5e-6, RandAugment, either mixup (0.8) or CutMix (1.0) in each batch, label smoothing
    0.1, weights averaged with decay 0.9999, no normalisation. Its README reports 72.7 % clean and 49.5 % under
    AutoAttack; RobustBench has the weights. The script trains on 80 images a GPU, and does not say on how many: a batch
    here is that of eight. Other sizes are --model.name convnext_small, convnext_base and convnext_large.

    The paper begins with a net that was trained on clean images: train one by --method standard, and name its run by
    --init-from. Here there is no random erasing, where theirs erases a quarter of the images in part; their RandAugment
    applies each of two operations with probability 1/2, with a strength that varies, here it is always one; the cosine
    is that of the whole training; and scales of layers are not decayed, where theirs are in ConvNeXt. Needs
    `pip install 'sparring[imagenet]'` and the pictures in `folder`/train and `folder`/val.
    """
    threat = Linf(eps)
    return Recipe(
        data=ImageStream(folder),
        model=Build(conv_stem, name="convnext_tiny"),
        normalize=False,
        method=Method(_apgd(threat, steps), CrossEntropy()),
        epochs=300,
        batch_size=640,
        lr=WarmUp(Cosine(1e-3, final=5e-6), epochs=20),
        augment=(Flip(), RandAugment(1, 27), RandomChoice((InputMixup(0.8), CutMix())), SmoothedLabels(0.1)),
        optimizer=AdamW(betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False),
        averaging=EMA(0.9999),
        held_out=0.004,
        selection=select_by_pgd(threat),
        evaluation=Evaluation({"autoattack": AutoAttack(threat)}, examples=5000),
    )


def _apgd(threat: Linf, steps: int) -> APGD:
    """Return APGD as in the released code of the paper, for up to 4 steps and for 100."""
    return APGD(
        threat,
        steps,
        start=CleanStart(),
        to_the_end=True,
        ties_halve=True,
        first_from_zero=True,
        first_no_stall=True,
    )


def imagenet_vit_s_cvst(eps: float = 4 / 255, folder: str = "imagenet", steps: int = 2) -> Recipe:
    """APGD-2 AT of ViT-S with ConvStem on ImageNet, Linf 4/255, 300 epochs (untested here: no data).

    `imagenet_convnext_t_cvst` with DeiT-S, whose images are normalised. The README reports 72.5 % clean and 48.1 %
    under AutoAttack. ViT-B is --model.name vit_base_patch16_224.
    """
    return replace(
        imagenet_convnext_t_cvst(eps, folder, steps),
        model=Build(conv_stem, name="deit_small_patch16_224"),
        normalize=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
