"""What an evaluation came to, with its uncertainty. Needs no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..core.errors import UserError, nearest

Array = np.ndarray[Any, Any]
Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of examples with its Wilson score interval (95 %, https://doi.org/10.1080/01621459.1927.10502953)."""

    correct: int
    examples: int

    @property
    def value(self) -> float:
        return self.correct / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        n, p, z = self.examples, self.value, Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def plain(self) -> dict[str, float]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "examples": self.examples}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, slots=True)
class Examples:
    """Pictures for people: `clean` and `adversarial` `[N, C, H, W]` in [0, 1], and what the model takes them for."""

    clean: Array
    adversarial: Array
    label: Array
    clean_prediction: Array
    adversarial_prediction: Array
    norm: Array | None = None
    """The size of each perturbation, NaN where it is not known."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same examples: how many only one of them gets right, and what that says.

    `p` is that of McNemar's test in its exact form (https://doi.org/10.1007/BF02295996): the probability of a split at
    least as uneven if both were equally good. `interval` is for the difference of the accuracies, first minus second
    (95 %, Agresti and Min, https://doi.org/10.1002/sim.1781).
    """

    only_first: int
    only_second: int
    examples: int

    @property
    def difference(self) -> float:
        return (self.only_first - self.only_second) / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        a, b, n = self.only_first + 0.5, self.only_second + 0.5, self.examples + 2
        half = Z * math.sqrt((a + b) - (a - b) ** 2 / n) / n
        return max(-1.0, (a - b) / n - half), min(1.0, (a - b) / n + half)

    @property
    def p(self) -> float:
        from scipy.stats import binomtest

        split = self.only_first + self.only_second
        return float(binomtest(self.only_first, split).pvalue) if split else 1.0

    def plain(self) -> dict[str, float]:
        low, high = self.interval
        counts = {"only_first": self.only_first, "only_second": self.only_second, "examples": self.examples}
        return {"difference": self.difference, "low": low, "high": high, "p": self.p, **counts}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.difference:+.2f} points [{100 * low:+.1f}, {100 * high:+.1f}], p = {self.p:.3g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of an audit came to: a figure, what it means, a threshold with its source, and what to do."""

    name: str
    figure: float | None
    meaning: str
    verdict: Literal["pass", "warn", "fail", "skip"]
    threshold: str
    advice: str

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def passed(findings: Iterable[Finding]) -> bool:
    """Whether no check failed."""
    return all(finding.verdict != "fail" for finding in findings)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Per example and attack: does the model still get it right? Tables and intervals derive from this.

    Everything is `[N]`.

    - `robust` has "clean", each adversary by its name, and stages of a cascade as "name/stage": who stood after it.
    - `margin` is the lowest `z_y - max_k z_k` that was seen under an adversary.
    - `norm` is the size of the perturbation that broke an example (NaN where none did), in the norm of the threat.
    - `distance` is the smallest eps that broke it at all, if minimum-norm attacks looked for it: 0 where the model is
      wrong anyway, inf where none did.
    - `about` says which images these were, and the threat of each adversary.
    - `adversarial` holds whole images, if they were asked for; where nothing broke, the clean ones.
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

    def table(self) -> dict[str, Accuracy]:
        return {name: Accuracy(int(flags.sum()), len(flags)) for name, flags in self.robust.items()}

    def defense_success_rate(self, name: str) -> Accuracy:
        """The defence success rate: of the examples that are right, the share that stays so under an adversary."""
        right = int(self._flags("clean").sum())
        return Accuracy(int(self._flags(name).sum()), max(1, right))

    def broken_by(self, name: str) -> Array:
        """What broke each example under an adversary, `[N]`.

        It is "clean" (wrong without an attack), the stage of a cascade or `name`, and "" for an example that stands.
        """
        self._flags(name)
        chain = [n for n in self.robust if n.startswith(name + "/")] or [name]
        broken = np.full(len(self.label), "", dtype=object)
        for stage in reversed(chain):
            broken[~self.robust[stage]] = stage.removeprefix(name + "/")
        broken[~self.robust["clean"]] = "clean"
        return broken.astype(str)

    def robust_at(self, eps: float) -> Accuracy:
        """The accuracy at another eps, from the distances. Raises `UserError` if nothing looked for them."""
        if self.distance is None:
            raise UserError("no distances were looked for: evaluate with MinimumNorm.of(threat), or with --min-norm")
        return Accuracy(int((self.distance > np.float32(eps)).sum()), len(self.distance))

    def median_distance(self) -> float | None:
        """Half of the examples that are right at first fall below this eps; None if half of them do not fall at all."""
        if self.distance is None or not self.robust["clean"].any():
            return None
        middle = float(np.median(self.distance[self.robust["clean"]]))
        return middle if math.isfinite(middle) else None

    def by_class(self, name: str) -> dict[str, Accuracy]:
        """The accuracy of each class under an adversary, the worst first."""
        flags = self._flags(name)
        found = {
            self.classes[label]: Accuracy(int(flags[self.label == label].sum()), int((self.label == label).sum()))
            for label in np.unique(self.label)
        }
        return dict(sorted(found.items(), key=lambda item: item[1].value))

    def paired(self, other: "EvaluationResult", name: str, other_name: str | None = None) -> Paired:
        """The model against another one on the same images. Raises `UserError` if they are not the same."""
        same = np.array_equal(self.label, other.label)
        if self.index is not None and other.index is not None:
            same = same and np.array_equal(self.index, other.index)
        if "images" in self.about and "images" in other.about:
            same = same and self.about["images"] == other.about["images"]
        if not same:
            raise UserError("a paired comparison needs both models evaluated on the same images in the same order")
        a, b = self._flags(name), other._flags(other_name or name)
        return Paired(int((a & ~b).sum()), int((b & ~a).sum()), len(a))

    def _flags(self, name: str) -> Array:
        if name not in self.robust:
            raise UserError(f"nothing called {name!r} was evaluated: {nearest(name, self.robust)}")
        return self.robust[name]

    def arrays(self) -> dict[str, Array]:
        """All of it but the pictures, as arrays with names."""
        held = {
            "label": self.label,
            "classes": np.array(self.classes, dtype=str),
            "notes": np.array(self.notes, dtype=str),
        }
        for group in _GROUPS:
            held |= {f"{group}/{name}": values for name, values in getattr(self, group).items()}
        held |= {f"about/{name}": np.array(text) for name, text in self.about.items()}
        more = {"index": self.index, "distance": self.distance}
        return held | {name: values for name, values in more.items() if values is not None}

    @classmethod
    def from_arrays(cls, held: Mapping[str, Array]) -> "EvaluationResult":
        groups: dict[str, Any] = {
            group: {name.removeprefix(group + "/"): v for name, v in held.items() if name.startswith(group + "/")}
            for group in (*_GROUPS, "about")
        }
        groups["about"] = {name: str(text) for name, text in groups["about"].items()}
        groups |= {name: tuple(str(part) for part in held[name]) for name in ("classes", "notes")}
        return cls(label=held["label"], index=held.get("index"), distance=held.get("distance"), **groups)


_GROUPS = ("robust", "margin", "norm", "adversarial")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run was like on each of its N training examples, at E moments: cross-entropy with the label that was
    trained on, and whether that was predicted; at the image, and where an attack on it ended.
    """

    y: Array
    true: Array
    """The labels before any were changed, `[N]`."""
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
        """How often an example was predicted right under attack, and at the next look was not, `[N]`.

        https://arxiv.org/abs/1812.05159, here from look to look.
        """
        lost: Array = (self.adversarial_right[:-1] & ~self.adversarial_right[1:]).sum(0)
        return lost
