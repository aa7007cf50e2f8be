"""Bag of Tricks for Adversarial Training (https://arxiv.org/abs/2010.00467): each trick against one baseline."""

from collections.abc import Callable
from dataclasses import replace

from ..attacks import PGD
from ..attacks.threats import Linf
from ..core.modes import batch_statistics, train_mode
from ..core.schedules import EpsWarmUp, MultiStep, PiecewiseConstant, WarmUp
from ..core.serialization import Build
from ..core.types import ModelMode
from ..data import LabelNoise
from ..models import small_cnn
from ..objectives.batch_norm_statistics import BatchNormStatistics
from ..objectives.cross_entropy import CrossEntropy
from ..records.outcomes import Cells
from ..records.results import Array
from ..records.statistics import Claim
from ..runs.recipe import Recipe
from ..training.engine import Method
from ..training.optimizers import SGD, AdamW
from ..training.updates import OptimizerStep
from ._common import Sizes, base, sizes_of
from .study import WORST, Arm, Study

_SIZES = {"smoke": Sizes(300, 60, 1), "cpu": Sizes(720, 1000, 10), "gpu": Sizes(12_000, 2000, 10)}
_EPOCHS = {"smoke": 1, "cpu": 60, "gpu": 60}
_HELD_OUT, _NOISE = 1 / 6, 0.1

# The effect of weight decay depends on rate x decay x steps, and these trainings are 80 times shorter than the paper's
# at the cpu scale.
# Of 6e-3 (one seed), 1e-2, 3e-2 and 6e-2 this was the best on two seeds that no study uses (cpu scale). At the paper's
# rate of 0.1, a net that was attacked in training mode stayed at chance.
_DECAY, _RATE = 3e-2, 0.03


def study(scale: str) -> Study:
    """Compare each trick of the paper, alone, with the baseline."""
    sizes, epochs, threat = sizes_of(scale, _SIZES), _EPOCHS[scale], Linf(0.1)
    baseline = _baseline(scale, sizes, threat, epochs)
    return Study(
        name="tricks",
        title="Bag of Tricks: each trick against the baseline",
        source="https://arxiv.org/abs/2010.00467",
        baseline="baseline",
        arms=tuple(Arm(name, each) for name, each in _arms(baseline, epochs).items()),
        claims=_claims(),
        seeds=sizes.seeds,
        remarks=(
            f"{100 * _NOISE:g} % of the training labels are drawn anew. The rate, {_RATE:g}, is divided by 10 after a "
            "third and three quarters of the epochs, which leaves time to overfit. Gradients are clipped at 1.",
            f"Weight decay of the baseline is {_DECAY:g}, the best of four on other seeds at the cpu scale; x 0.2 "
            "and x 0.4 are the ratios of the paper's 1e-4 and 2e-4 to its 5e-4.",
            "Passes of the attack that stops early are counted as if it never stopped.",
            "AdamW has the rate 0.001 and torch's weight decay; neither it nor Softplus was tuned.",
        ),
    )


def _baseline(scale: str, sizes: Sizes, threat: Linf, epochs: int) -> Recipe:
    """Return PGD-AT of a net that can memorize the few images it has, some of them with wrong labels."""
    recipe = base(scale, sizes, threat, epochs)
    return replace(
        recipe,
        model=Build(small_cnn, width=12, batch_norm=True) if scale == "cpu" else recipe.model,
        lr=MultiStep(_RATE, (epochs / 3, 3 * epochs / 4)),
        optimizer=SGD(weight_decay=_DECAY),
        update=OptimizerStep(max_norm=1.0),
        alterations=(LabelNoise(_NOISE),),
        held_out=_HELD_OUT,
    )


