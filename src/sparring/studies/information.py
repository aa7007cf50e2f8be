"""Information, transfer and inversion of robust networks (https://arxiv.org/abs/2007.11259)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.information.on_run import study_information
from ..analysis.information.plot import plot_against_eps, plot_inversions
from ..analysis.inversion.on_run import INSIDE, study_inversion, study_inversion_jointly
from ..analysis.transfer.on_run import POOLED_TRANSFER, TRANSFER, study_pooled_transfer, study_transfer
from ..attacks import APGD, PGD, Benign, RandomEps
from ..attacks.losses import TargetedDLR
from ..attacks.threats import L2
from ..core.reading import read_json
from ..core.schedules import Cyclic
from ..core.serialization import Build
from ..core.types import Attack
from ..data import ClassSubset, Digits, FashionMNIST, Subset
from ..evaluation import Adversary, MultiTargeted, WhiteBox
from ..models import small_cnn
from ..objectives.cross_entropy import CrossEntropy
from ..recipes._digits import pgd_on_digits
from ..records.outcomes import Cells
from ..records.results import Array
from ..records.run_folder import RunFolder
from ..records.statistics import Claim
from ..runs.recipe import Evaluation, Recipe
from ..training.engine import Method
from ._common import Sizes, sizes_of
from .study import RUN, Arm, JointMeasurement, Measurement, Runs, Study, of_each, seeds_of

_SIZES = {"smoke": Sizes(120, 40, 1), "cpu": Sizes(2500, 300, 10), "gpu": Sizes(27000, 2000, 10)}
_EPOCHS = {"smoke": 1, "cpu": 12, "gpu": 40}
_WIDTH = {"smoke": 2, "cpu": 8, "gpu": 16}
_EPS = (0.3, 0.75, 1.5, 3.0)
_MIDDLE, _MOST, _AT = 1.5, 3.0, 0.75
_CLASSES = (0, 1, 2, 3, 4)
_OWN = "fashion_mnist+classes=0-4"
_TASKS = {
    "rotated": f"{_OWN}+rotated",
    "inverted": f"{_OWN}+inverted",
    "other classes": "fashion_mnist+classes=5-9",
    "digits": "digits",
    "inverted digits": "digits+inverted",
}
_OUTSIDE = ("other classes", "digits")
_SMALL = {  # tasks made from digits alone, with specs that differ from those above
    "rotated": "digits+rotated",
    "inverted": "digits+inverted+rotated",
    "other classes": "digits+classes=5-9",
    "digits": "digits+classes=0-4",
    "inverted digits": "digits+classes=0-4+inverted",
}


def _named(eps: float) -> str:
    return f"eps {eps:g}"


_LINE = tuple(_named(eps) for eps in (0.0, *_EPS))
_CENTRE = _named(_MIDDLE)
_ANNEALED = (_named(_MOST), _CENTRE, _named(0.75))
_VARIED, _WIDE, _JUDGE = f"eps 0 to {_MOST:g}", f"{_CENTRE}, twice as wide", "eps 0, deeper"


def study(scale: str) -> Study:
    """Compare Fisher information, linear transfer and inversion of networks trained at several eps in L2."""
    sizes = sizes_of(scale, _SIZES)
    return Study(
        name="information",
        title="Information, transfer and inversion",
        source="https://arxiv.org/abs/2007.11259",
        baseline=_LINE[0],
        arms=_arms(scale, sizes),
        claims=_CLAIMS,
        seeds=sizes.seeds,
        remarks=_remarks(scale, sizes),
        measurements=_looks(scale),
        joint=_together(scale),
        numbers=_numbers,
        draw=_draw,
    )


def _arms(scale: str, sizes: Sizes) -> tuple[Arm, ...]:
    smoke, width = scale == "smoke", _WIDTH[scale]
    source = Digits() if smoke else ClassSubset(FashionMNIST(), _CLASSES)
    threat, steps = L2(_AT), 2 if smoke else 3
    strong: dict[str, Adversary] = {
        "pgd-20": WhiteBox(PGD(threat, 2 if smoke else 20, threat.eps / 4, patience=0)),
        "apgd-t": MultiTargeted(APGD(threat, 2 if smoke else 20), TargetedDLR, 1 if smoke else 3),
    }
    base = replace(
        pgd_on_digits(),
        data=Subset(source, sizes.train, sizes.test),
        epochs=_EPOCHS[scale],
        lr=Cyclic(0.1, top=0.3),
        batch_size=32 if smoke else 64,
        held_out=0.1,
        selection=PGD(threat, steps, patience=0),
        evaluation=Evaluation(strong),
    )

    def net(attack: Attack, width: int = width, depth: int = 1) -> Recipe:
        model = Build(small_cnn, width=width, depth=depth, batch_norm=True, hidden=False)
        return replace(base, model=model, method=Method(attack, CrossEntropy()))

    def pgd(eps: float) -> PGD:
        return PGD(L2(eps), steps)

    return (
        Arm(_LINE[0], net(Benign())),
        *(Arm(_named(eps), net(pgd(eps))) for eps in _EPS),
        Arm(_VARIED, net(RandomEps(pgd(_MOST)))),
        Arm(_WIDE, net(pgd(_MIDDLE), width=2 * width)),
        Arm(_JUDGE, net(Benign(), depth=2)),
    )


def _looks(scale: str) -> tuple[Measurement, ...]:
    smoke = scale == "smoke"
    informed = {"jacobian_examples": 2 if smoke else 8, "probes": 4, "count": 5 if smoke else 20}
    rebuilt = {"examples": 4 if smoke else 48, "steps": 4 if smoke else 400, "layers": ["features"]}
    known = _SMALL if smoke else _TASKS
    tasks, elsewhere = list(known.values()), [known[name] for name in _OUTSIDE]
    fitted = {
        "tasks": tasks,
        "resize": True,
        "counts": [20] if smoke else [100, 400],
        "seeds": 1 if smoke else 2,
        "images": 20 if smoke else 300,
    }
    distance = 20 if smoke else 100
    return (
        Measurement("information", study_information, {"examples": 30 if smoke else 150, **informed}),
        Measurement(TRANSFER, study_transfer, {**fitted, "mode": "head", "distance_examples": distance}),
        Measurement(POOLED_TRANSFER, study_pooled_transfer, {**fitted, "distance_examples": 0}),
        Measurement("inversion", study_inversion, {"elsewhere": elsewhere, **rebuilt}),
    )


def _together(scale: str) -> JointMeasurement:
    """Return the joint analysis: other ways of inverting the network with the middle eps, each of as many steps."""
    smoke = scale == "smoke"
    ways: dict[str, Any] = {
        "plain": {},
        "without fake ReLU": {"fake_relu": False},
        "total variation": {"smooth": 0.1},
        "by Adam": {"search": "adam"},
        "by Fourier": {"search": "fourier"},
        _FOURIER_LONG: {"search": "fourier", "steps": 24 if smoke else 2400},
        "painted by a net": {"search": "network"},
        "two layers": {"layers": ["features", "body.8"]},
        "two nets": {"nets": [_named(0.75), _CENTRE]},
        "annealed": {"nets": list(_ANNEALED), "annealing": True},
    }
    fields = {"middle": _CENTRE, "judge": _JUDGE, "examples": 4 if smoke else 48, "steps": 4 if smoke else 400}
    return JointMeasurement(study_inversion_jointly, {**fields, "layers": ["features"], "ways": ways})


def _remarks(scale: str, sizes: Sizes) -> tuple[str, ...]:
    return (
        f"{sizes.train} images of five classes of Fashion-MNIST (T-shirt to Coat), a tenth held out; PGD-3 in L2, "
        f"{_EPOCHS[scale]} epochs. The evaluation is at eps {_AT:g} for all: PGD-20, and APGD towards three targets. "
        f"The net has four convolutions, the first of {_WIDTH[scale]} channels, and batch norm; its features are "
        f"{98 * _WIDTH[scale]} numbers, an image 784.",
        "Intervals of numbers that are not accuracies are over trainings; all use the same images, so another set of "
        "images would change the numbers by more than the intervals. Of some fifty claims, one or two would be "
        "decided by chance.",
        "Traces are means over images, in float32 and eval mode: of the weights over 150 training images and over as "
        "many test images, exact over classes; of the representation by random directions. *Relative* and *scale-free* "
        "figures do not change when a weight, or the features, are scaled. Effective information is that of a linear "
        "channel and Gaussian images, for eight test images, with the noise on the weights that to second order costs "
        "0.1 nats.",
        "Transfer: a linear head is fitted to 400 images of another task (the penalty chosen on a quarter of them), "
        "twice, and tested on 300; digits are scikit-learn's, stretched from 8x8. *Pooled*: its features are averages "
        f"over the image, one for each of the {2 * _WIDTH[scale]} channels of the last map. The distance of a task "
        "from the net's own task is Task2Vec's, in the net with eps 0.",
        "Inversion: 48 images, 400 steps of normalised gradients from grey with noise; similarity is the median SSIM. "
        "*Agreement*: a deeper natural net predicts the same class for the rebuilt image. Ways of inverting use the "
        f"net with eps {_MIDDLE:g}; *annealed* goes through eps {_MOST:g}, {_MIDDLE:g} and 0.75, in as many steps in "
        "total, and uses the representations of all three; *two nets* (eps 0.75 and 1.5) take twice the passes; *two "
        "layers* give more information than one. A prior describes images in general, not this net. *Residual* is the "
        "distance of the features at the end, relative to their length: where it is large, the search did not "
        "converge.",
        "The setting was tried on one other seed, and much the same images: a net whose features were a hidden layer "
        "of 64 numbers was hardly inverted at any eps (similarity 0.1 to 0.2).",
    )


# -- numbers of the runs


def _numbers(runs: Runs) -> dict[tuple[str, str], Array]:
    """Return numbers `[S]` of every training, rank correlations with eps, and similarities of the ways to invert."""
    seeds, found = seeds_of(runs), of_each(runs, lambda arm, seed: _of_run(runs, arm, seed))
    for owner, of in (("Rank correlation with eps", _with_eps), (_WAYS, _by_way), (_RESIDUALS, _residuals)):
        facts = [of(runs, seed, seeds) for seed in range(seeds)]
        found |= {(owner, name): np.array([one[name] for one in facts]) for name in facts[0]}
    return found


_FIGURES = {
    "weights: trace: all": "log trace, weights",
    "weights: relative: all": "log trace, weights, relative",
    "weights on test images: trace: all": "log trace, weights, test images",
    "prediction: trace": "log trace, prediction",
    "prediction: largest": "log largest eigenvalue, prediction",
    "representation: trace": "log trace, representation",
    "representation: scale-free": "log trace, representation, scale-free",
}
_EFFECTIVE, _RANK = "effective information, nats", "effective rank"
_SSIM, _AGREES = "similarity", "agreement"
_HEAD, _POOLED = "transfer", "transfer, pooled"
_WAYS, _RESIDUALS = "Similarity by way", "Residual by way"
_FOURIER_LONG = "by Fourier, six times the steps"
_UNIT = "(similarity)"


def _of_run(runs: Runs, arm: str, seed: int) -> dict[str, float]:
    run = runs[arm, seed]
    figures, moved = run.read_analysis("information")["figures"], run.read_analysis(TRANSFER)
    rebuilt = run.read_analysis("inversion")["images"]
    facts = {name: float(np.log(max(1e-30, figures[key]["mean"]["value"]))) for key, name in _FIGURES.items()}
    facts[_EFFECTIVE] = figures["effective information"]["mean"]["value"]
    facts[_RANK] = figures["representation: effective rank"]["mean"]["value"]
    facts["what that noise costs, nats"] = run.read_analysis("information")["rise"]
    for kind, found in ((_HEAD, moved), (_POOLED, run.read_analysis(POOLED_TRANSFER))):
        facts |= {f"{kind}: {name}": _with_most(found, task) for task, name in _by_task(found).items()}
    for where, each in rebuilt.items():
        name = "" if where == INSIDE else f", {_short(where)}"
        facts[f"{_SSIM}{name}"] = each["ssim"]["median"]["value"]
        if where == INSIDE:
            facts["PSNR, dB"] = each["psnr"]["median"]["value"]
            facts["residual"] = each["residual"]["median"]["value"]
    if arm != _JUDGE:
        facts[_AGREES] = _joined(run, seed)["agreement"][arm]
    return facts


def _with_most(moved: Mapping[str, Any], task: str) -> float:
    """Return the accuracy on a task with the largest number of shots, averaged over draws."""
    return float(np.mean([by_shots[-1] for by_shots in moved["accuracy by seed"][task]]))


def _joined(run: RunFolder, seed: int) -> Any:
    """Return the joint analysis of all runs of a seed, found from the folder of one of them."""
    return read_json(run.path.parent.parent / f"together-{seed}.json")


def _short(spec: str) -> str:
    return next(name for known in (_TASKS, _SMALL) for name, there in known.items() if there == spec)


def _by_task(moved: Mapping[str, Any]) -> dict[str, str]:
    return {task: _short(task) for task in moved["accuracy by seed"]}


def _with_eps(runs: Runs, seed: int, seeds: int) -> dict[str, float]:
    """Return Spearman's correlation with eps of each number, over the five networks that differ only in eps.

    Adds the correlation, over tasks, of the gain of the middle eps with the distance of the task.
    """
    del seeds
    line = [_of_run(runs, arm, seed) for arm in _LINE]
    eps = (0.0, *_EPS)
    found = {name: _ranked(eps, [facts[name] for facts in line]) for name in line[0]}
    first, middle = (runs[arm, seed].read_analysis(TRANSFER) for arm in (_LINE[0], _CENTRE))
    tasks = list(_by_task(first))
    gains = [_with_most(middle, t) - _with_most(first, t) for t in tasks]
    return {**found, _FARTHER: _ranked([first["distance"][t] for t in tasks], gains)}


def _ranked(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's correlation, or 0 if one of the sequences is constant."""
    from scipy.stats import spearmanr

    return 0.0 if min(len(set(a)), len(set(b))) < 2 else float(spearmanr(a, b).statistic)


