"""Adversarial fine-tuning of CLIP's image encoder on ImageNet: FARE and TeCoA. None has been run."""

from dataclasses import replace

from ..attacks import PGD
from ..attacks.threats import Linf
from ..core.schedules import Cosine, WarmUp
from ..core.serialization import Build
from ..data import ImageStream
from ..evaluation import AutoAttack
from ..models import zero_shot_model
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.fare import FARE
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method
from ..training.optimizers import AdamW
from ._common import select_by_pgd


def imagenet_clip_fare(
    eps: float = 2 / 255, folder: str = "imagenet", texts: str = "imagenet-texts.npy", lora_rank: int = 0
) -> Recipe:
    """FARE of CLIP's ViT-L/14 on ImageNet, Linf 2/255, 2 epochs (untested here: no data).

    The settings of the command in the README of https://arxiv.org/abs/2402.12336 (chs20/RobustVLM): ten steps of 1/255
    from a random start, batch 128, AdamW with weight decay 1e-4, rate 1e-5 after a warm-up of 1,400 of 20,000 steps,
    then along a cosine. No label is used in training; `texts`, the embeddings of the class names by CLIP's text
    encoder, classify what selects and what is evaluated. They are made as docs/state-of-the-art.md says, from "This is
    a photo of a ..." in that code. With `lora_rank`, adapters of that rank are trained in place of the weights, which
    is not of the paper.

    Here training pictures are cut to random windows, where their code takes the central square; the attack has no
    momentum, where theirs has 0.9; and the cosine is that of the whole training. Needs
    `pip install 'sparring[imagenet]'` (for adapters 'sparring[imagenet,lora]'), the weights, which timm downloads, and
    the pictures in `folder`/train and `folder`/val.
    """
    threat = Linf(eps)
    return Recipe(
        data=ImageStream(folder),
        model=Build(
            zero_shot_model,
            name="vit_large_patch14_clip_quickgelu_224.openai",
            texts=texts,
            lora_rank=lora_rank,
            pretrained=True,
        ),
        method=Method(PGD(threat, 10, 1 / 255), FARE()),
        epochs=2,
        batch_size=128,
        lr=WarmUp(Cosine(1e-5), epochs=0.14),
        optimizer=AdamW(weight_decay=1e-4),
        held_out=0.004,
        selection=select_by_pgd(threat),
        evaluation=Evaluation({"autoattack": AutoAttack(threat)}, examples=1000),
    )


def imagenet_clip_tecoa(
    eps: float = 2 / 255, folder: str = "imagenet", texts: str = "imagenet-texts.npy", lora_rank: int = 0
) -> Recipe:
    """TeCoA of CLIP's ViT-L/14 on ImageNet, Linf 2/255, 2 epochs (untested here: no data).

    `imagenet_clip_fare` with the cross-entropy of the similarities to the text embeddings, in attack and update: the
    method of https://arxiv.org/abs/2212.07016 with the settings of chs20/RobustVLM, which compares the two.
    """
    recipe = imagenet_clip_fare(eps, folder, texts, lora_rank)
    return replace(recipe, method=Method(PGD(Linf(eps), 10, 1 / 255), CrossEntropy()))
