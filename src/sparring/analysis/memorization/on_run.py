"""The memorization analysis of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ...acceleration import AcceleratedCopy
from ...attacks import PGD
from ...core.rng import draws_kept
from ...core.types import TensorData, Threat
from ...core.writing import replacing, write_json
from ...evaluation import WhiteBox, evaluate
from ...records.results import Accuracy, Array, Memory
from ...records.run_folder import RunFolder
from ...records.statistics import interval
from ...training.example_history import remembering
from .. import PHASES
from ..runs import AnalyzedModel, open_last
from .complexity import complexity_measures
from .plot import Memorized, plot_memorization
from .stability import LENGTHS, Stability, measure_gradient_stability, standard_methods


@dataclass(frozen=True, slots=True)
class Memorization:
    """Measurements of what a network memorized, of the stability of its losses, and of its complexity.

    `accuracy` is by (part, under): part "train", with the labels that were trained on, or "test"; under "clean" or
    "robust". `fitted` is the accuracy, clean and robust, on training examples whose label was changed, with the given
    label and with the true one; empty if none was changed. `loss` `[N]` is the adversarial loss of each training
    example analyzed, and `rows` are the numbers of these examples.
    """

    threat: str
    accuracy: Mapping[tuple[str, str], Accuracy]
    wrong: float
    fitted: Mapping[str, Accuracy]
    stability: Stability
    measures: Mapping[str, float | str]
    loss: Array
    rows: Array
    memory: Memory | None
    gradients: Sequence[tuple[float, float]]
    """(epoch, L2 length of the gradient) during training."""

    @property
    def gap(self) -> float:
        """Robust accuracy on the training set less that on the test set."""
        return self.accuracy["train", "robust"].value - self.accuracy["test", "robust"].value

    def plain(self) -> dict[str, Any]:
        memory = self.memory
        return {
            "threat": self.threat,
            "accuracy": {f"{part}, {under}": found.plain() for (part, under), found in self.accuracy.items()},
            "robust generalisation gap": self.gap,
            "labels": {
                "wrong": self.wrong,
                **{name: found.plain() for name, found in self.fitted.items()},
            },
            "stability": self.stability.plain(),
            "measures": {
                name: {"not defined": value} if isinstance(value, str) else value
                for name, value in self.measures.items()
            },
            "gradient": self.phases(),
            "memory": None
            if memory is None
            else {
                "epochs": memory.epochs.tolist(),
                "clean accuracy": memory.clean_right.mean(1).tolist(),
                "robust accuracy": memory.adversarial_right.mean(1).tolist(),
                "forgotten, times an example": float(memory.forgotten.mean()),
                "hardest": np.argsort(-memory.difficulty, kind="stable")[:20].tolist(),
            },
        }

    def phases(self) -> dict[str, float | None]:
        """Return the mean length of the gradient in each third of training."""
        last = max((epoch for epoch, _ in self.gradients), default=0.0)
        thirds = [
            [g for epoch, g in self.gradients if k * last / 3 < epoch <= (k + 1) * last / 3] for k in range(len(PHASES))
        ]
        means = [float(np.mean(third)) if third else None for third in thirds]
        return dict(zip(PHASES, means, strict=True))

    def arrays(self) -> dict[str, Array]:
        found = {"loss": self.loss, "rows": self.rows}
        if self.memory is not None:
            found |= {"difficulty": self.memory.difficulty, "forgotten": self.memory.forgotten, "y": self.memory.y}
        return found


def analyze_memorization(
    subject: AnalyzedModel,
    threat: Threat,
    *,
    examples: int = 300,
    jacobian_examples: int = 100,
    steps: int = 10,
    lengths: Sequence[float] = LENGTHS,
    batch_size: int = 128,
    seed: int = 0,
) -> Memorization:
    """Analyze a run on its first `examples` training images and on its test images, with PGD of `steps`.

    Stability and complexity, which are slow, use the first `jacobian_examples` training images.
    """
    training, model = subject.training, subject.model
    few = training.data[: min(examples, len(training))]
    fewer = few[: min(jacobian_examples, len(few))]
    pgd = PGD(threat, steps, threat.eps / 4, patience=0)
    accuracy: dict[tuple[str, str], Accuracy] = {}
    for part, data in (("train", few), ("test", subject.test)):
        table = evaluate(model, data, {"robust": WhiteBox(pgd)}, seed=seed, batch_size=batch_size).table()
        accuracy |= {(part, under): table[under] for under in ("clean", "robust")}
    seen = replace(remembering(pgd), batch_size=batch_size).record(model, few, AcceleratedCopy(), seed)
    run = None if subject.recipe is None else subject.run
    return Memorization(
        threat=repr(threat),
        accuracy=accuracy,
        wrong=float(training.wrong.float().mean()),
        fitted=_fitted(subject, pgd, examples, batch_size, seed),
        stability=measure_gradient_stability(
            model, fewer, standard_methods(threat, steps), lengths=lengths, batch_size=batch_size, seed=seed
        ),
        measures=complexity_measures(model, _initial(subject), fewer, threat, steps=steps, seed=seed),
        loss=seen["adversarial_loss"],
        rows=training.rows[: len(few)].cpu().numpy(),
        memory=run.read_memory() if run is not None and run.remembers() else None,
        gradients=[] if run is None else [(r["epoch"], r["gradient"]) for r in run.metrics() if "gradient" in r],
    )


def _initial(subject: AnalyzedModel) -> nn.Module | None:
    """Return the model before training, if that is known."""
    if subject.recipe is None:
        return None
    device = subject.test.y.device
    with draws_kept(device):
        return subject.recipe.initial_model(subject.training.data, subject.run.path).to(device)


def _fitted(subject: AnalyzedModel, pgd: PGD, examples: int, batch_size: int, seed: int) -> dict[str, Accuracy]:
    """Return the accuracy on the first `examples` training images with wrong labels."""
    training = subject.training
    rows = training.wrong.nonzero()[:, 0][:examples]
    if not len(rows):
        return {}
    data = training.data[rows]
    found: dict[str, Accuracy] = {}
    for name, y in (("given", data.y), ("true", training.true[rows])):
        part = TensorData(data.x, y, data.classes)
        table = evaluate(subject.model, part, {"robust": WhiteBox(pgd)}, seed=seed, batch_size=batch_size).table()
        found |= {f"{name} label, {under}": table[under] for under in ("clean", "robust")}
    return found


def write_memorization(
    run: RunFolder, found: Sequence[tuple[str, Memorization]], how: Mapping[str, Any], draw: bool = True
) -> None:
    """Write `analysis-memorization.npz`, `.png` (of all runs) and, last, `.json`; data files are of the first run."""
    first = found[0][1]
    with replacing(run.analysis("memorization", "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    if draw:
        drawn = [
            Memorized(
                name,
                each.stability.lengths,
                each.stability.change,
                each.stability.cosine,
                each.gradients,
                None if each.memory is None else (each.memory.epochs, each.memory.adversarial_right.mean(1)),
            )
            for name, each in found
        ]
        plot_memorization(drawn, run.analysis("memorization", "png"))
    write_json(run.analysis("memorization", "json"), {**first.plain(), "how": dict(how)})


@dataclass(frozen=True, slots=True)
class Agreement:
    """Kendall's tau of the adversarial losses of the same examples in two networks, with a 95 % interval."""

    tau: float
    low: float
    high: float
    examples: int


def agreement(one: Array, other: Array) -> Agreement:
    """Measure whether two networks find the same examples hard, from losses `[N]` of each."""
    from scipy.stats import kendalltau

    def tau(rows: Array, axis: int = -1) -> Array:
        del axis
        return np.array([kendalltau(one[each], other[each]).statistic for each in np.atleast_2d(rows)])

    everyone = np.arange(len(one))
    low, high = interval(everyone, tau, replicas=200)
    return Agreement(float(tau(everyone)[0]), low, high, len(one))


def difficulties(one: Memorization, other: Memorization) -> tuple[Array, Array]:
    """Return how hard the same training examples are for two runs: as recorded in training, else at their weights."""
    a, b = one.memory, other.memory
    return (one.loss, other.loss) if a is None or b is None else (a.difficulty, b.difficulty)


def study_memorization(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study after each training: on the last weights, within the threat of the evaluation."""
    subject, threat = open_last(run, how["examples"], device)
    write_memorization(run, [(run.path.name, analyze_memorization(subject, threat, **how))], how, draw=False)
