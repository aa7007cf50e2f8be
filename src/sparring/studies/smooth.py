"""Smooth Adversarial Training (https://arxiv.org/abs/2006.14536): smooth activations, and smooth gradients alone."""

from dataclasses import replace

import numpy as np

from ..attacks import FGSM, PGD, CleanStart, GaussianStart, RandomStart, SphereStart, Square, Start
from ..attacks.losses import Margin
from ..attacks.threats import Linf
from ..core.modes import ComposedMode, eval_mode, unchanged
from ..core.schedules import MultiStep
from ..core.serialization import Build, Scalar
from ..core.types import ModelMode
from ..evaluation import Adversary, AutoAttack, Cascade, SurrogateGradient, WhiteBox
from ..models import SmoothBackward, small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..records.results import Array
from ..records.statistics import Cells, Claim
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method
from ..training.optimizers import SGD
from ._common import Sizes, base, evaluation, sizes_of
from .study import WORST, Arm, Study

_SIZES = {"smoke": Sizes(200, 40, 1), "cpu": Sizes(5000, 250, 3), "gpu": Sizes(20000, 2000, 5)}
_EPOCHS = {"smoke": 1, "cpu": 9, "gpu": 30}
_QUERIES = {"smoke": 10, "cpu": 200, "gpu": 1000}
_DECAY, _RATE = 1e-3, 0.05
_SURROGATES: dict[float, Start] = {1.0: CleanStart(), 10.0: GaussianStart(0.01), 100.0: SphereStart()}
_TIMES = (2, 4, 8)

_SMOOTH = {
    "Parametric Softplus": "parametric_softplus",
    "Softplus": "softplus",
    "SiLU": "silu",
    "GELU": "gelu",
    "ELU": "elu",
    "SmoothReLU": "smooth_relu",
}
_MORE = {"CELU, a = 2": "celu:2", "ELU, a = 2": "elu:2", "LeakyReLU": "leaky_relu"}


def study(scale: str) -> Study:
    """Compare activations, smooth gradients in the attack and in the update, controls and model sizes."""
    bench = _Bench(scale, sizes_of(scale, _SIZES))
    return Study(
        name="smooth",
        title="Smooth adversarial training",
        source="https://arxiv.org/abs/2006.14536",
        baseline="ReLU",
        arms=tuple(Arm(name, recipe) for name, recipe in _arms(bench).items()),
        claims=_CLAIMS,
        seeds=bench.sizes.seeds,
        apart=tuple(bench.strong()),
        remarks=(
            "All train by PGD-1: one step of eps from a random start. Nothing was tuned for one activation, but the "
            f"rate of all, {_RATE:g}, was chosen on seeds that the study does not use: at 0.1, Softplus learned "
            f"nothing. Weight decay is {_DECAY:g}, because these trainings are short.",
            "The net has no hidden linear layer. The first version had one without batch norm: half of its "
            "units died with ReLU, and with a smooth attacker nearly all (51, 23 and 12 % robust).",
            "Nets with ReLU are also attacked by PGD-20 along the surrogate gradients of softplus with alpha 1, 10 and "
            "100; the others, instead, by PGD-20 from three other starts.",
            f"Wide is twice the width, deep twice the convolutions before each stride. Epochs: {bench.epochs}.",
        ),
    )