_FARTHER = "gain of the middle eps with the distance of the task"


def _by_way(runs: Runs, seed: int, seeds: int) -> dict[str, float]:
    """Return the median similarity of each way to invert, at the best eps of each image, and at the best eps of all.

    The best eps is chosen on the networks of other seeds, because choosing the best of five on the same networks would
    select noise; of the first three, so that the number of a seed stays the same when seeds are added.
    """
    ways = _joined(runs[_LINE[0], seed], seed)["ways"]
    found = {name: float(np.median(way["ssim"])) for name, way in ways.items()}
    others = [each for each in range(min(3, seeds)) if each != seed] or [seed]
    own, other = _similarities(runs, seed), np.mean([_similarities(runs, each) for each in others], axis=0)
    images = np.arange(own.shape[1])
    return {
        **found,
        _BEST: float(np.median(own[other.argmax(0), images])),
        _BEST_OF_ALL: float(np.median(own[np.median(other, 1).argmax()])),
        "best eps of each image, chosen in hindsight": float(np.median(own.max(0))),
    }


_BEST, _BEST_OF_ALL = "best eps of each image", "best eps of all images"


def _residuals(runs: Runs, seed: int, seeds: int) -> dict[str, float]:
    """Return the median residual of each way to invert."""
    del seeds
    ways = _joined(runs[_LINE[0], seed], seed)["ways"]
    return {name: float(np.median(way["residual"])) for name, way in ways.items()}


