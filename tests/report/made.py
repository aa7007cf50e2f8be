"""Run folders, evaluations and studies that were made up: what a report is written from, without a training."""

import json

import numpy as np

from sparring.records.gallery import Gallery, chosen
from sparring.records.results import EvaluationResult
from sparring.records.run_folder import RunFolder

CLASSES = ("shirt", "trouser", "pullover", "dress", "coat", "sandal", "bag", "sneaker", "boot", "hat")
THREAT = "Linf(eps=0.03137254901960784)"
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def evaluation(n=200, seed=0, classes=CLASSES, harder=0.0, side=8, channels=1, pictures=True):
    """A result of AutoAttack, PGD and minimum-norm attacks whose facts fit each other."""
    label = np.random.default_rng(0).integers(len(classes), size=n)
    rng = np.random.default_rng(seed)
    clean_margin = rng.normal(2.0, 1.5, n).astype(np.float32)
    right = clean_margin > 0
    distance = np.where(right, rng.gamma(2.0, 0.02 - harder, n), 0).astype(np.float32)
    robust, fates = {"clean": right}, rng.integers(len(STAGES) + 3, size=n)
    standing = right & (distance > 8 / 255)
    left = right
    for number, stage in enumerate(STAGES):
        left = left & (standing | (fates > number) & (number < 3))
        robust[f"autoattack/{stage}"] = left
    robust["autoattack"] = left
    robust["pgd"] = left | (right & (rng.random(n) < 0.05))
    broken = right & ~left
    margin = np.where(left, rng.random(n), np.where(broken, -rng.random(n), clean_margin)).astype(np.float32)
    other = (label + rng.integers(1, len(classes), size=n)) % len(classes)
    result = EvaluationResult(
        {"clean": right, "pgd": robust.pop("pgd"), **{name: robust[name] for name in robust if name != "clean"}},
        label,
        tuple(classes),
        {"clean": clean_margin, "autoattack": margin, "pgd": margin},
        {name: np.where(broken, 8 / 255, np.nan).astype(np.float32) for name in ("autoattack", "pgd")},
        np.arange(n),
        distance,
        about={"autoattack": THREAT, "pgd": THREAT},
        notes=("a note that a reader has to know",),
        predicted={
            "clean": np.where(right, label, other),
            "autoattack": np.where(left, label, other),
            "pgd": np.where(left, label, other),
        },
        passes={f"autoattack/{stage}": 100.0 for stage in STAGES} | {"pgd": 28.0},
        seconds={f"autoattack/{stage}": 1.5 for stage in STAGES} | {"pgd": 0.5},
        image_hash=np.arange(n) * 7,
        settings={
            "model": "0123456789abcdef",
            "seed": "0",
            "search": "copy in bf16",
            "adversary autoattack": f"AutoAttack(threat={THREAT}, version='standard')",
            "adversary pgd": f"WhiteBox(attack=PGD(threat={THREAT}, steps=10))",
            "adversary nearest": f"MinimumNorm(threat={THREAT}, attacks=())",
        },
    )
    return replaced(result, rng, side, channels) if pictures else result


def replaced(result, rng, side, channels):
    """The result with a gallery."""
    from dataclasses import replace

    fates = result.broken_by("autoattack")
    row = chosen(np.arange(len(fates)), fates, result.margin["autoattack"], 24)
    clean = rng.random((len(row), channels, side, side)).astype(np.float16)
    noise = rng.choice([-8 / 255, 8 / 255], size=clean.shape) * (fates[row] != "")[:, None, None, None]
    adversarial = np.clip(clean + noise, 0, 1).astype(np.float16)
    sure = rng.random((2, len(row))).astype(np.float32)
    return replace(result, gallery=Gallery("autoattack", row, clean, adversarial, *sure))


ENVIRONMENT = {
    "started": "2026-11-29T10:00:00+0000",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "commit": None,
    "platform": "Linux",
    "device": "cpu",
    "threads": 1,
    "seed": 0,
}
AUDIT = {
    "passed": True,
    "checks": [
        {"name": "more steps", "figure": 0.1, "meaning": "200 steps break 0.1 points more", "verdict": "pass",
         "threshold": "at most 1 point", "advice": ""},
        {"name": "black box", "figure": 2.0, "meaning": "Square breaks 2 images more", "verdict": "warn",
         "threshold": "at most 1 image", "advice": "attack longer"},
    ],
}  # fmt: skip


