"""Memorization in adversarial training, and temporal ensembling (https://arxiv.org/abs/2106.01606)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..analysis.memorization.on_run import study_memorization
from ..analysis.memorization.stability import DIRECTIONS
from ..attacks import PGD, GaussianStart, RandomStart
from ..attacks.threats import Linf
from ..core.schedules import MultiStep, Ramp
from ..core.serialization import Build
from ..core.types import Objective
from ..data import Alteration, DifficultySubset, Digits, FashionMNIST, LabelNoise, Source, Subset
from ..models import preact_resnet18, small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.regularizers import Sum
from ..objectives.temporal_ensembling import TemporalEnsembling
from ..objectives.trades import TRADES
from ..recipes._digits import pgd_on_digits
from ..records.outcomes import Cells
from ..records.results import Array
from ..records.statistics import Claim
from ..runs.recipe import Recipe
from ..training.averaging import SWA
from ..training.engine import Method
from ..training.example_history import remembering
from ..training.optimizers import SGD
from ..training.updates import AWP
from ._common import Sizes, evaluation, sizes_of
from .study import RUN, WORST, Arm, Measurement, Runs, Study, of_each, seeds_of

_SIZES = {"smoke": Sizes(60, 12, 1), "cpu": Sizes(400, 1000, 10), "gpu": Sizes(5000, 2000, 10)}
_DIGITS = {"smoke": 450, "cpu": 360, "gpu": 1200}
_FIT = {"smoke": 1, "cpu": 75, "gpu": 150}  # epochs with digits
_MORE = {"smoke": (450, 1), "cpu": (1200, 60), "gpu": (1200, 120)}  # of the digits: images and epochs
_LONG = {"smoke": 2, "cpu": 36, "gpu": 100}  # epochs with Fashion-MNIST
_LOOK = {"smoke": (12, 6, 1), "cpu": (360, 40, 10), "gpu": (1000, 500, 10)}  # images, those for Jacobians, steps
_NOISE = 0.2
_AWAY = 0.1  # length by which weights are moved to measure stability
_TAU = 0.5  # rank correlation above which a measure explains the gap


def study(scale: str) -> Study:
    """Study random labels, stability, complexity measures, robust overfitting and its cures, and hard examples."""
    sizes = sizes_of(scale, _SIZES)
    digits, clothes = _Digits(scale, sizes), _Clothes(scale, sizes)
    examples, close, steps = _LOOK[scale]
    return Study(
        name="memorization",
        title="Memorization in adversarial training",
        source="https://arxiv.org/abs/2106.01606",
        baseline="PGD-AT",
        arms=(*clothes.arms(), *digits.arms()),
        claims=_CLAIMS,
        seeds=sizes.seeds,
        remarks=(
            f"*Digits* arms: {_DIGITS[scale]} digits, no weight decay, {_FIT[scale]} epochs, the rate divided by 10 "
            "after each third; Linf 3/32, or 1/16 where noted. The latter is 0.15 of the smallest distance between "
            "digits of different classes, as 8/255 is on CIFAR-10.",
            f"*More digits*: {_MORE[scale][0]} of them, {_MORE[scale][1]} epochs at a rate of 0.01, divided by 10 at "
            "two thirds and at five sixths. The rate was chosen on another seed, by TRADES: at 0.1 neither method left "
            "chance in 21 epochs.",
            f"The others: {sizes.train} images of Fashion-MNIST, Linf {_Clothes.eps:g}, no weight decay, "
            f"{_LONG[scale]} epochs, the rate divided by 10 at a third and at three quarters; {100 * _NOISE:g} % of "
            "the labels are drawn anew (a tenth of these keep their label by chance) unless the name of an arm says "
            "otherwise. Held-out and test labels are true, and the held-out images choose the best epoch.",
            "The setting was searched for on other seeds, but on the same images: without noise, robust overfitting "
            "was a point or two here. A first version of this study divided the rate at a half, when the net had "
            "already memorized labels; there best less last was -2, 15 and 9 points by seed, because the accuracy "
            "jumped between epochs. Temporal ensembling was tried with two weights (30, the paper's, and 100, which "
            "destroyed training) and three starting epochs: after the net began to memorize it came too late; it "
            "starts before the rate is divided, as in the paper. SWA, AWP and label smoothing were not tuned.",
            f"Stability is measured with the weights moved by {_AWAY:g} along the gradient, up or down, whichever is "
            "worse. Rank correlations are Kendall's. Training accuracies are of all training examples, under the PGD "
            "of the example history; the gap is under the PGD of the analysis.",
            "Easy, hard and random examples are 80 % of the training set, by the adversarial losses of the PGD-AT net "
            "of the same seed. With noise, the hardest are mostly those with wrong labels: their share is in the "
            "table.",
        ),
        measurements=(
            Measurement(
                "memorization",
                study_memorization,
                {"examples": examples, "jacobian_examples": close, "steps": steps, "lengths": [_AWAY]},
            ),
        ),
        numbers=_numbers,
        shares={_ACCURACY: min(_DIGITS[scale], sizes.train)},
    )


class _Digits:
    """Recipes that test whether a network can memorize labels: a large network on few digits."""

    def __init__(self, scale: str, sizes: Sizes) -> None:
        self.scale, self.test = scale, min(sizes.test, 360)  # the digits have no more

    def train(self, objective: Objective, rate: float = 0.0, eps: float = 3 / 32) -> Recipe:
        count, smoke, epochs = _DIGITS[self.scale], self.scale == "smoke", _FIT[self.scale]
        threat, start = Linf(eps), GaussianStart() if isinstance(objective, TRADES) else RandomStart()
        recipe = _base(threat, Subset(Digits(), round(count / 0.9), self.test), held_out=0.1, smoke=smoke)
        attack = PGD(threat, steps=2 if smoke else 10, step_size=eps / 4, start=start)
        return replace(
            recipe,
            model=Build(small_cnn, width=2 if smoke else 48, batch_norm=True),
            method=Method(attack, objective),
            epochs=epochs,
            lr=MultiStep(0.1, (epochs / 3, 2 * epochs / 3)),
            batch_size=45,
            alterations=(LabelNoise(rate),) if rate else (),
            example_history=remembering(recipe.selection, max(1, epochs // 10)),
        )

    def more(self, objective: Objective) -> Recipe:
        """A training on the random labels of more digits."""
        recipe = self.train(objective, 1.0, 1 / 16)
        count, epochs = _MORE[self.scale]
        return replace(
            recipe,
            data=Subset(Digits(), round(count / 0.9), self.test),
            epochs=epochs,
            lr=MultiStep(0.01, (2 * epochs / 3, 5 * epochs / 6)),  # at 0.1 neither method leaves chance
            example_history=remembering(recipe.selection, max(1, epochs // 10)),
        )

    def arms(self) -> list[Arm]:
        return [
            Arm("Digits, PGD-AT", self.train(CrossEntropy())),
            Arm("Digits, TRADES", self.train(TRADES())),
            Arm("Digits, PGD-AT, random labels", self.train(CrossEntropy(), 1.0)),
            Arm("Digits, TRADES, random labels", self.train(TRADES(), 1.0)),
            Arm("Digits, PGD-AT with clean images, random labels", self.train(CrossEntropy(clean=0.5), 1.0)),
            Arm("Digits, PGD-AT, random labels, eps 1/16", self.train(CrossEntropy(), 1.0, 1 / 16)),
            Arm("Digits, TRADES, random labels, eps 1/16", self.train(TRADES(), 1.0, 1 / 16)),
            Arm("More digits, PGD-AT, random labels, eps 1/16", self.more(CrossEntropy())),
            Arm("More digits, TRADES, random labels, eps 1/16", self.more(TRADES())),
        ]


class _Clothes:
    """Recipes for the effect of memorization on robustness: a network that can memorize a few hundred noisy labels."""

    eps = 0.05

    def __init__(self, scale: str, sizes: Sizes) -> None:
        self.scale, self.sizes, self.threat, self.epochs = scale, sizes, Linf(self.eps), _LONG[scale]

    def train(self, objective: Objective, noise: float = _NOISE, *more: Alteration) -> Recipe:
        smoke, third = self.scale == "smoke", 1 / 3
        source: Source = Digits() if smoke else FashionMNIST()
        data = Subset(source, round(self.sizes.train / (1 - third)), self.sizes.test)
        inner = objective.parts[0] if isinstance(objective, Sum) else objective
        start = GaussianStart() if isinstance(inner, TRADES) else RandomStart()
        recipe = _base(self.threat, data, held_out=third, smoke=smoke)
        model = {
            "smoke": Build(small_cnn, width=2, batch_norm=True),
            "cpu": Build(small_cnn, width=16, batch_norm=True),
            "gpu": Build(preact_resnet18, width=0.5),
        }
        return replace(
            recipe,
            model=model[self.scale],
            method=Method(PGD(self.threat, steps=2 if smoke else 5, step_size=self.eps / 3, start=start), objective),
            epochs=self.epochs,
            lr=MultiStep(0.05, (self.epochs / 3, 0.75 * self.epochs)),
            batch_size=32 if smoke else 64,
            alterations=(*((LabelNoise(noise),) if noise else ()), *more),
        )

    def ensembled(self, method: CrossEntropy | TRADES) -> Objective:
        ramp = Ramp(30.0, round(self.epochs / 7), round(0.4 * self.epochs))
        return Sum((method, TemporalEnsembling(ramp, on="clean" if isinstance(method, TRADES) else "adversarial")))

    def kept(self, which: Any) -> Recipe:
        by = () if which == "random" else ("pgd-at-{seed}",)
        return self.train(CrossEntropy(), _NOISE, DifficultySubset(0.8, which, by))

    def arms(self) -> list[Arm]:
        pgd = self.train(CrossEntropy())
        return [
            Arm("PGD-AT", pgd),
            Arm("PGD-AT + TE", self.train(self.ensembled(CrossEntropy()))),
            Arm("TRADES", self.train(TRADES())),
            Arm("TRADES + TE", self.train(self.ensembled(TRADES()))),
            Arm("SWA", replace(pgd, averaging=SWA(self.epochs // 4))),
            Arm("AWP", replace(pgd, update=AWP(0.01))),
            Arm("Label smoothing 0.3", self.train(CrossEntropy(label_smoothing=0.3))),
            Arm("PGD-AT, true labels", self.train(CrossEntropy(), 0.0)),
            Arm("PGD-AT + TE, true labels", self.train(self.ensembled(CrossEntropy()), 0.0)),
            Arm("TRADES, true labels", self.train(TRADES(), 0.0)),
            Arm("PGD-AT, half random", self.train(CrossEntropy(), 0.5)),
            Arm("TRADES, random", self.train(TRADES(), 1.0)),
            *(Arm(f"The {which} 80 %", self.kept(which), after=True) for which in ("easy", "random", "hard")),
        ]


def _base(threat: Linf, data: Source, held_out: float, smoke: bool) -> Recipe:
    select = PGD(threat, steps=1 if smoke else 3, step_size=threat.eps / 2, patience=0)
    return replace(
        pgd_on_digits(threat.eps),
        data=data,
        optimizer=SGD(weight_decay=0.0),
        held_out=held_out,
        selection=select,
        evaluation=evaluation(threat, *((2, 2, 1) if smoke else (20, 20, 3))),
        example_history=remembering(select, every=1 if smoke else 3),
    )


# -- numbers of the runs


def _numbers(runs: Runs) -> dict[tuple[str, str], Array]:
    """Return numbers `[S]` of every training, of pairs of trainings, and of groups of them."""
    seeds = seeds_of(runs)
    seen: dict[tuple[str, int], Any] = {key: run.read_analysis("memorization") for key, run in runs.items()}
    found = of_each(runs, lambda arm, seed: _of_run(seen[arm, seed]))
    for arm, other, same in _PAIRS:
        pairs = [(seed, seed if same else _another_seed(seed, seeds)) for seed in range(seeds)]
        taus = [_tau(runs, (arm, one), (other, two)) for one, two in pairs]
        found[arm, f"tau with {other}"] = np.array(taus)
    names = _measured([each for (arm, _), each in seen.items() if arm in (*_NOISY, *_RANDOM)])
    for group, chosen in _GROUPS.items():
        by_name = [[_explained([seen[arm, seed] for arm in chosen], name) for seed in range(seeds)] for name in names]
        found |= {(group, name): np.array(taus) for name, taus in zip(names, by_name, strict=True)}
        found[group, _SHARE] = (np.abs(by_name) > _TAU).mean(0)
    return found


def _of_run(seen: Mapping[str, Any]) -> dict[str, float]:
    gradients = [value for value in seen["gradient"].values() if value is not None]
    facts = {
        _ACCURACY: seen["memory"]["clean accuracy"][-1],
        "train accuracy, robust": seen["memory"]["robust accuracy"][-1],
        "gap": seen["robust generalisation gap"],
        "wrong labels": seen["labels"]["wrong"],
        "length of the gradient": float(np.mean(gradients)) if gradients else np.nan,
    }
    return facts | {f"cosine, {loss}": _cosine(seen, loss) for loss in ("clean", "PGD-AT", "TRADES")}


def _cosine(seen: Mapping[str, Any], loss: str) -> float:
    """Return the cosine between the gradients of a loss before and after the move, the smaller of up and down."""
    stable = seen["stability"]
    where = stable["lengths"].index(_AWAY)
    ways = [stable["losses"][loss][f"weights moved by length x ({way})"] for way in DIRECTIONS.values()]
    return min(way["cosine"][where] for way in ways)


def _another_seed(seed: int, seeds: int) -> int:
    """Return another seed, which stays the same when seeds are added."""
    return seed - 1 if seed else min(1, seeds - 1)


def _tau(runs: Runs, one: tuple[str, int], other: tuple[str, int]) -> float:
    """Return Kendall's tau of the difficulties that two runs recorded for the same examples."""
    a, b = (runs[key].read_memory().difficulty for key in (one, other))
    return _kendall(a, b)


