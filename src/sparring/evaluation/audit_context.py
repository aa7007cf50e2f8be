"""The context of an audit: results that several checks share, each computed once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..attacks import APGD, Square
from ..attacks.losses import Margin, TargetedDLR
from ..core.rng import PerExample
from ..core.types import Threat, each
from ..records.results import Finding
from .adversaries import Adversary, MultiTargeted, WhiteBox
from .verifier import Verifier

Verdict = Literal["pass", "warn", "fail", "skip"]
BATCH = 256


@dataclass(frozen=True, slots=True)
class AuditBudget:
    """The computing budget of an audit.

    Args:
        steps: Steps of the gradient attacks that are compared.
        queries: Queries of Square for each example.
        samples: Random points for each example.
        surrogate_steps: Optimiser steps that train the surrogate, where none is given.
    """

    steps: int = 50
    queries: int = 1000
    samples: int = 50
    surrogate_steps: int = 300


@dataclass(slots=True)
class AuditContext:
    """The model under audit with its correctly classified examples, and the results of attacks on them."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    budget: AuditBudget
    seed: int
    blocked: str = ""
    """The reason why no gradient reaches the image; empty if one does."""
    broken: dict[str, Tensor] = field(default_factory=dict)

    def rng(self, rows: Tensor | None = None) -> PerExample:
        """Random numbers for some of the rows, or for all; the same at each call."""
        every = torch.arange(len(self.x), device=self.x.device)
        return PerExample(self.seed, every if rows is None else every[rows])

    def fooled(self, z: Tensor, rows: Tensor) -> Tensor:
        """Rows where the model is fooled by a finite point; a point with NaN does not count as adversarial."""
        finite = z.isfinite().flatten(1).all(1)
        z = torch.where(each(finite, z), z, self.x[rows])
        return ~Verifier(self.model)(z, self.y[rows]).right & finite

    def attacked(self, name: str, find: Callable[[Tensor], Tensor]) -> Tensor:
        """Examples that an attack breaks, as bools `[N]`. Each attack runs only once, batch by batch."""
        if name not in self.broken:
            every = torch.arange(len(self.x), device=self.x.device)
            self.broken[name] = torch.cat([self.fooled(find(rows), rows) for rows in every.split(BATCH)])
        return self.broken[name]

    def by(self, name: str, attack: Adversary) -> Tensor:
        """Examples that an adversary breaks."""
        return self.attacked(name, lambda rows: attack(self.model, self.x[rows], self.y[rows], self.rng(rows)))

    def white(self, steps: int | None = None) -> Tensor:
        """Examples that APGD on cross-entropy breaks."""
        count = self.budget.steps if steps is None else steps
        return self.by(f"apgd-{count}", WhiteBox(APGD(self.threat, count)))

    def best_white(self) -> Tensor:
        """Examples that gradient attacks break: APGD on cross-entropy, and towards three targets.

        There are none if no gradient reaches the image.
        """
        if self.blocked:
            return torch.zeros_like(self.y, dtype=torch.bool)
        loss = TargetedDLR if self.classes > 3 else Margin
        return self.white() | self.by("apgd-t", MultiTargeted(APGD(self.threat, self.budget.steps), loss, targets=3))

    def black(self) -> Tensor:
        """Examples that Square breaks."""
        return self.by("square", WhiteBox(Square(self.threat, self.budget.queries), Margin))

    @property
    def classes(self) -> int:
        with torch.no_grad():
            return int(self.model(self.x[:1]).shape[1])


def finding(
    name: str,
    figure: float | None,
    meaning: str,
    verdict: Verdict,
    threshold: str,
    advice: str,
) -> Finding:
    """A finding, with advice only where the check warns or fails."""
    known = figure if figure is None or math.isfinite(figure) else None  # JSON knows no NaN
    return Finding(name, known, meaning, verdict, threshold, advice if verdict in ("warn", "fail") else "")


def above(figure: float, warn: float, fail: float) -> Verdict:
    """The verdict on a figure that should be small: `fail` above one threshold, `warn` above the other."""
    return "fail" if figure > fail else "warn" if figure > warn else "pass"


def skip(name: str, why: str) -> Finding:
    """The finding of a check that cannot run, with the reason."""
    return Finding(name, None, why, "skip", "", "")
