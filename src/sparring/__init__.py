"""Adversarial training in PyTorch: train against an adversary, measure how robust the result is, explain why.

Names are imported from their rooms when they are first used, so `import sparring` is immediate.
"""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "attacks": "FGSM NFGSM PGD Anywhere Benign Near Restarts Split Worst",
    "averaging": "EMA",
    "core": "Attack Batch Classifier Context Data Lens Objective PointLoss Probe Progress Schedule Threat at make_rng",
    "data": "Batches Crop Cutout Flip",
    "engine": "Loop Method State train_step",
    "errors": "UserError",
    "evaluate": "WhiteBox evaluate perturb",
    "losses": "Divergence Targeted Total Untargeted",
    "objectives": "CrossEntropy Sum",
    "optimizers": "SGD AdamW",
    "plain": "Build",
    "recipe": "Evaluation Recipe",
    "results": "Accuracy RunFolder",
    "run": "fit load_model",
    "schedules": "Cosine Cycle Cyclic Piecewise WarmUp",
    "threats": "L1 L2 Linf",
    "updates": "Descend",
    "views": "eval_mode frozen train_mode unchanged",
}
_HOME = {name: room for room, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME)  # noqa: PLE0605

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