def _measured(runs: list[Any]) -> list[str]:
    """Return the names of the measures that are defined for all runs."""
    return [name for name in runs[0]["measures"] if all(isinstance(run["measures"][name], float) for run in runs)]


def _explained(runs: list[Any], name: str) -> float:
    """Return Kendall's tau of a measure and the robust generalisation gap."""
    return _kendall([run["measures"][name] for run in runs], [run["robust generalisation gap"] for run in runs])


def _kendall(a: Any, b: Any) -> float:
    """Return Kendall's tau, or 0 if one of the sequences is constant."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(a, b).statistic)
    return 0.0 if np.isnan(tau) else tau


_PAIRS = (("PGD-AT, true labels", "TRADES, true labels", False), ("PGD-AT", "TRADES", True))
"""Two trainings on the same examples, and whether of the same seed, which decides the noise of the labels."""

_CURES = ("SWA", "AWP", "Label smoothing 0.3")
_NOISY = (
    *("PGD-AT", "PGD-AT + TE", "TRADES", "TRADES + TE", *_CURES),
    *("PGD-AT, true labels", "PGD-AT + TE, true labels", "TRADES, true labels"),
)
_RANDOM = ("PGD-AT, half random", "TRADES, random")
_WITHOUT, _WITH = f"tau with the gap, at most {100 * _NOISE:g} % noise", "tau with the gap, 50 and 100 % too"
_GROUPS = {_WITHOUT: _NOISY, _WITH: (*_NOISY, *_RANDOM)}
_SHARE = f"share of the measures beyond {_TAU:g}, up or down"


# -- claims


_ACCURACY = "train accuracy, clean"


def _run(cells: Cells, arm: str, name: str) -> Array:
    return cells(arm, name, RUN)


def _fit(cells: Cells, arm: str) -> Array:
    """Return the clean training accuracy of an arm."""
    return _run(cells, f"Digits, {arm}", _ACCURACY)


def _beyond(other: str) -> Callable[[Cells], Array]:
    """Return the robust accuracy with temporal ensembling less that of another arm."""
    return lambda cells: cells("PGD-AT + TE", WORST) - cells(other, WORST)


def _fits(arm: str) -> Callable[[Cells], Array]:
    return lambda cells: _fit(cells, arm) - 0.95


def _fall(cells: Cells, arm: str) -> Array:
    """Return the robust accuracy of the best epoch less that of the last."""
    return cells(arm, WORST, "best") - cells(arm, WORST, "last")


def _steadier(cells: Cells, arm: str) -> Array:
    """Return the cosine of the gradient of TRADES less that of PGD-AT after a move, at the weights of an arm."""
    return _run(cells, arm, "cosine, TRADES") - _run(cells, arm, "cosine, PGD-AT")


_RANDOM_LABELS = "on random labels TRADES reaches nearly 100 % training accuracy, and PGD-AT does not converge"

_CLAIMS = (
    Claim(
        "TRADES fits random labels at the relative eps of the paper.",
        "its training accuracy (clean, digits, eps 1/16), less 95 %, is above 0",
        _fits("TRADES, random labels, eps 1/16"),
        headline=_RANDOM_LABELS,
    ),
    Claim(
        "PGD-AT does not, at that eps.",
        "95 %, less its training accuracy (clean, digits, eps 1/16), is above 0",
        lambda cells: 0.95 - _fit(cells, "PGD-AT, random labels, eps 1/16"),
        headline=_RANDOM_LABELS,
    ),
    Claim(
        "TRADES fits the random labels of more digits, too.",
        "its training accuracy (clean, more digits, eps 1/16), less 95 %, is above 0",
        lambda cells: _run(cells, "More digits, TRADES, random labels, eps 1/16", _ACCURACY) - 0.95,
        headline=_RANDOM_LABELS,
    ),
    Claim(
        "PGD-AT does not, on more digits.",
        "95 %, less its training accuracy (clean, more digits, eps 1/16), is above 0",
        lambda cells: 0.95 - _run(cells, "More digits, PGD-AT, random labels, eps 1/16", _ACCURACY),
        headline=_RANDOM_LABELS,
    ),
    Claim(
        "TRADES fits random labels at an eps half as large again.",
        "its training accuracy (clean, digits, eps 3/32), less 95 %, is above 0",
        _fits("TRADES, random labels"),
    ),
    Claim(
        "PGD-AT does not, at that larger eps.",
        "95 %, less its training accuracy (clean, digits, eps 3/32), is above 0",
        lambda cells: 0.95 - _fit(cells, "PGD-AT, random labels"),
    ),
    Claim(
        "With a clean term, PGD-AT fits them.",
        "its training accuracy (clean, digits), less 95 %, is above 0",
        _fits("PGD-AT with clean images, random labels"),
    ),
    *(
        Claim(
            f"Both fit true labels: {arm}.",
            "its training accuracy (clean, digits), less 95 %, is above 0",
            _fits(arm),
            family="true labels",
        )
        for arm in ("PGD-AT", "TRADES")
    ),
    Claim(
        "On random labels, the gradients of PGD-AT are smaller than those of TRADES.",
        "the mean length of the gradient in training of TRADES, less that of PGD-AT (digits; each of its own loss, and "
        "that of TRADES contains six times a divergence), is above 0",
        lambda cells: (
            _run(cells, "Digits, TRADES, random labels", "length of the gradient")
            - _run(cells, "Digits, PGD-AT, random labels", "length of the gradient")
        ),
        unit="(length)",
    ),
    Claim(
        "At the same weights, the gradient of TRADES is more stable than that of PGD-AT.",
        "the cosine after a move of the gradient of TRADES, less that of PGD-AT, for the net that TRADES trained on "
        "random labels (digits), is above 0",
        lambda cells: _steadier(cells, "Digits, TRADES, random labels"),
        unit="(cosine)",
    ),
    Claim(
        "It is more stable at the weights of PGD-AT, too.",
        "the same difference, for the net that PGD-AT trained on random labels (digits), is above 0",
        lambda cells: _steadier(cells, "Digits, PGD-AT, random labels"),
        unit="(cosine)",
    ),
    Claim(
        "Most complexity measures do not explain the gap once nets on random labels are among the runs.",
        f"a half, less the {_SHARE}, is above 0",
        lambda cells: 0.5 - _run(cells, _WITH, _SHARE),
        unit="(share)",
        headline="most complexity measures fail to explain robust generalisation once random labels are included",
    ),
    Claim(
        "Fewer measures explain the gap with them than without them.",
        f"the {_SHARE}, without them, less that with them, is above 0",
        lambda cells: _run(cells, _WITHOUT, _SHARE) - _run(cells, _WITH, _SHARE),
        unit="(share)",
    ),
    Claim(
        "Robust overfitting: PGD-AT's best epoch is more than 3 points better than its last.",
        "robust accuracy (worst) of the best epoch, less that of the last, is above 3 points",
        lambda cells: _fall(cells, "PGD-AT"),
        more_than=0.03,
    ),
    Claim(
        "Temporal ensembling reduces it.",
        "best less last of PGD-AT, less that with the term, is above 0",
        lambda cells: _fall(cells, "PGD-AT") - _fall(cells, "PGD-AT + TE"),
        headline="robust overfitting comes of memorised labels, and temporal ensembling reduces it",
    ),
    Claim(
        "Temporal ensembling makes PGD-AT more robust in the end.",
        "robust accuracy (worst, last) with it, less that without it, is above 0",
        lambda cells: cells("PGD-AT + TE", WORST) - cells("PGD-AT", WORST),
    ),
    Claim(
        "It does more than stopping early.",
        "robust accuracy (worst) of its best epoch, less that of PGD-AT's best epoch, is above 0",
        lambda cells: cells("PGD-AT + TE", WORST, "best") - cells("PGD-AT", WORST, "best"),
    ),
    Claim(
        "It helps where all labels are true.",
        "robust accuracy (worst, last) with it, less that without it, on true labels, is above 0",
        lambda cells: cells("PGD-AT + TE, true labels", WORST) - cells("PGD-AT, true labels", WORST),
    ),
    Claim(
        "It makes TRADES more robust in the end.",
        "robust accuracy (worst, last) with it, less that without it, is above 0",
        lambda cells: cells("TRADES + TE", WORST) - cells("TRADES", WORST),
    ),
    *(
        Claim(
            f"Temporal ensembling does more than other cures: {arm}.",
            "robust accuracy (worst, last) of PGD-AT with it, less that of the other cure, is above 0",
            _beyond(arm),
            family="cures",
        )
        for arm in _CURES
    ),
    Claim(
        "Hard examples are hard for every net.",
        "the rank correlation of the losses that PGD-AT and TRADES, with different seeds on true labels, recorded, "
        f"less {_TAU:g}, is above 0",
        lambda cells: _run(cells, "PGD-AT, true labels", "tau with TRADES, true labels") - _TAU,
        unit="(tau)",
    ),
    Claim(
        "Without the hardest examples, robust overfitting is smaller.",
        "best less last on a random 80 %, less that on the easy 80 %, is above 0",
        lambda cells: _fall(cells, "The random 80 %") - _fall(cells, "The easy 80 %"),
    ),
    Claim(
        "Without the easiest examples, robust overfitting is larger.",
        "best less last on the hard 80 %, less that on a random 80 %, is above 0",
        lambda cells: _fall(cells, "The hard 80 %") - _fall(cells, "The random 80 %"),
    ),
)
