"""Results of evaluations, audits and training histories, with confidence intervals. Needs no torch."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import UserError, nearest
from ..core.numbers import parse_number
from .gallery import Gallery

Array = np.ndarray[Any, Any]
Z = 1.959963984540054  # 95 % of a normal distribution lie within Z standard deviations of the mean
PICTURES = 8
"""Number of images that a result shows."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """An accuracy, the share of correct examples, with its 95 % Wilson score interval.

    Args:
        correct: Number of correct examples.
        examples: Number of all examples.

    References:
        Wilson: https://doi.org/10.1080/01621459.1927.10502953.
    """

    correct: int
    examples: int

    @property
    def value(self) -> float:
        """The share of correct examples, from 0 to 1."""
        return self.correct / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and the upper end of the Wilson score interval (95 %)."""
        n, p, z = self.examples, self.value, Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def plain(self) -> dict[str, float]:
        """The accuracy with its interval as values that JSON can hold."""
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "examples": self.examples}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, slots=True)
class Examples:
    """Images to be shown, clean and adversarial, with the predictions of the model.

    Args:
        clean: Clean images `[N, C, H, W]` in [0, 1].
        adversarial: Adversarial images `[N, C, H, W]` in [0, 1].
        label: Labels `[N]`.
        clean_prediction: Predicted classes of the clean images, `[N]`; -1 where the logits are not finite.
        adversarial_prediction: Predicted classes of the adversarial images, `[N]`; -1 where the logits are not finite.
        norm: Norms of the perturbations, `[N]`; NaN where they are not known.
        index: The numbers of the examples, `[N]`.
    """

    clean: Array
    adversarial: Array
    label: Array
    clean_prediction: Array
    adversarial_prediction: Array
    norm: Array | None = None
    index: Array | None = None


