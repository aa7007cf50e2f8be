"""Robust overfitting and temporal ensembling on more seeds: two arms of `sparring study memorization`.

    python benchmarks/overfitting.py --seeds 10 --out results

The table of the study's own kind is written below --out, with the run folders; figures also to overfitting.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from sparring.acceleration import tune_process
from sparring.core.errors import UserError
from sparring.studies import find
from sparring.studies.running import run_study

ARMS = ("PGD-AT", "PGD-AT + TE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", default="cpu")
    options = parser.parse_args()
    if options.out is None:
        raise UserError("--out is missing")
    tune_process()
    whole = find("memorization")(options.scale)
    wanted = (
        *("Robust overfitting", "Temporal ensembling reduces", "Temporal ensembling makes"),
        "It does more than stopping early",
    )
    study = replace(
        whole,
        title="Robust overfitting and temporal ensembling",
        arms=tuple(arm for arm in whole.arms if arm.name in ARMS),
        claims=tuple(claim for claim in whole.claims if claim.sentence.startswith(wanted)),
        seeds=options.seeds,
        measurements=(),
        numbers=None,
    )
    found = run_study(study, options.out / "overfitting", scale=options.scale, log=print)
    plain = json.loads((options.out / "overfitting" / "study.json").read_text())
    kept = {key: plain[key] for key in ("scale", "seeds", "examples", "verdicts", "environment")}
    kept["by_seed"] = {
        arm: {which: plain["arms"][arm]["by_seed"][which]["worst"] for which in ("best", "last")} for arm in ARMS
    }
    (options.out / "overfitting.json").write_text(json.dumps(kept, indent=1) + "\n")
    for verdict in found.verdicts:
        print(f"{verdict.outcome}: {verdict.claim} ({verdict.found()} points)")


if __name__ == "__main__":
    main()
