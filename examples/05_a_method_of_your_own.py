"""MixedMomentum: a training method of your own, with its attack, a recipe and a study that compares it.

python 05_a_method_of_your_own.py
sparring train 05_a_method_of_your_own.py:recipe
sparring study 05_a_method_of_your_own.py:study --scale smoke

The first checks that attack and objective keep their contracts, and trains a little.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import CE, Linf, Method, Objective, PerExampleLoss, Recipe, fit
from sparring.attacks.gradients import value_and_grad
from sparring.core.rng import Rng
from sparring.core.types import Context, Terms, each
from sparring.recipes.small import quickstart
from sparring.studies.study import Arm, Study
from sparring.testing import check_attack, check_objective


@dataclass(frozen=True)
class MyAttack:
    """Steps along a decaying sum of normalised gradients (MI-FGSM, https://arxiv.org/abs/1710.06081)."""

    threat: Linf
    steps: int = 5
    decay: float = 1.0

    def __call__(self, loss: PerExampleLoss, x: Tensor, rng: Rng) -> Tensor:
        z, momentum = self.threat.sample(x, rng), torch.zeros_like(x)
        for _ in range(self.steps):
            grad = value_and_grad(loss, z).grad
            momentum = self.decay * momentum + grad / each(grad.abs().flatten(1).mean(1) + 1e-12, grad)
            z = self.threat.project(z + self.threat.eps / 2 * self.threat.ascent(momentum), x)
        return z


@dataclass(frozen=True)
class MixedMomentum(Objective):
    """Cross-entropy of the adversarial and, with `weight`, of the clean image; the attack maximises cross-entropy."""

    weight: float = 0.5

    def inner(self, ctx: Context) -> PerExampleLoss:
        return CE(ctx.lens.logits, ctx.batch.y)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        adversarial, clean = ctx.lens.logits(x_adv), ctx.lens.logits(ctx.batch.x)
        y = ctx.batch.y
        return {"adversarial": F.cross_entropy(adversarial, y), "clean": self.weight * F.cross_entropy(clean, y)}


def recipe(eps: float = 0.15) -> Recipe:
    """MixedMomentum on the digits of scikit-learn."""
    return replace(quickstart(eps), method=Method(MyAttack(Linf(eps)), MixedMomentum()), epochs=10)


def study(scale: str) -> Study:
    """MixedMomentum beside PGD-AT."""
    short = {"epochs": 1 if scale == "smoke" else 10}
    arms = (Arm("PGD-AT", replace(quickstart(), **short)), Arm("MixedMomentum", replace(recipe(), **short)))
    return Study("05_a_method_of_your_own", "MixedMomentum beside PGD-AT", "", "PGD-AT", arms, claims=(), seeds=2)


if __name__ == "__main__":
    check_attack(MyAttack(Linf("8/255")), within=Linf("8/255"))
    check_objective(MixedMomentum(), MyAttack(Linf("8/255")))
    print(fit(replace(recipe(), epochs=2), "runs/05_a_method_of_your_own", overwrite=True))