class Shard(NamedTuple):
    """One of `of` parts of an evaluation on `examples` examples: every `of`-th example from number `number` - 1 on.

    The parts are numbered from 1.
    """

    number: int
    of: int
    examples: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A paired comparison of two models on the same examples.

    Args:
        only_first: Number of examples that only the first model gets right.
        only_second: Number of examples that only the second model gets right.
        examples: Number of all examples.

    References:
        McNemar's test: https://doi.org/10.1007/BF02295996.
        Interval of Agresti and Min: https://doi.org/10.1002/sim.1781.
    """

    only_first: int
    only_second: int
    examples: int

    @property
    def difference(self) -> float:
        """The difference of the accuracies, first minus second, from -1 to 1."""
        return (self.only_first - self.only_second) / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference of the accuracies (Agresti and Min)."""
        a, b, n = self.only_first + 0.5, self.only_second + 0.5, self.examples + 2
        half = Z * math.sqrt((a + b) - (a - b) ** 2 / n) / n
        return max(-1.0, (a - b) / n - half), min(1.0, (a - b) / n + half)

    @property
    def p(self) -> float:
        """The p-value of McNemar's exact test: the chance of a split at least as uneven if both are equally good."""
        from scipy.stats import binomtest

        split = self.only_first + self.only_second
        return float(binomtest(self.only_first, split).pvalue) if split else 1.0

    def plain(self) -> dict[str, float]:
        """The comparison as values that JSON can hold."""
        low, high = self.interval
        counts = {"only_first": self.only_first, "only_second": self.only_second, "examples": self.examples}
        return {"difference": self.difference, "low": low, "high": high, "p": self.p, **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.difference:+.2f} points [{100 * low:+.1f}, {100 * high:+.1f}], p = {self.p:.3g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of an audit.

    Args:
        name: Name of the check.
        figure: The number that was measured; None if there is none, or if it is not finite.
        meaning: The figure in words.
        verdict: `pass`, `warn`, `fail`, or `skip` for a check that cannot run.
        threshold: The threshold of the check with its source.
        advice: The next step for a check that warns or fails, else empty.
    """

    name: str
    figure: float | None
    meaning: str
    verdict: Literal["pass", "warn", "fail", "skip"]
    threshold: str
    advice: str

    def plain(self) -> dict[str, Any]:
        """The finding as values that JSON can hold."""
        return asdict(self)


def passed(findings: Iterable[Finding]) -> bool:
    """Return True if no check failed.

    Args:
        findings: The findings of an audit.

    Returns:
        False if the verdict of at least one finding is `fail`, else True.
    """
    return all(finding.verdict != "fail" for finding in findings)


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationResult:
    """The result of an evaluation: for each example and adversary, whether the model is still right.

    Tables and intervals are computed from this. Arrays have one entry for each of the N examples.

    Args:
        robust: Bools `[N]` under "clean", under the name of each adversary, and under "name/stage" for each stage of a
            cascade: the examples that are robust after it.
        label: Labels `[N]`.
        classes: Names of the classes.
        margin: The lowest margin `z_y - max_k z_k` that was found under each adversary, `[N]`.
        norm: The norm of the perturbation that broke each example, in the norm of the threat, `[N]`; NaN where none
            did.
        index: The number of each example that decides its random numbers, `[N]`.
        distance: The smallest eps that broke each example, `[N]`, if minimum-norm attacks were run: 0 where the model
            is wrong on the clean image, inf where no attack broke it.
        adversarial: Images `[N, C, H, W]` under each adversary, if they were asked for; the clean image where no attack
            broke an example.
        notes: Sentences that a reader of the result has to know.
        about: The threat of each adversary under its name; for smallest distances, the one in whose norm they are.
        examples: Images of the first few examples that the last adversary broke.
        hardest: Images of the examples with the smallest distances, if minimum-norm attacks were run.
        predicted: The class predicted for the clean image and, where an adversary broke the example, for its
            adversarial image, `[N]`; -1 where the logits are not finite.
        passes: The most passes of one example under each stage, in forward passes of the model.
        seconds: How long each stage ran, on all examples together.
        gallery: A few examples with their images, under the last adversary.
        image_hash: A hash of each image with its label, `[N]` (int64), which identifies it in other results.
        settings: What the verdicts depend on besides the images: a fingerprint of the model, the adversaries, the seed,
            and what the attacks ran on.
        shard: The part of the examples that was evaluated; None for all of them.
        calibration: Facts about the probabilities of the clean images, each `[N]`: `confidence`, the probability of the
            predicted class; `nll`, the negative log-likelihood of the label; `brier`, the squared distance from the
            label. Logits that are not finite count as certainty in a wrong class.
        corrupted: Bools `[N]`, whether the model is right on a corrupted image of each example, by names such as
            "fog-3".
    """

    robust: Mapping[str, Array]
    label: Array
    classes: tuple[str, ...]
    margin: Mapping[str, Array] = field(default_factory=dict)
    norm: Mapping[str, Array] = field(default_factory=dict)
    index: Array | None = None
    distance: Array | None = None
    adversarial: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    examples: Examples | None = None
    hardest: Examples | None = None
    predicted: Mapping[str, Array] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    gallery: Gallery | None = None
    image_hash: Array | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    shard: Shard | None = None
    calibration: Mapping[str, Array] = field(default_factory=dict)
    corrupted: Mapping[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a line per adversary, with 95 % intervals, and the notes."""
        table = self.table()
        width = max(map(len, table))
        lines = (f"{name:{width}}  {accuracy}" for name, accuracy in table.items())
        part = "" if self.shard is None else f" (shard {self.shard})"
        title = f"accuracy on {len(self.label):,} images{part}, with 95 % intervals"
        return "\n".join([title, *lines, *(f"note: {note}" for note in self.notes)])

    def table(self) -> dict[str, Accuracy]:
        """The accuracy on clean images, and under each adversary and stage, by name."""
        return {name: Accuracy(int(flags.sum()), len(flags)) for name, flags in self.robust.items()}

    def union(self, names: Iterable[str]) -> Accuracy:
        """The share of examples that are robust under all of several adversaries."""
        flags = np.logical_and.reduce([self._flags(name) for name in names])
        return Accuracy(int(flags.sum()), len(flags))

    def defense_success_rate(self, name: str) -> Accuracy:
        """The defence success rate: the share of correctly classified examples that are robust under an adversary."""
        right = int(self._flags("clean").sum())
        return Accuracy(int(self._flags(name).sum()), max(1, right))

    def broken_by(self, name: str) -> Array:
        """The attack that broke each example under an adversary, as strings `[N]`.

        An entry is "clean" (wrong without an attack), the stage of a cascade, or `name`, and "" for a robust example.
        """
        self._flags(name)
        chain = [n for n in self.robust if n.startswith(name + "/")] or [name]
        broken = np.full(len(self.label), "", dtype=object)
        for stage in reversed(chain):
            broken[~self.robust[stage]] = stage.removeprefix(name + "/")
        broken[~self.robust["clean"]] = "clean"
        return broken.astype(str)

    def robust_at(self, eps: float | str) -> Accuracy:
        """The robust accuracy at another eps, such as "4/255", from the distances; `UserError` if there are none."""
        if self.distance is None:
            raise UserError("the result has no distances: evaluate with MinimumNorm.of(threat), or with --min-norm")
        return Accuracy(int((self.distance > np.float32(parse_number(eps))).sum()), len(self.distance))

    def median_distance(self) -> float | None:
        """The median distance of correctly classified examples; None if it is infinite, or there are no distances."""
        if self.distance is None or not self.robust["clean"].any():
            return None
        middle = float(np.median(self.distance[self.robust["clean"]]))
        return middle if math.isfinite(middle) else None

    def by_class(self, name: str) -> dict[str, Accuracy]:
        """The accuracy of each class under an adversary, the lowest first.

        Classes of one name, as the two cranes of ImageNet, have their number beside it.
        """
        flags, times = self._flags(name), Counter(self.classes)
        names = [text if times[text] == 1 else f"{text} ({number})" for number, text in enumerate(self.classes)]
        found = {
            names[label]: Accuracy(int(flags[self.label == label].sum()), int((self.label == label).sum()))
            for label in np.unique(self.label)
        }
        return dict(sorted(found.items(), key=lambda item: item[1].value))

    def paired(self, other: "EvaluationResult", name: str, other_name: str | None = None) -> PairedComparison:
        """Compare the model with another one on the same images. Raises `UserError` if the images differ."""
        pairs = ((self.label, other.label), (self.index, other.index), (self.image_hash, other.image_hash))
        if not all(np.array_equal(a, b) for a, b in pairs if a is not None and b is not None):
            raise UserError("a paired comparison needs both models evaluated on the same images in the same order")
        a, b = self._flags(name), other._flags(other_name or name)
        return PairedComparison(int((a & ~b).sum()), int((b & ~a).sum()), len(a))

    def differs(self, other: "EvaluationResult", name: str) -> bool:
        """Return True if two evaluations attacked by different adversaries, or within different sets, as far as known.

        Args:
            other: The other evaluation.
            name: Name of the adversary in both.
        """
        key = f"adversary {name.partition('/')[0]}"
        pairs = (self.about.get(name), other.about.get(name)), (self.settings.get(key), other.settings.get(key))
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def _flags(self, name: str) -> Array:
        if name not in self.robust:
            raise UserError(f"nothing called {name!r} was evaluated: {nearest(name, self.robust)}")
        return self.robust[name]

    def arrays(self, pictures: bool = False) -> dict[str, Array]:
        """All fields as arrays by name; those of the images to be shown only with `pictures`."""
        held = {
            "label": self.label,
            "classes": np.array(self.classes, dtype=str),
            "notes": np.array(self.notes, dtype=str),
        }
        for group in _GROUPS:
            held |= {f"{group}/{name}": values for name, values in getattr(self, group).items()}
        for group in (*_TEXTS, *_NUMBERS):
            held |= {f"{group}/{name}": np.array(each) for name, each in getattr(self, group).items()}
        if self.gallery is not None:
            held |= {f"gallery/{name}": each for name, each in self.gallery.arrays().items()}
        more = {"index": self.index, "distance": self.distance, "image_hash": self.image_hash}
        more |= {"shard": None if self.shard is None else np.array(self.shard)}
        for group in _SHOWN if pictures else ():
            if (shown := getattr(self, group)) is not None:
                more |= {f"{group}/{each.name}": getattr(shown, each.name) for each in fields(shown)}
        return held | {name: values for name, values in more.items() if values is not None}

    @classmethod
    def from_arrays(cls, held: Mapping[str, Array]) -> "EvaluationResult":
        """The result that `arrays` turned into arrays."""
        found: dict[str, Any] = {
            group: {name.removeprefix(group + "/"): v for name, v in held.items() if name.startswith(group + "/")}
            for group in (*_GROUPS, *_TEXTS, *_NUMBERS, *_SHOWN, "gallery")
        }
        found |= {group: {name: str(text) for name, text in found[group].items()} for group in _TEXTS}
        found |= {group: {name: float(each) for name, each in found[group].items()} for group in _NUMBERS}
        found["gallery"] = Gallery.from_arrays(found["gallery"]) if found["gallery"] else None
        found |= {group: Examples(**found[group]) if found[group] else None for group in _SHOWN}
        found |= {name: tuple(str(part) for part in held[name]) for name in ("classes", "notes")}
        found |= {name: held.get(name) for name in ("index", "distance", "image_hash")}
        found["shard"] = Shard(*(int(part) for part in held["shard"])) if "shard" in held else None
        return cls(label=held["label"], **found)


_GROUPS = ("robust", "margin", "norm", "adversarial", "calibration", "corrupted", "predicted")
_TEXTS = ("about", "settings")
_NUMBERS = ("passes", "seconds")
_SHOWN = ("examples", "hardest")


@dataclass(frozen=True, slots=True)
class Memory:
    """The history of a run's N training examples at E epochs: losses and predictions, clean and adversarial.

    Losses are cross-entropy with the label that was trained on; an example is right if that label is predicted.

    Args:
        y: The labels that were trained on, `[N]`.
        true: The labels before any were changed, `[N]`.
        epochs: The epochs at which the history was recorded, `[E]`.
        clean_loss: Losses of the clean images, `[E, N]`.
        adversarial_loss: Losses of the points where an attack on them ended, `[E, N]`.
        clean_right: Bools `[E, N]`, whether the clean images are right.
        adversarial_right: Bools `[E, N]`, whether the adversarial points are right.
    """

    y: Array
    true: Array
    epochs: Array
    clean_loss: Array
    adversarial_loss: Array
    clean_right: Array
    adversarial_right: Array

    @property
    def difficulty(self) -> Array:
        """The mean adversarial loss over the epochs, `[N]`."""
        mean: Array = self.adversarial_loss.mean(0, dtype=np.float64)
        return mean

    @property
    def forgotten(self) -> Array:
        """Number of times that an example was right under attack at one recorded epoch and wrong at the next, `[N]`.

        Forgetting events as in https://arxiv.org/abs/1812.05159, here between recorded epochs.
        """
        lost: Array = (self.adversarial_right[:-1] & ~self.adversarial_right[1:]).sum(0)
        return lost
