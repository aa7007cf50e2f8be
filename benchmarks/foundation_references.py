"""FARE, TeCoA and the APGD of Singh et al. beside the code of their authors, in double precision.

    python benchmarks/foundation_references.py CHECKOUTS

CHECKOUTS is a folder with checkouts of chs20/RobustVLM, cvlab-columbia/ZSRobust4FoundationModel and
nmndeep/revisiting-at, each in a folder `owner+name`. Their functions are taken out of their files and run on the same
small encoder, images, text embeddings and starts. Nothing of them is part of this repository.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from authors_code import functions, old_torch
from torch import Tensor, nn

from sparring import CE, PGD, Classifier, CrossEntropy, Linf
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Objective, Progress
from sparring.models import ZeroShotHead, small_cnn
from sparring.objectives import FARE
from sparring.recipes.conv_stem import _apgd

EPS, COUNT, STEPS = 4 / 255, 12, 10
BALL = Linf(EPS)
X = torch.rand(COUNT, 3, 32, 32, generator=make_rng(0), dtype=torch.float64)
Y = torch.arange(COUNT) % 10
TEXTS = torch.randn(10, 16, generator=make_rng(1), dtype=torch.float64)
START = EPS * (2 * torch.rand(X.shape, generator=make_rng(2), dtype=torch.float64) - 1)

Row = tuple[str, str, str, float, float]


def encoder(seed: int) -> Classifier:
    """A small encoder with 16 features, and the text embeddings as its head."""
    torch.manual_seed(seed)
    made = small_cnn(16, (3, 32, 32), width=4, batch_norm=True)
    return Classifier(made, ZeroShotHead(TEXTS)).double().eval()


def ours(objective: Objective, attack: PGD) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the points of the attack, the gradient of the update and its loss."""
    model = encoder(0)
    ctx = Context(
        ForwardCache(model),
        Batch(X, Y, torch.arange(COUNT)),
        objective.init(None),
        Progress(0, 1, 1),  # type: ignore
    )
    x_adv = attack(objective.inner(ctx), X, make_rng(0))
    loss = torch.stack(list(objective.outer(ctx.on(model), x_adv).values())).sum()
    return x_adv, list(torch.autograd.grad(loss, list(model.parameters()))), loss


def compared(
    name: str, path: Path, found: tuple[Tensor, list[Tensor], Tensor], z: Tensor, loss: Tensor, model: nn.Module
) -> Iterator[Row]:
    x_adv, grads, value = found
    yield name, str(path), "points of the attack", *_apart([z], [x_adv])
    yield name, str(path), "loss of the update", *_apart([loss], [value])
    theirs = torch.autograd.grad(loss, list(model.parameters()))
    yield name, str(path), "its gradient", *_apart(list(theirs), grads)


def _apart(theirs: list[Tensor], ours: list[Tensor]) -> tuple[float, float]:
    """Return the largest difference, and the largest value."""
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(theirs, ours, strict=True))
    return gap, max(float(a.detach().abs().max()) for a in theirs)


def robust_clip(folder: Path) -> Iterator[Row]:
    path = folder / "chs20+RobustVLM" / "train"
    space = functions(path / "adversarial_training_clip.py", "compute_loss", "l2", "ce", "ComputeLossWrapper")
    steps = functions(
        folder / "chs20+RobustVLM" / "vlm_eval" / "attacks" / "utils.py", "project_perturbation", "normalize_grad"
    )
    pgd = functions(path / "pgd_train.py", "pgd", **{n: steps[n] for n in ("project_perturbation", "normalize_grad")})[
        "pgd"
    ]
    texts = F.normalize(TEXTS, dim=1).T
    cases = {"FARE": (FARE(Teacher.of(encoder(1))), "l2", False), "TeCoA": (CrossEntropy(), "ce", True)}
    for name, (objective, loss, normalized) in cases.items():
        model, original = encoder(0), encoder(1).features(X).detach()

        def forward(x: Tensor, output_normalize: bool, model: Any = model) -> Tensor:
            z = model.features(x)
            return F.normalize(z, dim=-1) if output_normalize else z

        inner = space["ComputeLossWrapper"](original, texts, "mean", loss)
        options = {"norm": "linf", "eps": EPS, "iterations": STEPS, "stepsize": 1 / 255, "momentum": 0.0}
        z = pgd(forward, inner, X, Y, output_normalize=normalized, perturbation=START.clone(), mode="max", **options)
        value = space["compute_loss"](loss, forward(z, normalized), Y, original, 100.0, texts)
        found = ours(objective, PGD(BALL, STEPS, 1 / 255, Unprojected(START)))
        yield from compared(name, path / "adversarial_training_clip.py", found, z, value, model)


