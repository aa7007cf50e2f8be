"""Self-supervised adversarial training with kNN heads (https://arxiv.org/abs/1911.06470)."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.representation.on_run import study_representation
from ..analysis.representation.plot import plot_tradeoff
from ..attacks import APGD, PGD, Benign
from ..attacks.losses import TargetedDLR
from ..attacks.threats import Linf
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..core.types import Attack, Objective
from ..data import Crop, Digits, FashionMNIST, Flip, Jitter, ResizedCrop, Subset
from ..evaluation import Adversary, Cascade, Ensemble, FeatureAttack, KNNAttackSuite, MultiTargeted, PGDkNN, WhiteBox
from ..models import amdim
from ..objectives.contrastive import ContrastiveAT, ContrastivePretraining, KNNContrastiveAT
from ..objectives.contrasts import Contrast, InfoNCE, Multiscale, NTXent
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.instance_discrimination import InstanceDiscrimination
from ..objectives.logit_pairing import LogitPairing
from ..objectives.regularizers import Sum
from ..recipes._digits import pgd_on_digits
from ..recipes._selfsup import as_released, hardened, pretrained
from ..records.outcomes import Cells
from ..records.results import Array
from ..records.run_folder import RunFolder
from ..records.statistics import Claim
from ..runs.recipe import Evaluation, Recipe, recipe_from_plain
from ..training.cost import cost
from ..training.engine import Method
from ._common import Sizes, sizes_of
from .study import RUN, WORST, Arm, Measurement, Runs, Study, of_each, seeds_of

_SIZES = {"smoke": Sizes(120, 12, 1), "cpu": Sizes(4000, 400, 10), "gpu": Sizes(20_000, 1000, 10)}
_EPOCHS = {"smoke": (1, 1, 1), "cpu": (10, 4, 2), "gpu": (100, 40, 10)}  # without labels, with labels, SAT
_RATE = {"smoke": 1e-3, "cpu": 3e-3, "gpu": 1e-3}  # without labels
_NET: dict[str, dict[str, Any]] = {
    "smoke": {"width": 4, "dim": 8, "depth": 1, "k": 3},
    "cpu": {"width": 8, "dim": 64, "depth": 1, "k": 15},
    "gpu": {"width": 64, "dim": 128, "depth": 2, "k": 75},
}
_STEPS = {"smoke": 2, "cpu": 20, "gpu": 50}
_LOOK: dict[str, dict[str, Any]] = {
    "smoke": {"examples": 12, "bank": 60, "k": 3, "steps": 2, "restarts": 1, "softness": [0.05]},
    "cpu": {"examples": 100, "bank": 3200, "k": 15, "steps": 10, "restarts": 1, "softness": [0.05]},
    "gpu": {"examples": 500, "bank": 5000, "k": 75, "steps": 20, "restarts": 1, "softness": [0.05]},
}
_EPS, _HALF = 0.05, "half eps"
_GAIN, _LOSS = 0.10, 0.10
_SSL = ("AMDIM", "SimCLR", "NPID")
_RELEASED = "AMDIM + SAT, as released"
_BY_LABELS, _FOOLED = "AMDIM + SAT, the attack as released", "AMDIM + SAT, the filter as released"
_PAPERS = "as the paper"


def study(scale: str) -> Study:
    """Compare supervised, self-supervised, and self-supervised adversarial training of one encoder."""
    sizes = sizes_of(scale, _SIZES)
    bench = _Bench(scale, sizes)
    without, labelled, hard = _EPOCHS[scale]
    return Study(
        name="selfsup",
        title="Self-supervised adversarial training",
        source="https://arxiv.org/abs/1911.06470",
        baseline="Supervised",
        arms=bench.arms(),
        claims=_CLAIMS,
        seeds=sizes.seeds,
        apart=(_HALF,),
        remarks=(
            f"{sizes.train} images of Fashion-MNIST, of which {_SHARE:.0%} are held out; Linf {_EPS:g} in training and "
            f"evaluation, and {_EPS / 2:g} for *{_HALF}*. The encoder is AMDIM's with width {_NET[scale]['width']} in "
            "all arms, with a linear head for training with labels, and without labels a kNN head of the "
            f"{_NET[scale]['k']} nearest neighbours among the training images.",
            f"{without} epochs without labels (instance discrimination, of one view, twice as many), {labelled} with "
            f"labels; self-supervised adversarial training (SAT) is {hard} epochs of fine-tuning without augmentation, "
            "with PGD-3 on the contrast of an image with its clean version, without labels. *As released* the attack "
            "follows guides by labels, and a filter contrasts only images that the attack fools; two arms have one "
            "of both each.",
            f"*{_PAPERS}*: ten steps of eps / 6, as released, of PGD-kNN on kNN heads and of PGD on linear heads.",
            "SAT begins with the best epoch of the training before, which held-out labels chose; its gain and loss are "
            "measured against that epoch, and information against the last one.",
            "*worst*: a kNN head has to be robust to PGD and, in turn, to APGD on the cross-entropy of soft votes and "
            "towards three targets, PGD on soft votes, on guides, by a linear probe, and on the features by distance "
            "and cosine; a linear head to PGD, APGD on cross-entropy and towards three targets, and PGD on the "
            "distance of the features. The same number of steps each.",
            "*defended* is the defence success rate: the share of correctly classified images that are robust. Passes "
            "for a point of it are those of SAT, or of the whole training with labels, divided by the gain over the "
            "arm that it began with, or over Supervised; a gain below a point counts as one. They include encoding the "
            "bank, which the passes of the first table do not.",
            "Accuracies *by neighbours*, *by a probe* or *by its own head* are from the analysis: fewer images and "
            "steps, seven attacks on kNN heads (one of them by the probe) and three on the others. The second figure "
            "is of held-out images under the PGD that selects, after each epoch.",
            "The setting was tried on other seeds and much the same images: eps, at which a twentieth of the images "
            "of the supervised net stayed robust; rate, views, batch size, and numbers of images and epochs without "
            "labels, three or four of each, by the clean accuracy of AMDIM and by their cost. Temperatures, and the "
            "rates of other trainings, were not searched for.",
        ),
        measurements=(Measurement("representation", study_representation, _LOOK[scale]),),
        numbers=_numbers,
        draw=_draw,
    )


_SHARE = 0.2


class _Bench:
    """Builds recipes that differ in the training signal."""

    def __init__(self, scale: str, sizes: Sizes) -> None:
        smoke = scale == "smoke"
        self.scale, self.threat, self.steps = scale, Linf(_EPS), _STEPS[scale]
        self.without, self.labelled, self.hard = _EPOCHS[scale]
        self.pgd = PGD(self.threat, steps=3, step_size=_EPS / 2)
        source = Subset(Digits() if smoke else FashionMNIST(), sizes.train, sizes.test)
        self.base = replace(
            pgd_on_digits(_EPS),
            data=source,
            model=Build(amdim, **_NET[scale]),
            batch_size=64 if scale == "cpu" else 32 if smoke else 256,
            held_out=_SHARE,
            selection=replace(self.pgd, patience=0),
        )
        flips = () if smoke else (Flip(),)
        self.views = (Crop(2, "reflect"), *flips, ResizedCrop((0.4, 1.0)), Jitter(saturation=0.0))
        self.crops = (Crop(1 if smoke else 2), *flips)

    def supervised(self, attack: Attack, objective: Objective) -> Recipe:
        net = {name: value for name, value in _NET[self.scale].items() if name != "k"}
        return replace(
            self.base,
            model=Build(amdim, **net, read="linear"),
            method=Method(attack, objective),
            epochs=self.labelled,
            lr=Cyclic(0.1, top=0.3),
            augment=self.crops,
            selection=Benign() if isinstance(attack, Benign) else self.base.selection,
            evaluation=self._evaluation(self._on_layer, WhiteBox(as_released(self.threat, _EPS))),
        )

    def without_labels(self, objective: Objective, views: int = 2) -> Recipe:
        epochs = self.without * 2 // views
        recipe = pretrained(self.base, objective, epochs, _RATE[self.scale], self.views, views)
        papers = PGDkNN(as_released(self.threat, _EPS), 60 if self.scale == "smoke" else 300)
        return replace(recipe, evaluation=self._evaluation(self._on_neighbours, papers))

    def sat(self, before: Recipe, start: str, objective: Objective) -> Recipe:
        recipe = hardened(before, start, self.pgd, objective, epochs=self.hard, lr=5e-4)
        return replace(recipe, batch_size=self.base.batch_size, selection=self.base.selection)

    def arms(self) -> tuple[Arm, ...]:
        mixed = CrossEntropy(clean=0.5)
        before = {
            "AMDIM": self.without_labels(ContrastivePretraining(Multiscale(regularise=0.05))),
            "SimCLR": self.without_labels(ContrastivePretraining(NTXent(0.2))),
            "NPID": self.without_labels(InstanceDiscrimination(temperature=0.1, negatives=1024), views=1),
        }
        contrasts: dict[str, Contrast] = {"AMDIM": Multiscale(), "SimCLR": InfoNCE(), "NPID": InfoNCE()}
        after = {
            name: self.sat(recipe, f"{name.lower()}-{{seed}}", ContrastiveAT(contrasts[name]))
            for name, recipe in before.items()
        }
        guides = 60 if self.scale == "smoke" else 300
        released = KNNContrastiveAT(Multiscale(), guides=guides)
        variants = {
            _RELEASED: released,
            _BY_LABELS: replace(released, only_fooled=False),
            _FOOLED: replace(released, maximizes="contrast"),
        }
        return (
            Arm("Supervised", self.supervised(Benign(), CrossEntropy())),
            Arm("Supervised, AT", self.supervised(self.pgd, CrossEntropy())),
            Arm("Supervised, mixed AT", self.supervised(self.pgd, mixed)),
            Arm("Supervised, ALP", self.supervised(self.pgd, Sum((mixed, LogitPairing(0.5))))),
            *(Arm(name, recipe) for name, recipe in before.items()),
            *(Arm(f"{name} + SAT", recipe, after=True) for name, recipe in after.items()),
            *(
                Arm(name, self.sat(before["AMDIM"], "amdim-{seed}", objective), after=True)
                for name, objective in variants.items()
            ),
        )

    def _evaluation(self, strong: Callable[[Linf], Cascade], papers: Adversary) -> Evaluation:
        half = Linf(_EPS / 2)
        weaker = self._pgd(half) if self.scale == "smoke" else strong(half)
        found: dict[str, Adversary | Cascade] = {f"pgd-{self.steps}": self._pgd(self.threat), _PAPERS: papers}
        return Evaluation({**found, "strong": strong(self.threat), _HALF: weaker})

    def _pgd(self, threat: Linf) -> WhiteBox:
        return WhiteBox(PGD(threat, self.steps, threat.eps / 4, patience=0))

    def _on_neighbours(self, threat: Linf) -> Cascade:
        return KNNAttackSuite(threat, self.steps, restarts=1, softness=(0.05,))

    def _on_layer(self, threat: Linf) -> Cascade:
        apgd, pgd = APGD(threat, self.steps), PGD(threat, self.steps, threat.eps / 4, patience=0)
        targets = MultiTargeted(apgd, TargetedDLR, 3)
        return Ensemble({"apgd-ce": WhiteBox(apgd), "apgd-t": targets, "distance": FeatureAttack(pgd)})


# -- numbers of the runs


def _numbers(runs: Runs) -> dict[tuple[str, str], Array]:
    """Return numbers `[S]` of every training."""
    return of_each(runs, lambda arm, seed: _of_run(runs, arm, seed))


def _of_run(runs: Runs, arm: str, seed: int) -> dict[str, float]:
    run = runs[arm, seed]
    seen = run.read_analysis("representation")
    facts = {
        "defended": _defended(run),
        "defended, half eps": _defended(run, _HALF),
        **_read(seen["readings"]),
        "information kept, nats": seen["information"]["value"],
        "effective rank": seen["rank"],
    }
    before = _BEFORE.get(arm)
    if before is not None:
        first = runs[before, seed]
        tuned = before != "Supervised"
        gained = max(1.0, 100 * (facts["defended"] - _defended(first, which="best" if tuned else "last")))
        facts[_PRICE] = 1000 * _million_passes(run) / gained
        facts[_WHOLE] = 1000 * (_million_passes(run) + (_million_passes(first) if tuned else 0.0)) / gained
    return facts


_READ = {"nearest neighbours": "by neighbours", "linear probe": "by a probe", "its own head": "by its own head"}


def _read(readings: dict[str, Any]) -> dict[str, float]:
    """Return accuracies of each head from the analysis, which has fewer images and steps than the evaluation."""
    return {
        f"{name}: {what}": each[what]["accuracy"]
        for ending, name in _READ.items()
        for reading, each in readings.items()
        if reading.endswith(ending)
        for what in ("clean", "defended")
    }


_PRICE = "thousand passes for a point"
_WHOLE = "the same, pre-training too"
_BEFORE = {
    **{f"Supervised, {how}": "Supervised" for how in ("AT", "mixed AT", "ALP")},
    **{f"{name} + SAT": name for name in _SSL},
    **dict.fromkeys((_RELEASED, _BY_LABELS, _FOOLED), "AMDIM"),
}


def _defended(run: RunFolder, under: str | None = None, which: str = "last") -> float:
    robust = run.read_flags(which).robust
    names = [n for n in robust if "/" not in n and n != _HALF] if under is None else [under]
    return float(np.logical_and.reduce([robust[n] for n in names]).sum() / robust["clean"].sum())


def _million_passes(run: RunFolder) -> float:
    recipe = recipe_from_plain(run.recipe() or {})
    rows = [row["step"] for row in run.metrics() if "held_out" in row]
    steps, size = rows[-1], recipe.batch_size * recipe.views_per_image
    each = cost(recipe.method, recipe.update, recipe.epochs, rows[0]).both
    objective = recipe.method.objective
    data = recipe.data
    encode = 0.0
    if isinstance(objective, KNNContrastiveAT) and isinstance(data, Subset):  # forward passes alone
        encode = math.ceil(steps / objective.refresh) * round((1 - recipe.held_out) * data.train) / 2
    return (each * steps * size + encode) / 1e6


def _draw(runs: Runs, folder: Path) -> None:
    """Plot accuracy against the defended share of the held-out images, after each epoch of SAT."""
    seeds = seeds_of(runs)
    curves, points = {}, {}
    for arm in _BEFORE:
        clean, defense_success_rate = np.mean([_held_out(runs[arm, seed]) for seed in range(seeds)], axis=0)
        if arm.startswith("Supervised"):
            points[arm] = float(clean[-1]), float(defense_success_rate[-1])
        else:
            curves[arm] = clean, defense_success_rate
    for kind in ("svg", "png"):
        plot_tradeoff(curves, points, folder / f"tradeoff.{kind}")


def _held_out(run: RunFolder) -> tuple[Array, Array]:
    rows = [row["held_out"] for row in run.metrics() if "held_out" in row]
    clean, robust = (np.array([row[name] for row in rows]) for name in ("clean", "robust"))
    return clean, robust / np.maximum(clean, 1e-9)


# -- claims


def _rate(cells: Cells, arm: str, under: str = WORST, which: str = "last") -> Array:
    """Return the defence success rate."""
    return cells(arm, under, which) / np.maximum(cells(arm, "clean", which), 1e-9)


def _more(arm: str, other: str, under: str = WORST) -> Callable[[Cells], Array]:
    return lambda cells: _rate(cells, arm, under) - _rate(cells, other, under)


def _gained(name: str) -> Callable[[Cells], Array]:
    """Return the gain of the rate by self-supervised adversarial training, less the gain that is claimed."""
    return lambda cells: _rate(cells, f"{name} + SAT") - _rate(cells, name, which="best") - _GAIN


def _spared(name: str) -> Callable[[Cells], Array]:
    """Return the largest loss of accuracy that is claimed, less that by self-supervised adversarial training."""
    return lambda cells: _LOSS - (cells(name, "clean", "best") - cells(f"{name} + SAT", "clean"))


_ABSTRACT = {
    "defends": "nearest neighbours of self-supervised features are more robust than the supervised net: 52 % against "
    "19 % of the correct images of CIFAR-10 stay correct (read off the authors' plots)",
    "gains": "maximising the information that clean and adversarial features share brings these 52 % to 86 % (the "
    "authors' logs)",
    "is cheap": "it is cheap: less than one pass over the training images",
}
"""What the abstract says of AMDIM, with the numbers that the authors published."""

_CLAIMS = (
    *(
        Claim(
            f"{name} with a kNN head defends more than the supervised net.",
            "defence success rate (worst), less that of Supervised, is above 0",
            _more(name, "Supervised"),
            family="without labels",
            headline=_ABSTRACT["defends"] if name == "AMDIM" else "",
        )
        for name in _SSL
    ),
    *(
        Claim(
            f"{name} with a kNN head defends more than the supervised net under the paper's attacks.",
            f"defence success rate under PGD-kNN, less that of Supervised under PGD (*{_PAPERS}*), is above 0",
            _more(name, "Supervised", _PAPERS),
            family="without labels, the paper's attacks",
        )
        for name in _SSL
    ),
    *(
        Claim(
            f"{name} with a kNN head does at half the eps, too.",
            f"the same difference at eps {_EPS / 2:g} is above 0",
            _more(name, "Supervised", _HALF),
            family="without labels, half the eps",
        )
        for name in _SSL
    ),
    Claim(
        "It is the representation, not the head: neighbours defend supervised features by less than 10 points more.",
        "10 points, plus the rate of Supervised's own head, less that of its features read by neighbours (both by the "
        "analysis), is above 0",
        lambda cells: (
            0.1
            + cells("Supervised", "by its own head: defended", RUN)
            - cells("Supervised", "by neighbours: defended", RUN)
        ),
    ),
    Claim(
        "Neighbours defend the features of AMDIM more than a linear probe does.",
        "the rate read by neighbours, less that by a probe (both by the analysis), is above 0",
        lambda cells: cells("AMDIM", "by neighbours: defended", RUN) - cells("AMDIM", "by a probe: defended", RUN),
    ),
    *(
        Claim(
            f"Self-supervised adversarial training hardens {name} by more than {100 * _GAIN:.0f} points.",
            f"its gain in the rate (worst), less {_GAIN:.0%}, is above 0",
            _gained(name),
            family="gain",
            headline=_ABSTRACT["gains"] if name == "AMDIM" else "",
        )
        for name in _SSL
    ),
    *(
        Claim(
            f"It costs {name} less than {100 * _LOSS:.0f} points of accuracy.",
            f"{_LOSS:.0%}, less its loss of accuracy, is above 0",
            _spared(name),
            family="price",
        )
        for name in _SSL
    ),
    *(
        Claim(
            f"Supervised adversarial training defends more still: than {name} + SAT.",
            f"the rate (worst) of Supervised, AT, less that of {name} + SAT, is above 0",
            _more("Supervised, AT", f"{name} + SAT"),
            family="supervised",
        )
        for name in _SSL
    ),
    Claim(
        "Self-supervised adversarial training keeps more accuracy.",
        "clean accuracy of AMDIM + SAT, less that of Supervised, AT, is above 0",
        lambda cells: cells("AMDIM + SAT", "clean") - cells("Supervised, AT", "clean"),
    ),
    Claim(
        "Self-supervised adversarial training hardens more than the released variant.",
        "the rate (worst) of AMDIM + SAT, less that of the run as released, is above 0",
        _more("AMDIM + SAT", _RELEASED),
    ),
    Claim(
        "An attack without labels hardens more.",
        "the rate (worst) of AMDIM + SAT, less that with the attack on guides of the released code, is above 0",
        _more("AMDIM + SAT", _BY_LABELS),
    ),
    Claim(
        "Contrasting all images hardens more.",
        "the rate (worst) of AMDIM + SAT, less that with only those images that the attack fools, is above 0",
        _more("AMDIM + SAT", _FOOLED),
    ),
    Claim(
        "It is cheap: passes for a point of robustness.",
        "those of Supervised, AT, less those of AMDIM + SAT (without its pre-training), is above 0",
        lambda cells: cells("Supervised, AT", _PRICE, RUN) - cells("AMDIM + SAT", _PRICE, RUN),
        unit="(thousand passes)",
        headline=_ABSTRACT["is cheap"],
    ),
    Claim(
        "It is cheap with its pre-training, too.",
        "the same difference, with the passes of AMDIM's pre-training added, is above 0",
        lambda cells: cells("Supervised, AT", _PRICE, RUN) - cells("AMDIM + SAT", _WHOLE, RUN),
        unit="(thousand passes)",
    ),
    Claim(
        "After it, the features keep more of an image under attack.",
        "the information bound of AMDIM + SAT, less that of AMDIM, is above 0",
        lambda cells: (
            cells("AMDIM + SAT", "information kept, nats", RUN) - cells("AMDIM", "information kept, nats", RUN)
        ),
        unit="(nats)",
    ),
)
