"""Certified accuracy by randomized smoothing, computed from the votes on each example. Needs no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.errors import UserError
from .merging import check_same, check_shards, checked_index
from .results import Accuracy, Array, Shard

ABSTAINED = -1
"""The prediction of a smoothed classifier that abstains."""


def lower_bound(successes: Array, trials: int, alpha: float) -> Array:
    """Return the one-sided lower confidence bound on the success rate of each of several experiments.

    Args:
        successes: Numbers of successes, `[N]`.
        trials: Number of trials of each experiment.
        alpha: Probability with which a bound may be above the rate.

    Returns:
        The bounds, `[N]`; 0 without a success.

    References:
        Clopper and Pearson: https://doi.org/10.1093/biomet/26.4.404.
    """
    from scipy.special import betaincinv

    found: Array = betaincinv(np.maximum(successes, 1), trials - successes + 1, alpha)
    return np.where(successes > 0, found, 0.0)


@dataclass(frozen=True, slots=True)
class Certification:
    """Result of randomized smoothing: for each example, a class and an L2 radius inside which it cannot change.

    Both follow from the votes, the classes that the model predicts for noisy copies of the example. A certificate is
    wrong with probability `alpha` at most. Arrays have one entry for each of the N examples.

    Args:
        chosen: The class that most of the first copies are predicted as, `[N]` (int64).
        votes: Number of the other copies that are predicted as that class, `[N]` (int64).
        samples: Number of these other copies of each example.
        sigma: Standard deviation of the noise, in pixel units.
        alpha: Probability with which a certificate may be wrong.
        label: Labels `[N]`.
        classes: Names of the classes.
        index: The number of each example that decides its random numbers, `[N]`.
        image_hash: A hash of each image with its label, `[N]` (int64).
        settings: What the votes depend on besides the images.
        shard: The part of the examples that was certified; None for all of them.

    References:
        Randomized smoothing: https://arxiv.org/abs/1902.02918.
    """

    chosen: Array
    votes: Array
    samples: int
    sigma: float
    alpha: float
    label: Array
    classes: tuple[str, ...]
    index: Array
    image_hash: Array
    settings: Mapping[str, str] = field(default_factory=dict)
    shard: Shard | None = None

    def __repr__(self) -> str:
        """Return a line per radius, with 95 % intervals, and the number of abstentions."""
        part = "" if self.shard is None else f" (shard {self.shard})"
        title = f"certified accuracy on {len(self.label):,} images{part}, with 95 % intervals: {self.terms}"
        rows = (f"radius {radius:<8.4g} {accuracy}" for radius, accuracy in self.curve().items())
        return "\n".join([title, *rows, f"abstained on {int(self.abstained.sum())}"])

    @property
    def terms(self) -> str:
        """The noise, the number of samples and the error probability, in words."""
        return f"Gaussian noise of sigma {self.sigma:g}, {self.samples:,} samples, alpha {self.alpha:g}"

    @property
    def share(self) -> Array:
        """Lower confidence bound on the share of noisy copies that are predicted as the chosen class, `[N]`."""
        return lower_bound(self.votes, self.samples, self.alpha)

    @property
    def abstained(self) -> Array:
        """Bools `[N]`: the examples for which no class is certified, as the bound on its share is below a half."""
        return self.share < 0.5

    @property
    def predicted(self) -> Array:
        """The prediction of the smoothed classifier, `[N]`; -1 where it abstains."""
        return np.where(self.abstained, ABSTAINED, self.chosen)

    @property
    def radius(self) -> Array:
        """The certified L2 radius in pixel units, `[N]`: sigma times the normal quantile of the share, 0 if abstained.

        It holds for a wrong prediction as well, which `certified` does not count.
        """
        from scipy.special import ndtri

        return self.sigma * ndtri(np.maximum(self.share, 0.5))

    def certified(self, radius: float) -> Array:
        """Bools `[N]`: the examples that are classified correctly at every point within an L2 radius."""
        return (self.predicted == self.label) & (self.radius >= radius)

    def accuracies(self, radii: Iterable[float]) -> dict[float, Accuracy]:
        """The certified accuracy at each of several L2 radii in pixel units."""
        reached = self.radius[self.certified(0.0)]
        return {radius: Accuracy(int((reached >= radius).sum()), len(self.label)) for radius in radii}

    @property
    def largest_radius(self) -> float:
        """The radius of an example for which all samples vote alike; no number of samples certifies more."""
        from scipy.special import ndtri

        return float(self.sigma * ndtri(lower_bound(np.array([self.samples]), self.samples, self.alpha))[0])

    def curve(self) -> dict[float, Accuracy]:
        """The certified accuracy at multiples of sigma / 2, up to the largest radius that can be certified."""
        steps = int(max(0.0, self.largest_radius) / self.sigma * 2)
        return self.accuracies(step * self.sigma / 2 for step in range(steps + 1))

    def average_radius(self) -> float:
        """The average certified radius in pixel units, where a wrong prediction and an abstention count 0."""
        return float(np.where(self.certified(0.0), self.radius, 0.0).mean())

    def plain(self) -> dict[str, Any]:
        """The curve and what it was found with, as values that JSON can hold."""
        return {
            "images": len(self.label),
            "sigma": self.sigma,
            "samples": self.samples,
            "alpha": self.alpha,
            "certified": [{"radius": radius, **accuracy.plain()} for radius, accuracy in self.curve().items()],
            "abstained": int(self.abstained.sum()),
            "average radius": self.average_radius(),
        }

    def arrays(self) -> dict[str, Array]:
        """All fields as arrays by name."""
        held = {name: np.asarray(getattr(self, name)) for name in (*_FACTS, *_NUMBERS)}
        held |= {"classes": np.array(self.classes, dtype=str)}
        held |= {f"settings/{name}": np.array(text) for name, text in self.settings.items()}
        return held if self.shard is None else {**held, "shard": np.array(self.shard)}

    @classmethod
    def from_arrays(cls, held: Mapping[str, Array]) -> "Certification":
        """The certification that `arrays` turned into arrays."""
        texts = {name.removeprefix("settings/"): str(v) for name, v in held.items() if name.startswith("settings/")}
        shard = Shard(*(int(part) for part in held["shard"])) if "shard" in held else None
        numbers: dict[str, Any] = {name: kind(held[name]) for name, kind in _NUMBERS.items()}
        facts: dict[str, Any] = {name: held[name] for name in _FACTS}
        return cls(**facts, **numbers, classes=tuple(map(str, held["classes"])), settings=texts, shard=shard)


_FACTS = ("chosen", "votes", "label", "index", "image_hash")
_NUMBERS = {"samples": int, "sigma": float, "alpha": float}


def merge_certifications(parts: Iterable[Certification]) -> Certification:
    """Merge certifications of parts of the examples into that of all of them.

    Args:
        parts: Certifications of all shards, in any order.

    Returns:
        The certification, with the examples in the order of their indices.

    Raises:
        UserError: If there are no parts, if they differ in model or settings, or if an example is missing or in two
            parts.
    """
    parts = list(parts)
    if not parts:
        raise UserError("no certifications were given to be merged: give those of all parts of the examples")
    first = parts[0]
    for other in parts[1:]:
        check_same(_identity(first), _identity(other))
    check_shards([part.shard for part in parts])
    order = np.argsort(checked_index(parts), kind="stable")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in _FACTS}
    return replace(first, **joined, shard=None)


def _identity(part: Certification) -> dict[str, Any]:
    return {**part.settings, "classes": list(part.classes), **{name: getattr(part, name) for name in _NUMBERS}}