class Unprojected:
    """A start that may lie outside of [0, 1], as in the code of the authors."""

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta

    def __call__(self, threat: Any, x: Tensor, rng: Any) -> Tensor:
        return x + self.delta


def zero_shot(folder: Path) -> Iterator[Row]:
    path = folder / "cvlab-columbia+ZSRobust4FoundationModel" / "finetuning.py"
    more = {"clip_img_preprocessing": lambda x: x, "lower_limit": torch.zeros(()), "upper_limit": torch.ones(())}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as part:  # what follows in the file does not parse
        part.write(path.read_text().partition("\ndef train(")[0])
        part.flush()
        space = functions(Path(part.name), "attack_pgd", "multiGPU_CLIP", **more)
    model, loss = encoder(0), nn.CrossEntropyLoss()

    def clip(images: Tensor, tokens: Any, prompt: Any) -> tuple[Tensor, Tensor]:
        return F.normalize(model.features(images), dim=1), 100 * F.normalize(TEXTS, dim=1)

    torch.manual_seed(3)
    arguments = (lambda x: x, clip, None, None, lambda: None, loss, X, Y, None, 1 / 255, STEPS, "l_inf")
    z = X + space["attack_pgd"](*arguments, epsilon=EPS).detach()
    torch.manual_seed(3)
    start = X + torch.zeros_like(X).uniform_(-EPS, EPS)
    value = loss(space["multiGPU_CLIP"](None, None, clip, z, None)[0], Y)
    found = ours(CrossEntropy(), PGD(BALL, STEPS, 1 / 255, GivenStart(start)))
    yield from compared("TeCoA", path, found, z, value, model)


def apgd(folder: Path) -> Iterator[Row]:
    path = folder / "nmndeep+revisiting-at" / "autopgd_train_clean.py"
    wanted = ("apgd_train", "check_oscillation", "L1_norm", "L2_norm", "L0_norm", "dlr_loss", "dlr_loss_targeted")
    space = functions(path, *wanted, time=time)
    space["criterion_dict"] = {"ce": lambda x, y: F.cross_entropy(x, y, reduction="none")}
    soft = torch.softmax(3 * torch.randn(COUNT, 10, generator=make_rng(4), dtype=torch.float64), 1)
    model = encoder(0).requires_grad_(False)
    for steps in (2, 100):
        z = space["apgd_train"](model, X, soft, "Linf", EPS, steps, mixup=True)[0]
        found = _apgd(BALL, steps)(CE(model, soft), X, make_rng(0))
        yield "APGD", str(path), f"points after {steps} steps, soft targets", *_apart([z], [found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    folder = parser.parse_args().checkouts
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    print(
        "| method | repository, file | what is compared | largest difference | largest value |\n|---|---|---|---:|---:|"
    )
    with old_torch():
        for compare in (robust_clip, zero_shot, apgd):
            for name, path, what, difference, value in compare(folder):
                owner, _, file = str(Path(path).relative_to(folder)).partition("/")
                print(
                    f"| {name} | {owner.replace('+', '/')}, {file} | {what} | {difference:.1e} | {value:.2g} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
