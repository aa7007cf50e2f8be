"""Ingredients of the leading models, added one at a time (https://arxiv.org/abs/2302.04638 and others)."""

from collections.abc import Callable
from dataclasses import replace

from ..attacks import PGD, Benign, GaussianStart
from ..attacks.threats import Linf
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..core.teachers import Teacher
from ..core.types import Objective
from ..data import CutMix, Digits, ExtraData, FashionMNIST, GaussianMixtureImages, Subset
from ..evaluation import AutoAttack
from ..models import small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.hat import HAT
from ..objectives.ikl import IKL
from ..objectives.rslad import RSLAD
from ..objectives.trades import TRADES
from ..recipes._digits import pgd_on_digits
from ..records.outcomes import Cells
from ..records.results import Array
from ..records.statistics import Claim
from ..runs.recipe import Evaluation, Recipe
from ..training.averaging import EMA
from ..training.engine import Method
from ..training.updates import OptimizerStep
from ._common import Sizes, evaluation, sizes_of
from .study import WORST, Arm, Study

_SIZES = {"smoke": Sizes(100, 20, 1), "cpu": Sizes(300, 300, 10), "gpu": Sizes(10_000, 2000, 10)}
_EPOCHS = {"smoke": 1, "cpu": 75, "gpu": 100}
_WIDTHS = {"smoke": (1, 2, 2), "cpu": (3, 8, 16), "gpu": (16, 48, 96)}  # of student, net of the ablation, teacher
_MIXTURES = {"smoke": (2, 10), "cpu": (3, 15), "gpu": (10, 40)}  # Gaussians of a class, and their dimensions
_EPS = {"smoke": 0.15, "cpu": 0.15, "gpu": 0.1}
_SHARE = 0.7  # of the generated images in a batch
_CLOSE = 0.02  # points of accuracy that do not matter, as a share


def study(scale: str) -> Study:
    """Add averaged weights, CutMix, generated images, better losses and teachers to TRADES, and distil a robust net."""
    sizes = sizes_of(scale, _SIZES)
    bench = _Bench(scale, sizes)
    averaged, trades = EMA(0.995), TRADES()
    plain = bench.train(trades)
    ema = replace(plain, averaging=averaged)
    generated = replace(ema, extra_data=bench.generated)
    mixed = (CutMix(),)
    return Study(
        name="leaders",
        title="What leading models are made of",
        source="https://arxiv.org/abs/2302.04638",
        baseline="TRADES",
        arms=(
            Arm("Standard", bench.train(CrossEntropy(), adversarial=False)),
            Arm("TRADES", plain),
            Arm("TRADES, EMA", ema),
            Arm("TRADES, EMA, CutMix", replace(ema, augment=mixed)),
            Arm("TRADES, EMA, generated", generated),
            Arm("TRADES, EMA, generated, CutMix", replace(generated, augment=mixed)),
            Arm("IKL, EMA, generated", replace(generated, method=bench.method(IKL()))),
            Arm("HAT, EMA, generated", replace(generated, method=bench.method(HAT(Teacher("standard-{seed}")))), True),
            Arm("Teacher, PGD-AT", bench.train(CrossEntropy(), width=2)),
            Arm("Student, PGD-AT", bench.train(CrossEntropy(), width=0)),
            Arm("Student, RSLAD", bench.train(RSLAD(Teacher("teacher-pgd-at-{seed}")), width=0), True),
        ),
        claims=_CLAIMS,
        seeds=sizes.seeds,
        remarks=(
            f"{sizes.train} training images, Linf {_EPS[scale]:g}. All trainings take the same number of steps on "
            f"batches of the same size: {_EPOCHS[scale]} epochs of the real images where none are generated.",
            f"Of a batch with generated images {100 * _SHARE:g} % are generated: drawn from Gaussian mixtures that "
            "were fitted to the same real images, in place of those of a diffusion model.",
            "Nets are small CNNs of width {}: student, all others, teacher.".format(
                ", ".join(map(str, _WIDTHS[scale]))
            ),
            "Weights of the losses are those of the papers for CIFAR-10 and were not tuned. The helper of HAT is the "
            "net of *Standard* with the same seed, the teacher of RSLAD that of *Teacher, PGD-AT*.",
        ),
    )