def _similarities(runs: Runs, seed: int) -> Array:
    """Return the similarities `[eps, images]` of a seed."""
    name = f"{INSIDE}: ssim"
    return np.stack([runs[arm, seed].read_images("inversion", name)[name] for arm in _LINE])


def _draw(runs: Runs, folder: Path) -> None:
    """Draw the numbers against eps, and the inversions of the first seed."""
    seeds, eps = seeds_of(runs), (0.0, *_EPS)
    facts = [[_of_run(runs, arm, seed) for arm in _LINE] for seed in range(seeds)]
    panels: dict[str, dict[str, Array]] = {
        title: {} for title in ("log of the trace, less that at eps 0", "accuracy", "accuracy, pooled", "similarity")
    }
    for name in facts[0][0]:
        values = np.array([[one[name] for one in line] for line in facts])
        if name.startswith("log trace"):
            panels["log of the trace, less that at eps 0"][name.removeprefix("log trace, ")] = values - values[:, :1]
        elif name.startswith((_HEAD, _POOLED)):
            kind, _, task = name.partition(": ")
            panels[kind.replace(_HEAD, "accuracy")][task] = values
        elif name.startswith(_SSIM):
            panels["similarity"][INSIDE if name == _SSIM else name.removeprefix(f"{_SSIM}, ")] = values
    own = [[float(runs[arm, seed].read_flags("last").robust["clean"].mean()) for arm in _LINE] for seed in range(seeds)]
    panels["accuracy"]["its own task"] = np.array(own)
    for kind in ("svg", "png"):
        plot_against_eps(eps, panels, folder / f"against-eps.{kind}")
    rows = []
    for where in runs[_LINE[0], 0].read_analysis("inversion")["images"]:
        arrays = []
        for arm in (*_LINE, _VARIED, _WIDE):
            held = runs[arm, 0].read_images("inversion", f"{where}: rebuilt", f"{where}: originals")
            arrays.append((arm, held[f"{where}: rebuilt"][:_SHOWN] / 255))
            originals = held[f"{where}: originals"][:_SHOWN] / 255
        rows.append((where if where == INSIDE else _short(where), originals, arrays))
    plot_inversions(rows, folder / "inversions.png")


