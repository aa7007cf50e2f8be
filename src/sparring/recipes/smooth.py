"""Smooth Adversarial Training (https://arxiv.org/abs/2006.14536) on Fashion-MNIST and, not run here, on ImageNet."""

from dataclasses import replace

from ..attacks import FGSM, PGD, MixedStart, RandomStart, Square
from ..attacks.losses import Margin
from ..attacks.threats import Linf
from ..core.modes import ComposedMode, eval_mode, unchanged
from ..core.schedules import ExponentialDecay, MultiStep, WarmUp, scaled_lr
from ..core.serialization import Build
from ..core.types import ModelMode
from ..data import Flip, ImageStream
from ..evaluation import Ensemble, SurrogateGradient, WhiteBox
from ..models import SmoothBackward, efficientnet, imagenet_resnet, small_cnn
from ..models.imagenet import size_of
from ..objectives.cross_entropy import CrossEntropy
from ..runs.recipe import Evaluation, Recipe
from ..training.averaging import EMA
from ..training.engine import Method
from ..training.optimizers import SGD, RMSProp
from ._common import select_by_pgd
from .small import fashion_pgd


def fashion_smooth(eps: float = 0.1, activation: str = "silu") -> Recipe:
    """PGD-1 AT of a small CNN with SiLU on Fashion-MNIST, Linf 0.1: two minutes on two cores.

    `fashion_pgd` by the recipe of Smooth Adversarial Training: one step of eps from a random start, weight decay 1e-4
    on matrices only, the rate in steps, PGD-200 to evaluate. `activation` is any of `sparring.models.activation`.
    """
    threat = Linf(eps)
    return replace(
        fashion_pgd(eps),
        model=Build(small_cnn, width=16, activation=activation),
        method=Method(_one_step(threat), CrossEntropy()),
        lr=MultiStep(0.05, (4, 6, 7)),
        optimizer=SGD(weight_decay=1e-4, decay_vectors=False),
        evaluation=_pgd_200(threat, examples=1000),
    )


def fashion_smooth_backward(
    eps: float = 0.1, alpha: float = 10.0, smooth_attack: bool = True, smooth_update: bool = True
) -> Recipe:
    """ReLU forward and a smooth gradient backward, for the attacker, the update or both, on Fashion-MNIST, Linf 0.1.

    The ablation of the paper: the gradient of ReLU is replaced by that of a softplus, sigmoid(alpha x). The evaluation
    follows the gradient of ReLU, then surrogate gradients of softer and harder softplus, and then Square, which needs
    no gradient; only examples that are robust to all of them count.
    """
    threat, smooth = Linf(eps), SmoothBackward(alpha)
    recipe, pgd = fashion_smooth(eps, "relu"), WhiteBox(PGD(threat, 50, threat.eps / 4, patience=0))
    inner: ModelMode = ComposedMode((eval_mode, smooth)) if smooth_attack else eval_mode
    outer: ModelMode = smooth if smooth_update else unchanged
    known = {f"backward-{a:g}": SurrogateGradient(SmoothBackward(a), pgd) for a in (1.0, 10.0, 100.0)}
    worst = Ensemble({"backward-relu": pgd, **known, "square": WhiteBox(Square(threat, 1000), Margin)})
    return replace(
        recipe,
        method=Method(_one_step(threat), CrossEntropy(), inner, outer),
        evaluation=replace(recipe.evaluation, adversaries={**recipe.evaluation.adversaries, "worst": worst}),
    )