class _Bench:
    """Builds recipes that differ in the network, the gradients and the number of epochs."""

    def __init__(self, scale: str, sizes: Sizes) -> None:
        self.scale, self.sizes, self.threat = scale, sizes, Linf(0.1)
        self.epochs = _EPOCHS[scale]
        self.pgd = PGD(self.threat, 2 if scale == "smoke" else 20, self.threat.eps / 4, patience=0)

    def train(
        self,
        activation: str = "relu",
        attack: PGD | None = None,
        times: int = 1,
        strong: bool = False,
        **size: int,
    ) -> Recipe:
        """Return a recipe with `times` as many epochs as usual; `size` are options of the network."""
        recipe = base(self.scale, self.sizes, self.threat, times * self.epochs)
        width = {"smoke": 2, "cpu": 8, "gpu": 64}[self.scale]
        options: dict[str, Scalar] = {
            "width": width,
            "batch_norm": True,
            "hidden": False,
            "activation": activation,
            **size,
        }
        return replace(
            recipe,
            model=Build(small_cnn, **options),
            method=Method(attack or FGSM(self.threat, self.threat.eps, RandomStart()), CrossEntropy()),
            lr=MultiStep(_RATE, tuple(round(share * recipe.epochs, 2) for share in (0.3, 0.6, 0.9))),
            optimizer=SGD(weight_decay=_DECAY, decay_vectors=False),
            evaluation=self.evaluation(activation == "relu", strong),
        )

    def scaled(self, activation: str) -> dict[str, Recipe]:
        wide = {"smoke": 4, "cpu": 16, "gpu": 128}[self.scale]
        return {"wide": self.train(activation, width=wide), "deep": self.train(activation, depth=2)}

    def surgery(self, attacker: bool, update: bool, strong: bool = False) -> Recipe:
        """Return a recipe for a ReLU network with the gradient of a softplus in the attack, the update or both."""
        recipe, smooth = self.train(strong=strong), SmoothBackward(10.0)
        inner: ModelMode = ComposedMode((eval_mode, smooth)) if attacker else eval_mode
        assert isinstance(recipe.method, Method)
        outer: ModelMode = smooth if update else unchanged
        return replace(recipe, method=replace(recipe.method, inner_mode=inner, outer_mode=outer))

    def evaluation(self, relu: bool, strong: bool) -> Evaluation:
        smoke = self.scale == "smoke"
        found: dict[str, Adversary | Cascade] = {}
        found |= {"fgsm": WhiteBox(FGSM(self.threat))} if smoke else evaluation(self.threat).adversaries
        pgd = WhiteBox(self.pgd)
        for alpha, start in _SURROGATES.items():
            again = WhiteBox(replace(self.pgd, start=start))
            found[f"backward {alpha:g}"] = SurrogateGradient(SmoothBackward(alpha), pgd) if relu else again
        found["square"] = WhiteBox(Square(self.threat, _QUERIES[self.scale]), Margin)
        return Evaluation(found | (self.strong() if strong else {}))

    def strong(self) -> dict[str, Adversary | Cascade]:
        """Return stronger adversaries: more steps, AutoAttack, and larger eps."""
        more = {"smoke": 4}.get(self.scale, 200)
        found: dict[str, Adversary | Cascade] = {f"pgd-{more}": WhiteBox(replace(self.pgd, steps=more))}
        if self.scale != "smoke":
            found["autoattack"] = AutoAttack(self.threat)
        for times in _TIMES:
            wide = Linf(times * self.threat.eps)
            found[f"eps x {times}"] = WhiteBox(replace(self.pgd, threat=wide, step_size=wide.eps / 4))
        return found


def _arms(bench: _Bench) -> dict[str, Recipe]:
    names = {"ReLU": "relu", **_SMOOTH, **_MORE}
    return {
        **{name: bench.train(kind, strong=name in _STRONG) for name, kind in names.items()},
        "ReLU, smooth attacker": bench.surgery(True, False),
        "ReLU, smooth update": bench.surgery(False, True),
        "ReLU, smooth both": bench.surgery(True, True, strong=True),
        "ReLU, PGD-2": bench.train(attack=PGD(bench.threat, 2, bench.threat.eps / 2)),
        "ReLU, twice as long": bench.train(times=2),
        **{f"ReLU, {size}": recipe for size, recipe in bench.scaled("relu").items()},
        **{f"SiLU, {size}": recipe for size, recipe in bench.scaled("silu").items()},
    }


def _less(cells: Cells, arm: str, other: str, under: str = WORST) -> Array:
    return cells(arm, under) - cells(other, under)


def _least(cells: Cells, arms: tuple[str, ...], other: str = "ReLU") -> Array:
    return np.min([_less(cells, arm, other) for arm in arms], axis=0)