def made_run(folder, which=("best", "last"), recipe_name="quickstart", **given):
    """A run folder that was trained, evaluated, audited and analysed, as far as its files say."""
    run = RunFolder(folder)
    run.begin({"format": 2, "$": "Recipe", "epochs": 4, "method": {"$": "Method", "attack": {"$": "PGD", "steps": 7}}})
    run.add_session({**ENVIRONMENT, "command": ["sparring", "train", recipe_name, "--out", str(folder)]})
    for epoch in range(1, 5):
        step = {"step": epoch * 10, "epoch": float(epoch)}
        run.add_metrics({**step, "lr": 0.1 / epoch, "terms": {"ce_clean": 2.0 / epoch, "kl": 0.3}})
        held_out = {"clean": 0.5 + epoch / 10, "robust": [0.3, 0.5, 0.45, 0.4][epoch - 1]}
        run.add_metrics({**step, "held_out": held_out, "best": epoch <= 2})
    run.set_status({"finished": True, "step": 40, "best": {"clean": 0.7, "robust": 0.5, "step": 20}})
    run.set_guard([{"step": 30, "action": "logged", "what": "robust overfitting: 5 points below the best epoch"}])
    found = {name: evaluation(seed=number, **given) for number, name in enumerate(which)}
    for name, each in found.items():
        run.write_flags(name, each)
    command = ["sparring", "evaluate", str(folder), "--autoattack", "standard", "--min-norm", "--weights", "both"]
    tables = {name: {under: a.plain() for under, a in each.table().items()} for name, each in found.items()}
    how = {"seed": 0, "selected": "best on 0.1 of the training images", "evaluation": {"examples": 200}}
    run.write_evaluation({**tables, "how": how, "environment": {**ENVIRONMENT, "command": command}})
    run.write_audit(AUDIT)
    numbers = {"curvature": {"median": {"value": 1.5, "low": 1.0, "high": 2.0}, "meaning": "how much the loss bends"}}
    run.analysis("landscape", "json").write_text(json.dumps({"figures": numbers}))
    return run


OUTCOMES = (
    ("supported", 0.2, None),
    ("not supported", -0.2, None),
    ("undecided", 0.0, "nats"),
    ("not testable here", 0.0, None),
)


def made_study(folder, arms=9):
    """The folder of a study with many trainings."""
    rng = np.random.default_rng(0)

    def estimate(value):
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def arm(number):
        found = {"clean": estimate(0.8), "pgd": estimate(0.5 + number / 100), "worst": estimate(0.45 + number / 100)}
        less = {name: estimate(number / 100) for name in found}
        both = {"best": found, "last": found}
        return {"passes_a_step": 6.0, "million_passes": 0.3, "accuracy": both, "difference": dict.fromkeys(both, less)}

    names = ["baseline", *(f"training {number}" for number in range(1, arms))]
    held = {
        "study": "tricks",
        "title": "Tricks, examined again",
        "source": "https://arxiv.org/abs/2010.00467",
        "scale": "cpu",
        "seeds": 3,
        "examples": 400,
        "baseline": "baseline",
        "arms": {name: arm(number) for number, name in enumerate(names)},
        "verdicts": [
            {"claim": f"Claim {outcome}.", "rule": "the difference is above 0", "value": value, "low": value - 0.1,
             "high": value + 0.1, "outcome": outcome, "unit": unit, "seeds": 5, "detectable": 0.125,
             "reason": "a margin is too small" if outcome == "not testable here" else ""}
            for outcome, value, unit in OUTCOMES
        ],
        "curves": {name: {"passes": [0.1, 0.2, 0.3], "held_out": rng.random(3).tolist()} for name in names},
        "environment": {**ENVIRONMENT, "command": ["sparring", "study", "tricks"]},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(held))
    return folder
