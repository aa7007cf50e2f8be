"""Judges results that were stored before the rule of today by that rule, without training, and writes what changed.

    python tools/rejudge.py results

Takes the studies whose `results/STUDY-SCALE/study.json` holds the verdicts of before, under `earlier_verdicts`.
Replaces their verdicts there and in `table.md`, and writes `results/verdicts.md`: old and new verdicts side by side.
`tools/evidence.py` writes the pages afterwards.

What these studies stored is accuracies by seed, but not which images were right. How much the choice of the test images
moves a number is therefore taken from the interval that was stored of it (over seeds and images), or, if there is none,
from those of the differences between the arms and the baseline: their median. Claims about numbers that were not
measured then are left out.
"""

import argparse
import json
import math
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from sparring.core.writing import write_json
from sparring.records.estimates import Mean
from sparring.records.outcomes import Cells, Outcomes, Statistic
from sparring.records.statistics import DECIDED, TAIL, Claim, Verdict, judge
from sparring.studies import find
from sparring.studies.collapse import COLLAPSED, collapse
from sparring.studies.study import RUN, WORST, Study
from sparring.studies.writing import claims_table

PARTS: dict[str, list[int]] = {
    "information": [1] * 5 + [4] * 3 + [1] * 18 + [2, 3, 1, 1, 1, 1],
}
"""Of how many claims of today each earlier claim is the origin, in order."""

HEAD = """\
# Old and new verdicts

`python tools/rejudge.py results`: the stored results of each study, judged by the \
[rule of today](../docs/studies.md). An earlier claim about an extreme of several arms is one claim for each. \
The tables of studies that were trained anew since then stay as they were.
"""

NEW = ("One step of the attack comes nearer to many steps on SiLU than on ReLU.",)


class Stored(Outcomes):
    """Results as `study.json` has them: by seed, and intervals instead of images."""

    def __init__(self, plain: dict[str, Any]) -> None:
        self.plain = plain
        cells = {
            (arm, which, under): np.array(values)
            for arm, each in plain["arms"].items()
            for which, by in each["by_seed"].items()
            for under, values in by.items()
        }
        numbers = {
            (owner, RUN, name): np.array(each["by_seed"], dtype=float)
            for owner, by in plain.get("numbers", {}).items()
            for name, each in by.items()
        }
        super().__init__({}, {**cells, **self._collapses(cells), **numbers})

    def _collapses(self, cells: dict[Any, Any]) -> dict[Any, Any]:
        """Return which trainings collapsed, from PGD at the best and the last epoch: curves were stored as means."""
        pgd = next(under for _, _, under in cells if under.startswith("pgd"))
        arms = dict.fromkeys(arm for arm, _, _ in cells)
        both = {arm: zip(cells[arm, "best", pgd], cells[arm, "last", pgd], strict=True) for arm in arms}
        fallen = {arm: [collapse(np.array(pair))[COLLAPSED] for pair in pairs] for arm, pairs in both.items()}
        return {(arm, RUN, COLLAPSED): np.array(each) for arm, each in fallen.items()}

    def estimate(self, statistic: Statistic, seeds: int | None = None, *, cautious: bool = False) -> Mean:
        mean = super().estimate(statistic, seeds, cautious=cautious)
        used = [cell for cell in self.asked(statistic) if cell[1] != RUN]
        if not used:
            return mean
        for verdict in self.plain["earlier_verdicts"]:
            if verdict.get("unit") is None and math.isclose(verdict["value"], mean.value, abs_tol=1e-9):
                return Mean(mean.values, _images(verdict, mean.values))
        slope = max(abs(self._slope(statistic, cell)) for cell in used)
        return Mean(mean.values, (slope * self._typical()) ** 2)

    def _slope(self, statistic: Statistic, cell: Any) -> float:
        means = {other: each.mean(keepdims=True) for other, each in self.by_seed.items()}
        moved = {**means, cell: means[cell] + 1e-6}
        return float((statistic(Cells(moved)) - statistic(Cells(means)))[0]) / 1e-6

    def _typical(self) -> float:
        """Return the median over arms of the deviation by images of the difference to the baseline."""
        baseline, found = self.plain["baseline"], []
        for arm, each in self.plain["arms"].items():
            if arm != baseline:
                values = self.by_seed[arm, "last", WORST] - self.by_seed[baseline, "last", WORST]
                found.append(math.sqrt(_images(each["difference"]["last"][WORST], values)))
        return float(np.median(found))


