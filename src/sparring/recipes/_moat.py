"""Multi-stage training for any data: an attack and an objective that change with the stage."""

from typing import Literal

from ..attacks import FGSM, PGD, Benign, RandomStart
from ..attacks.threats import Linf
from ..core.errors import UserError
from ..core.schedules import Cycle
from ..core.types import Attack, Objective
from ..objectives.cross_entropy import CrossEntropy
from ..objectives.mix_up import MixUp
from ..objectives.regularizers import Staged
from ..training.engine import Method

Reading = Literal["pure", "mixed", "mixup"]


def moat(
    threat: Linf,
    stages: dict[str, int],
    order: str,
    period: float,
    slot: int | None,
    steps: int,
    step_size: float,
    reading: Reading = "pure",
    clean: float = 0.5,
    alpha: float = 1.0,
) -> Method:
    """Return a method with stages, repeated in `order`: "b" benign, "s" a single step, "m" several `steps`.

    All stages are visited every `period` epochs, each for its share in `stages`, given under its letter, and training
    ends with the last. With `slot`, each stage instead lasts its number in `stages` times `slot` steps, counted from
    the beginning. The abstract of https://arxiv.org/abs/2106.15357 can be read in three ways: "pure" trains on one kind
    of example in a stage; "mixed" gives clean images the weight `clean` in the other stages too; "mixup" mixes the
    images of the benign stage in pairs, with shares from Beta(`alpha`, `alpha`). Raises `UserError` for an order with
    other letters, another reading, or an empty stage.
    """
    attacks: dict[str, Attack] = {
        "b": Benign(),
        "s": FGSM(threat, 1.25 * threat.eps, RandomStart()),
        "m": PGD(threat, steps=steps, step_size=step_size),
    }
    if not order or set(order) - set(attacks):
        raise UserError(f"order = {order!r} must consist of b (benign), s (single step) and m (several steps)")
    if reading not in ("pure", "mixed", "mixup"):
        raise UserError(f"reading = {reading!r} is not one of pure, mixed, mixup")
    lengths = [stages[letter] * (1 if slot is None else slot) for letter in order]
    epochs = period if slot is None else None
    cycle = Cycle(tuple((length, attacks[letter]) for length, letter in zip(lengths, order, strict=True)), epochs)
    if reading == "pure":
        return Method(cycle, CrossEntropy())
    inner: dict[str, Objective] = {
        "b": MixUp(alpha) if reading == "mixup" else CrossEntropy(),
        "s": CrossEntropy(clean=clean if reading == "mixed" else 0.0),
    }
    inner["m"] = inner["s"]
    staged = Staged(tuple((length, inner[letter]) for length, letter in zip(lengths, order, strict=True)), epochs)
    return Method(cycle, staged)