_SHOWN = 4


# -- claims


def _fall(name: str, arm: str = _LINE[0], other: str = _LINE[-1]) -> Callable[[Cells], Array]:
    """Return the decrease of a number from one arm to another."""
    return lambda cells: cells(arm, name, RUN) - cells(other, name, RUN)


def _gain(name: str, arm: str = _CENTRE, other: str = _LINE[0]) -> Callable[[Cells], Array]:
    return lambda cells: cells(arm, name, RUN) - cells(other, name, RUN)


def _better(name: str, other: str) -> Callable[[Cells], Array]:
    """Return the similarity of a way to invert less that of another."""
    return lambda cells: cells(_WAYS, name, RUN) - cells(_WAYS, other, RUN)


def _way(name: str, net: str = _CENTRE) -> Callable[[Cells], Array]:
    """Return the similarity of a way to invert less that of a network alone."""
    return lambda cells: cells(_WAYS, name, RUN) - cells(net, _SSIM, RUN)


_FALLING = {
    "of the weights about the task": "log trace, weights",
    "of the weights relative to them": "log trace, weights, relative",
    "of the prediction about the image": "log trace, prediction",
    "of the representation about the image": "log trace, representation",
    "of the representation, whatever its scale": "log trace, representation, scale-free",
}
_TRANSFERS = "robust nets transfer better to new tasks by a linear head, while they lose accuracy on their own"
_NOT_CONVERGED = " (where the search did not converge: see the residuals)"
_HEADLINES = ("of the weights about the task", "of the representation about the image")