def imagenet_resnet_smooth(
    eps: float = 4 / 255,
    folder: str = "imagenet",
    activation: str = "silu",
    depth: int = 50,
    global_batch: int = 256,
) -> Recipe:
    """PGD-1 AT of ResNet-50 with SiLU on ImageNet, Linf 4/255, 100 epochs (untested here: no data).

    The paper's recipe (its Figure, decoded: 69.7 % clean and 42.3 % under PGD-200 with SiLU, 68.8 and 33.0 with ReLU):
    one step of eps from a random start, crafted in inference mode, SGD with momentum 0.9, weight decay 1e-4 on matrices
    only, and the rate of the released code: 0.1 for each 256 images of `global_batch`, warmed up from 0.1 over 5
    epochs, divided by 10 at epochs 30, 60 and 90; `--batch-size` alone does not scale it. Scaled by `--depth` (50, 101,
    152), `--model.groups 32 --model.group-width 4` and `--data.size`.

    Options of the released code that the paper does not have are off: label smoothing
    (`--method.objective.label-smoothing 0.1`), clean starts of a fifth of the batches
    (`--method.attack.start.clean 0.2`) and `--optimizer.nesterov`. Pictures are evaluated as in that code: the shorter
    side has 32 pixels more than `--data.size`. Needs `pip install 'sparring[imagenet]'` and the pictures in
    `folder`/train and `folder`/val.
    """
    threat, peak = Linf(eps), scaled_lr(0.1, global_batch)
    return Recipe(
        data=ImageStream(folder, middle="resnet"),
        model=Build(imagenet_resnet, depth=depth, activation=activation),
        method=_imagenet_method(threat),
        epochs=100,
        lr=WarmUp(MultiStep(peak, (30, 60, 90)), epochs=5, start=min(0.1, peak)),
        batch_size=global_batch,
        augment=(Flip(),),
        optimizer=SGD(weight_decay=1e-4, decay_vectors=False),
        held_out=0.004,
        selection=select_by_pgd(threat),
        evaluation=_pgd_200(threat, examples=5000),
    )


def imagenet_efficientnet_smooth(
    eps: float = 4 / 255,
    folder: str = "imagenet",
    variant: str = "b0",
    activation: str = "silu",
    global_batch: int = 256,
) -> Recipe:
    """PGD-1 AT of EfficientNet-B0 to B7 or L1 with SiLU on ImageNet, Linf 4/255 (untested here: no data).

    The attack and the data of `imagenet_resnet_smooth`, with the width, depth, resolution and dropout of the `variant`,
    b0 to b7, l1, or l1-enhanced, which is L1 with a weight average (0.9999). Stochastic depth (survival 0.8), padding
    and the cut in evaluation are those of the released code (cihangxie/SmoothAdversarialTraining, EfficientNet). So are
    the settings of training, which are the defaults of that code: RMSProp, a rate of 0.016 for each 256 images of
    `global_batch`, warmed up from 0 over 5 epochs and multiplied by 0.97 every 2.4 epochs, weight decay 1e-5, label
    smoothing 0.1, 350 epochs. We could not check whether the paper's nets were trained with these defaults. Its
    checkpoints have 65.2 % (B0) to 80.7 % (L1) clean accuracy; L1-Enhanced has 82.2 %, and 58.6 % robust accuracy in
    the paper.
    """
    width, depth, pixels, dropout = size_of(variant)
    return replace(
        imagenet_resnet_smooth(eps, folder, global_batch=global_batch),
        data=ImageStream(folder, pixels, middle="efficientnet"),
        model=Build(
            efficientnet,
            width=width,
            depth=depth,
            dropout=dropout,
            activation=activation,
            survival=0.8,
            padding="same",
        ),
        method=_imagenet_method(Linf(eps), label_smoothing=0.1),
        epochs=350,
        lr=WarmUp(ExponentialDecay(scaled_lr(0.016, global_batch), factor=0.97, every=2.4), epochs=5),
        optimizer=RMSProp(alpha=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5),
        averaging=EMA(0.9999) if variant.lower() == "l1-enhanced" else None,
    )


def _imagenet_method(threat: Linf, label_smoothing: float = 0.0) -> Method:
    """Return PGD-1 with a start whose share of clean batches, and an objective whose smoothing, can be set by flags."""
    return Method(_one_step(threat, MixedStart(RandomStart(), clean=0.0)), CrossEntropy(label_smoothing))


def _one_step(threat: Linf, start: RandomStart | MixedStart = RandomStart()) -> PGD:  # noqa: B008
    return FGSM(threat, threat.eps, start)


def _pgd_200(threat: Linf, examples: int) -> Evaluation:
    """Return an evaluation by PGD-10, PGD-50 and PGD-200 with steps of eps / 4, which is 1/255 at 4/255."""
    pgd = {f"pgd-{steps}": WhiteBox(PGD(threat, steps, threat.eps / 4, patience=0)) for steps in (10, 50, 200)}
    return Evaluation(pgd, examples)
