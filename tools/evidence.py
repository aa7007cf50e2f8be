"""Writes what the studies found: `docs/evidence.md`, and the table of claims on the page of each study.

    python tools/evidence.py results docs

Takes every `results/STUDY-SCALE/study.json` as it is, and what the abstract of a paper says from the claims of the
study. A page of a paper is known by its link to the paper; its table is that of the scale "cpu".
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.core.writing import write_bytes
from sparring.records.statistics import DECIDED, Verdict
from sparring.studies import find
from sparring.studies.study import Study

HEAD = """\
# Evidence: which claims hold

Every claim of every paper that was re-examined here, from the stored results of its study.
`python tools/evidence.py results docs` writes this page. [How a claim is decided](studies.md#how-a-claim-is-decided)
was fixed before the studies ran, but for two things. Since 2026-11-30 the sign test decides accuracies that are the
same for all seeds, which decided two claims of `smooth` and one of `memorization`. Since the same day the interval is
wider where fewer than ten images make a difference. The results here are from before: that may leave one of `leaders`
undecided, and no other. The headline about transfer is that of pooled features since the same day, before these were
measured. Before, it was that of the whole map of features; of its five parts one is decided now.

- *found*: the mean over seeds with its 95 % interval (wider for parts of one claim, and where seeds were added), in
  points of accuracy unless a unit is given.
- *detectable*: the smallest effect beyond the bound that such a study supports in 80 % of all cases. Where it is
  large, *undecided* says that the study was too small, and nothing about the claim.
- *the abstract says*: the headline of the paper in our words, at the paper's own scale. Numbers are there only where
  they were read in the paper or in its authors' release.
- A verdict is about the scale of the study: small nets and few images, where the papers train large nets for a day.
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """The results of a study, and the study as it is defined today."""

    folder: Path
    plain: dict[str, Any]
    study: Study
    page: Path | None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(Verdict(**each) for each in self.plain["verdicts"])

    @property
    def headlines(self) -> dict[str, str]:
        """What the abstract says, by claim, of the headline claims."""
        return {claim.sentence: claim.headline for claim in self.study.claims if claim.headline}

    @property
    def command(self) -> str:
        looks = " --until-decided" if "looks" in self.plain else ""
        return f"sparring study {self.study.name} --scale {self.plain['scale']}{looks}"


def stored(results: Path, docs: Path) -> list[Stored]:
    """Return all studies whose results are in a folder."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted((docs / "papers").glob("*.md"))}
    found = []
    for path in sorted(results.glob("*/study.json")):
        plain = json.loads(path.read_text(encoding="utf-8"))
        source = plain["source"]
        page = next((page for page, text in pages.items() if source and source in text), None)
        found.append(Stored(path.parent, plain, find(plain["study"])(plain["scale"]), page))
    return found


def written(results: Path, docs: Path) -> dict[Path, str]:
    """Return the text of each page by its path."""
    studies = stored(results, docs)
    pages = {each.page: _with_claims(each.page, each.verdicts) for each in studies if each.page and _small(each)}
    return {docs / "evidence.md": evidence(studies, docs), **pages}


def _small(each: Stored) -> bool:
    return each.plain["scale"] == "cpu"


def _with_claims(page: Path, verdicts: Iterable[Verdict]) -> str:
    """Return the text of a page with another table of claims, if it has one."""
    lines = page.read_text(encoding="utf-8").split("\n")
    begin = next((n for n, line in enumerate(lines) if line.startswith("| claim |")), len(lines))
    end = next((n for n in range(begin, len(lines)) if not lines[n].startswith("|")), begin)
    if begin == end:
        return "\n".join(lines)
    rows = [[v.claim.rstrip("."), v.found(), v.power(), v.outcome] for v in verdicts]
    claims = _table(["claim", "found", "detectable", "verdict at this scale"], [1, 2], rows)
    return "\n".join([*lines[:begin], *claims, *lines[end:]])


def evidence(studies: list[Stored], docs: Path) -> str:
    """Return the page of all claims: the headlines, how many claims of each study are decided, and the other claims."""
    columns = ["claim", "found", "detectable", "seeds", "scale", "verdict"]
    headlines = ["the abstract says", *columns]
    counted = ["study", "headline claims decided", "claims decided", "supported", "not supported", "command", "results"]
    return "\n".join(
        [
            HEAD,
            "## The headline claims of the abstracts",
            "",
            *_table(["paper", *headlines], [3, 4, 5], _rows(studies, docs, headline=True)),
            "",
            "## How many claims are decided",
            "",
            "Claims that were not measured in a study yet count as not decided.",
            "",
            *_table(counted, [1, 2, 3, 4], (_counts(each, docs) for each in studies)),
            "",
            "## All other claims",
            "",
            *_table(["paper", *columns], [2, 3, 4], _rows(studies, docs, headline=False)),
            "",
        ]
    )


def _rows(studies: list[Stored], docs: Path, *, headline: bool) -> Iterator[list[str]]:
    for each in studies:
        for v in each.verdicts:
            said = each.headlines.get(v.claim)
            if (said is not None) == headline:
                reason = f": {v.reason}" if v.reason else ""
                found = [v.claim, v.found(), v.power(), str(v.seeds), str(each.plain["scale"])]
                yield [_named(each, docs), *([said] if said else []), *found, f"**{v.outcome}**{reason}"]


def _counts(each: Stored, docs: Path) -> list[str]:
    outcomes = {verdict.claim: verdict.outcome for verdict in each.verdicts}
    claims = dict.fromkeys([*(claim.sentence for claim in each.study.claims), *outcomes])
    return [
        _named(each, docs),
        _decided(outcomes.get(claim) for claim in each.headlines),
        _decided(outcomes.get(claim) for claim in claims),
        *(str([*outcomes.values()].count(outcome)) for outcome in DECIDED),
        f"`{each.command}`",
        f"[{each.folder.name}]({_link(each.folder / 'table.md', docs)})",
    ]


def _decided(outcomes: Iterable[Any]) -> str:
    each = [outcome in DECIDED for outcome in outcomes]
    return f"{sum(each)} of {len(each)}"


def _named(each: Stored, docs: Path) -> str:
    return f"[{each.study.name}]({_link(each.page, docs)})" if each.page else each.study.name


def _link(path: Path, docs: Path) -> str:
    return Path(os.path.relpath(path, docs)).as_posix()


def _table(head: list[str], numbers: list[int], rows: Iterable[list[str]]) -> list[str]:
    """Return a table; `numbers` are the columns that are set to the right."""
    rule = ["---:" if place in numbers else "---" for place in range(len(head))]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {line} |" for line in lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("docs", type=Path)
    options = parser.parse_args()
    for path, text in written(options.results, options.docs).items():
        write_bytes(path, text.encode())


if __name__ == "__main__":
    main()