class _Bench:
    """Builds recipes with the same data, length and evaluation."""

    def __init__(self, scale: str, sizes: Sizes) -> None:
        self.scale, self.threat, self.smoke = scale, Linf(_EPS[scale]), scale == "smoke"
        self.data = Subset(FashionMNIST() if scale == "gpu" else Digits(), sizes.train, sizes.test)
        images = GaussianMixtureImages(self.data, 10 * sizes.train, *_MIXTURES[scale])
        steps = sizes.train // pgd_on_digits().batch_size
        self.generated = ExtraData(images, _SHARE, steps_per_epoch=steps)

    def method(self, objective: Objective, adversarial: bool = True) -> Method:
        if not adversarial:
            return Method(Benign(), objective)
        size = self.threat.eps / 4
        if isinstance(objective, TRADES | IKL | HAT):
            return Method(PGD(self.threat, self._steps, size, start=GaussianStart()), objective)
        return Method(PGD(self.threat, self._steps, size), objective)

    @property
    def _steps(self) -> int:
        return 2 if self.smoke else 5

    def train(self, objective: Objective, width: int = 1, adversarial: bool = True) -> Recipe:
        strong = Evaluation({"autoattack": AutoAttack(self.threat)}, batch_size=500)
        return replace(
            pgd_on_digits(self.threat.eps),
            data=self.data,
            model=Build(small_cnn, width=_WIDTHS[self.scale][width], batch_norm=True),
            method=self.method(objective, adversarial),
            epochs=_EPOCHS[self.scale],
            lr=Cyclic(0.1, top=0.3),
            update=OptimizerStep(max_norm=1.0),
            held_out=0,
            evaluation=evaluation(self.threat, 2, 3, 1) if self.smoke else strong,
        )


def _gain(arm: str, over: str, under: str = WORST) -> Callable[[Cells], Array]:
    """Return the accuracy of an arm less that of another."""
    return lambda cells: cells(arm, under) - cells(over, under)


_RULE = "its robust accuracy (worst), less that of the other, is above 0"

_CLAIMS = (
    *(
        Claim(sentence, _RULE, _gain(arm, over))
        for sentence, arm, over in (
            ("Averaged weights are more robust than the last ones.", "TRADES, EMA", "TRADES"),
            ("CutMix makes averaged weights more robust.", "TRADES, EMA, CutMix", "TRADES, EMA"),
            ("Generated images make averaged weights more robust.", "TRADES, EMA, generated", "TRADES, EMA"),
            ("CutMix adds to generated images.", "TRADES, EMA, generated, CutMix", "TRADES, EMA, generated"),
            ("IKL is more robust than TRADES.", "IKL, EMA, generated", "TRADES, EMA, generated"),
            ("A robust teacher makes a small net more robust: RSLAD and PGD-AT.", "Student, RSLAD", "Student, PGD-AT"),
            ("The teacher is more robust than the net it teaches.", "Teacher, PGD-AT", "Student, PGD-AT"),
        )
    ),
    Claim(
        "HAT has a higher clean accuracy than TRADES.",
        "its clean accuracy, less that of TRADES on the same images, is above 0",
        _gain("HAT, EMA, generated", "TRADES, EMA, generated", "clean"),
    ),
    Claim(
        "HAT costs no robustness.",
        f"its robust accuracy (worst), less that of TRADES on the same images, is within {100 * _CLOSE:g} points of 0",
        _gain("HAT, EMA, generated", "TRADES, EMA, generated"),
        within=_CLOSE,
    ),
)