def _images(interval: dict[str, float], values: Any) -> float:
    """Return the variance by images that made an interval: the largest, if several did."""
    half = max(interval["value"] - interval["low"], interval["high"] - interval["value"])
    between = float(values.var(ddof=1)) / len(values)
    if between < 1e-12:
        return (half / float(t.isf(TAIL, 1e9))) ** 2
    totals = between * np.geomspace(1, 1e4, 4000)
    halves = t.isf(TAIL, (len(values) - 1) * (totals / between) ** 2) * np.sqrt(totals)
    below = np.flatnonzero(halves <= half * (1 + 1e-6))
    return float(totals[below[-1]] - between) if len(below) else 0.0


def studied(plain: dict[str, Any]) -> Study:
    """Return the study of stored results, with the claims that these can decide."""
    study = find(plain["study"])(plain["scale"])
    return replace(study, claims=tuple(claim for claim in study.claims if claim.sentence not in NEW))


def origins(study: Study) -> list[int]:
    """Return the number of the earlier claim that each claim comes from."""
    return list(chain.from_iterable(repeat(number, count) for number, count in enumerate(PARTS[study.name])))


def why(claim: Claim, before: dict[str, Any], verdict: Verdict, parts: int, family: int) -> str:
    """Return the reason of a verdict that differs."""
    if before["outcome"] == verdict.outcome:
        return ""
    if verdict.reason:
        return verdict.reason
    reasons = [f"was one number, the extreme of {parts} parts"] if parts > 1 else []
    if verdict.outcome not in DECIDED:
        reasons += [f"corrected for {family} claims that belong together"] if family > 1 else []
        reasons += ["Student's t over seeds: the earlier interval of few seeds was too narrow"] if family == 1 else []
    return "; ".join(reasons)


def earlier(results: Path) -> list[Path]:
    """Return the folders of the studies that hold verdicts by the earlier rule."""
    return [path.parent for path in sorted(results.glob("*/study.json")) if "earlier_verdicts" in path.read_text()]


def rejudged(folder: Path) -> tuple[Study, list[Any], tuple[Verdict, ...]]:
    """Return a study, its earlier verdicts, and those of today, and write these into its folder."""
    path = folder / "study.json"
    plain = json.loads(path.read_text())
    study = studied(plain)
    verdicts = judge(study.claims, Stored(plain))
    plain["verdicts"] = [verdict.plain() for verdict in verdicts]
    write_json(path, plain)
    lines = (folder / "table.md").read_text().split("\n")
    begin = lines.index("## Claims")
    end = next(n for n in range(begin, len(lines)) if lines[n].startswith("- "))
    (folder / "table.md").write_text("\n".join([*lines[:begin], *claims_table(verdicts), "", *lines[end:]]))
    return study, plain["earlier_verdicts"], verdicts


def sections_of(text: str) -> dict[str, str]:
    """Return the tables of a file of verdicts by the titles of their studies."""
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {title: rest.strip() for title, _, rest in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    path = options.results / "verdicts.md"
    sections = sections_of(path.read_text())
    for folder in earlier(options.results):
        study, before, verdicts = rejudged(folder)
        lines = ["| claim | earlier | found | detectable | now | why |", "|---|---|---:|---:|---|---|"]
        numbers = origins(study)
        for claim, number, verdict in zip(study.claims, numbers, verdicts, strict=True):
            family = sum(other.family == claim.family for other in study.claims) if claim.family else 1
            reason = why(claim, before[number], verdict, numbers.count(number), family)
            cells = (
                claim.sentence,
                before[number]["outcome"],
                verdict.found(),
                verdict.power(),
                verdict.outcome,
                reason,
            )
            lines.append("| " + " | ".join(cells) + " |")
        decided = sum(verdict.outcome in DECIDED for verdict in verdicts)
        sections[study.title] = "\n".join(lines)
        print(f"{study.name}: {decided} of {len(verdicts)} claims decided")
    parts = [HEAD, *(f"## {title}\n\n{text}\n" for title, text in sections.items())]
    path.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