_CLAIMS = (
    *(
        Claim(
            f"Adversarial training reduces the Fisher information {what}.",
            f"{name} at eps 0, less that at eps {_MOST:g}, is above 0",
            _fall(name),
            unit="(log)",
            headline=f"it reduces the Fisher information {' and '.join(_HEADLINES)}" if what in _HEADLINES else "",
        )
        for what, name in _FALLING.items()
    ),
    *(
        Claim(
            f"It decreases with every step of eps: {name.removeprefix('log trace, ')}, {arm} to {other}.",
            f"{name} at {arm}, less that at {other}, is above 0",
            _fall(name, arm, other),
            unit="(log)",
            family=f"every step: {name}",
        )
        for name in ("log trace, weights", "log trace, prediction", "log trace, representation")
        for arm, other in pairwise(_LINE)
    ),
    Claim(
        "It reduces the effective information.",
        f"that at eps 0, less that at eps {_MOST:g}, is above 0",
        _fall(_EFFECTIVE),
        unit="(nats)",
    ),
    Claim(
        "Robustness costs accuracy.",
        f"clean accuracy at eps 0, less that at eps {_MOST:g}, is above 0",
        lambda cells: cells(_LINE[0], "clean") - cells(_LINE[-1], "clean"),
    ),
    *(
        Claim(
            f"A robust net transfers better{how}: {task}.",
            f"accuracy with 400 images at eps {_MIDDLE:g}, less that at eps 0, is above 0",
            _gain(f"{kind}: {task}"),
            family=kind,
            headline=_TRANSFERS if kind == _POOLED else "",  # the features of the paper's nets are pooled
        )
        for kind, how in ((_HEAD, ""), (_POOLED, ", by pooled features"))
        for task in _TASKS
    ),
    Claim(
        "The farther the task, the more a robust net gains.",
        "Spearman's correlation of gain and Task2Vec's distance over five tasks is above 0",
        lambda cells: cells("Rank correlation with eps", _FARTHER, RUN),
        unit="(correlation)",
    ),
    Claim(
        "Robust nets are easier to invert.",
        f"median similarity at eps {_MIDDLE:g}, less that at eps 0, is above 0{_NOT_CONVERGED}",
        _gain(_SSIM),
        unit=_UNIT,
        headline="robust nets can be inverted although they keep less information",
    ),
    *(
        Claim(
            f"They are out of distribution, too: {where}.",
            "the same difference, for images of other tasks, is above 0",
            _gain(f"{_SSIM}, {where}"),
            unit=_UNIT,
            family="out of distribution",
        )
        for where in _OUTSIDE
    ),
    Claim(
        "Another net predicts the same class for rebuilt images.",
        f"agreement at eps {_MIDDLE:g}, less that at eps 0, is above 0",
        _gain(_AGREES),
    ),
    Claim(
        "The net that is easier to invert keeps less of an image.",
        f"effective information at eps 0, less that at eps {_MIDDLE:g}, is above 0",
        _fall(_EFFECTIVE, _LINE[0], _CENTRE),
        unit="(nats)",
    ),
    Claim(
        "Each image has an eps of its own.",
        "median similarity at the best eps of each image, less that at the best eps of all images, is above 0 (both "
        "chosen on nets of the other seeds)",
        _better(_BEST, _BEST_OF_ALL),
        unit=_UNIT,
    ),
    Claim(
        "Training at varied eps inverts better.",
        f"median similarity of eps drawn up to {_MOST:g}, less that at eps {_MIDDLE:g}, is above 0",
        _gain(_SSIM, _VARIED, _CENTRE),
        unit=_UNIT,
    ),
    Claim(
        "A wider net inverts better.",
        "median similarity of twice the width, less that of the net, is above 0",
        _gain(_SSIM, _WIDE, _CENTRE),
        unit=_UNIT,
    ),
    Claim(
        "A fake ReLU helps.",
        "median similarity of the plain way, less that without a fake ReLU, is above 0",
        _better("plain", "without fake ReLU"),
        unit=_UNIT,
    ),
    *(
        Claim(
            f"Inversion is better {what}.",
            f"median similarity, less that of {than}, is above 0{_NOT_CONVERGED if name == 'by Fourier' else ''}",
            _way(name, net),
            unit=_UNIT,
            family=name,
        )
        for what, than, name, net in (
            ("from two layers", "features alone", "two layers", _CENTRE),
            *(
                (f"from two nets jointly than from {net}", "that net", "two nets", net)
                for net in (_named(0.75), _CENTRE)
            ),
            *(
                (f"annealed from robust to less robust nets than from {net}", "that net", "annealed", net)
                for net in _ANNEALED
            ),
            ("with a prior, total variation", "the plain way", "total variation", _CENTRE),
            ("with a prior, an image painted by a net", "the plain way", "painted by a net", _CENTRE),
            ("by Adam", "the plain way", "by Adam", _CENTRE),
            ("in Fourier coefficients", "the plain way", "by Fourier", _CENTRE),
        )
    ),
)