def _more_steps(cells: Cells) -> Array:
    """Return the largest drop of accuracy from PGD-20 to PGD with many steps or AutoAttack."""
    names = {under for _, _, under in cells.values}
    known = [name for name in names if name.startswith("pgd-") or name == "autoattack"]
    first = min(known, key=lambda name: int(name.removeprefix("pgd-")) if name != "autoattack" else 10**6)
    return np.max([cells(arm, first) - cells(arm, name) for arm in _STRONG for name in known], axis=0)


_STRONG = ("ReLU", "SiLU", "ReLU, smooth both")
_NAMED = "; ".join(_STRONG)

_CLAIMS = (
    Claim(
        "SiLU is more robust than ReLU.",
        "its robust accuracy (worst), less that of ReLU, is above 0",
        lambda cells: _less(cells, "SiLU", "ReLU"),
    ),
    Claim(
        "SiLU is as accurate as ReLU.",
        "its clean accuracy, less that of ReLU, is above -1 point",
        lambda cells: _less(cells, "SiLU", "ReLU", "clean"),
        more_than=-0.01,
    ),
    Claim(
        "Each of the six smooth activations is more robust than ReLU.",
        "the lowest of their robust accuracies (worst), less that of ReLU, is above 0",
        lambda cells: _least(cells, tuple(_SMOOTH)),
    ),
    Claim(
        "With a = 2, ELU, which is not smooth, is less robust than CELU, which is smooth.",
        "robust accuracy (worst) of CELU, less that of ELU, is above 0",
        lambda cells: _less(cells, "CELU, a = 2", "ELU, a = 2"),
    ),
    Claim(
        "A smooth gradient for the attacker alone helps.",
        "robust accuracy (worst), less that of ReLU, is above 0",
        lambda cells: _less(cells, "ReLU, smooth attacker", "ReLU"),
    ),
    Claim(
        "A smooth gradient for the update alone helps.",
        "robust accuracy (worst), less that of ReLU, is above 0",
        lambda cells: _less(cells, "ReLU, smooth update", "ReLU"),
    ),
    Claim(
        "Both together help.",
        "robust accuracy (worst), less that of ReLU, is above 0",
        lambda cells: _less(cells, "ReLU, smooth both", "ReLU"),
    ),
    Claim(
        "A smooth forward pass helps beyond smooth gradients.",
        "robust accuracy (worst) of Parametric Softplus, less that of ReLU with both gradients smooth, is above 0",
        lambda cells: _less(cells, "Parametric Softplus", "ReLU, smooth both"),
    ),
    Claim(
        "A stronger attacker and longer training do not bring ReLU to SiLU.",
        "robust accuracy (worst) of SiLU, less the better of ReLU with PGD-2 and ReLU twice as long, is above 0",
        lambda cells: np.minimum(_less(cells, "SiLU", "ReLU, PGD-2"), _less(cells, "SiLU", "ReLU, twice as long")),
    ),
    Claim(
        "Wider and deeper nets with SiLU are more robust.",
        "robust accuracy (worst) of the less robust of wide and deep, less that of SiLU, is above 0",
        lambda cells: _least(cells, ("SiLU, wide", "SiLU, deep"), "SiLU"),
    ),
    Claim(
        "At each size SiLU is more robust than ReLU.",
        "the smaller of its gains in robust accuracy (worst) over ReLU, wide and deep, is above 0",
        lambda cells: np.minimum(*(_less(cells, f"SiLU, {size}", f"ReLU, {size}") for size in ("wide", "deep"))),
    ),
    Claim(
        "Robustness falls to zero as eps grows.",
        f"1 point, less the highest accuracy of {_NAMED} under PGD at {_TIMES[-1]} eps, is above 0",
        lambda cells: 0.01 - np.max([cells(arm, f"eps x {_TIMES[-1]}") for arm in _STRONG], axis=0),
    ),
    Claim(
        "More steps and AutoAttack find little more.",
        f"5 points, less the largest drop in accuracy of {_NAMED} from PGD-20 to PGD-200 or AutoAttack, is above 0",
        lambda cells: 0.05 - _more_steps(cells),
    ),
)