def _arms(baseline: Recipe, epochs: int) -> dict[str, Recipe]:
    method, lr = baseline.method, baseline.lr
    assert isinstance(method, Method)
    assert isinstance(method.attack, PGD)
    assert isinstance(lr, MultiStep)
    attack = method.attack
    early = PiecewiseConstant(
        tuple(
            (round(share * epochs, 2), replace(attack, patience=n)) for n, share in enumerate((0, 60 / 110, 100 / 110))
        )
    )
    warm, ahead = epochs * 15 / 110, epochs / 110  # the paper: (t + 1) / 15 of the rate after t of 110 epochs

    def crafted(view: ModelMode) -> Recipe:
        return replace(baseline, method=replace(method, inner_mode=view))

    def with_objective(objective: CrossEntropy | BatchNormStatistics) -> Recipe:
        return replace(baseline, method=replace(method, objective=objective))

    def sized(times: float) -> Recipe:
        peak = replace(lr, peak=lr.peak * times)
        return replace(baseline, batch_size=round(baseline.batch_size * times), lr=peak)

    def activated(name: str) -> Recipe:
        build = baseline.model
        assert isinstance(build, Build)
        return replace(baseline, model=type(build)(build.function, **{**build.options, "activation": name}))

    return {
        "baseline": baseline,
        "weight decay x 0.2": replace(baseline, optimizer=SGD(weight_decay=0.2 * _DECAY)),
        "weight decay x 0.4": replace(baseline, optimizer=SGD(weight_decay=0.4 * _DECAY)),
        "weight decay x 5": replace(baseline, optimizer=SGD(weight_decay=5 * _DECAY)),
        "label smoothing 0.2": with_objective(CrossEntropy(label_smoothing=0.2)),
        "crafting by batch statistics": crafted(batch_statistics),
        "crafting in training mode": crafted(train_mode),
        "statistics of clean images too": with_objective(BatchNormStatistics(CrossEntropy(), "both")),
        "attack stopped early": replace(baseline, method=replace(method, attack=early)),
        "rate warm-up": replace(baseline, lr=WarmUp(lr, warm, ahead=ahead, capped=False)),
        "eps warm-up": replace(baseline, method=replace(method, attack=EpsWarmUp(attack, warm, ahead, capped=False))),
        "batch x 0.5": sized(0.5),
        "batch x 2": sized(2.0),
        "Nesterov": replace(baseline, optimizer=SGD(nesterov=True, weight_decay=_DECAY)),
        "gradient centralisation": replace(baseline, optimizer=SGD(weight_decay=_DECAY, centralize="weights")),
        "AdamW": replace(baseline, optimizer=AdamW(), lr=replace(lr, peak=0.001)),
        "SiLU": activated("silu"),
        "Softplus": activated("softplus"),
    }


_LITTLE = "weight decay x 0.2"
_OTHERS: tuple[str, ...] = (
    "label smoothing 0.2",
    "crafting in training mode",
    "rate warm-up",
    "eps warm-up",
    "batch x 0.5",
    "batch x 2",
    "Nesterov",
    "gradient centralisation",
    "SiLU",
    "attack stopped early",
    "statistics of clean images too",
    "crafting by batch statistics",
)


def _less(arm: str, other: str = "baseline", under: str = WORST, which: str = "last") -> Callable[[Cells], Array]:
    """Return the accuracy of an arm less that of another."""
    return lambda cells: cells(arm, under, which) - cells(other, under, which)


def _under_pgd(cells: Cells) -> Array:
    """Return what stopping early changes under the PGD of this scale."""
    pgd = next(under for _, _, under in cells.values if under.startswith("pgd"))
    return cells("attack stopped early", pgd) - cells("baseline", pgd)


def _claims() -> tuple[Claim, ...]:
    return (
        Claim(
            "Too little weight decay costs robustness.",
            "robust accuracy (worst, best epoch) of the baseline, less that with a fifth of its decay, is above 0",
            _less("baseline", _LITTLE, which="best"),
            headline="a slightly different weight decay can cost more than 7 points of robust accuracy",
        ),
        *(
            Claim(
                f"Too little weight decay costs more robustness than another trick: {arm}.",
                "robust accuracy (worst, best epoch) with that, less that with a fifth of the weight decay, is above 0",
                _less(arm, _LITTLE, which="best"),
                family="weight decay",
            )
            for arm in _OTHERS
        ),
        Claim(
            "Crafting in eval mode helps clean accuracy.",
            "clean accuracy of the baseline, less that with crafting in training mode, is above 0",
            _less("baseline", "crafting in training mode", "clean"),
        ),
        Claim(
            "Crafting in eval mode keeps robustness, within a point.",
            "robust accuracy (worst) of the baseline, less that with crafting in training mode, is above -1 point",
            _less("baseline", "crafting in training mode"),
            more_than=-0.01,
        ),
        Claim(
            "Stopping the attack early loses less than a point under PGD.",
            "its accuracy under PGD, less the baseline's, is above -1 point",
            _under_pgd,
            more_than=-0.01,
        ),
        Claim(
            "Stopping the attack early loses under a stronger attack.",
            "the baseline's robust accuracy (worst), less its own, is above 0",
            _less("baseline", "attack stopped early"),
        ),
        Claim(
            "Moderate label smoothing helps.",
            "robust accuracy (worst) with smoothing 0.2, less the baseline's, is above 0",
            _less("label smoothing 0.2"),
        ),
        *(
            Claim(
                f"A warm-up of {what} does not matter.",
                "robust accuracy (worst) with it, less the baseline's, is between -1 and 1 point",
                _less(arm),
                within=0.01,
                family="warm-ups",
            )
            for what, arm in (("the rate", "rate warm-up"), ("eps", "eps warm-up"))
        ),
        Claim(
            "Robust overfitting: the best epoch is more than a point better than the last.",
            "robust accuracy (worst) of the baseline's best epoch, less that of its last, is above 1 point",
            lambda cells: cells("baseline", WORST, "best") - cells("baseline", WORST, "last"),
            more_than=0.01,
        ),
    )
