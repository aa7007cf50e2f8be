"""AutoAttack in one call."""

from pathlib import Path

from torch import Tensor, nn

from ..core.gate import FEW, alone, as_taken, check_taken
from ..core.types import AttackBackend, TensorData, Threat
from ..core.validation import check_images, check_logits
from ..records.results import EvaluationResult
from .accuracy import evaluate
from .auto_attack import AutoAttack, Version
from .runner import OnProgress


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    version: Version = "standard",
    *,
    batch_size: int | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    keep_images: bool = False,
    state: Path | str | None = None,
    backend: AttackBackend | None = None,
    on_progress: OnProgress = lambda news: None,
) -> EvaluationResult:
    """Evaluate a model under AutoAttack: `autoattack(model, x, y, Linf("8/255"))`.

    It works for any model that gives logits.

    Args:
        model: Any module that maps images `[B, C, H, W]` in [0, 1] to logits `[B, K]`.
        x: Images `[N, C, H, W]` in [0, 1] (or bytes).
        y: Labels `[N]`.
        threat: The set that adversarial examples must lie in: `Linf`, `L2` or `L1`.
        version: The ensemble, see `AutoAttack`.
        batch_size: As in `evaluate`.
        seed: As in `evaluate`.
        index: As in `evaluate`.
        keep_images: As in `evaluate`.
        state: As in `evaluate`.
        backend: As in `evaluate`.
        on_progress: As in `evaluate`.

    Returns:
        The result: `robust["autoattack"]` has the examples that are robust at the end, and `broken_by("autoattack")`
        names the attack that broke each of the others.

    Raises:
        UserError: As in `evaluate`, and for another version or set than those of `AutoAttack`.

    References:
        AutoAttack: https://arxiv.org/abs/2003.01690.
    """
    check_images(x, bytes_too=True)
    with alone(model):
        out = check_taken(model, as_taken(model, x[:FEW].detach()))
    check_logits(out, min(FEW, len(x)), later=True)
    data = TensorData(x, y, tuple(str(k) for k in range(out.shape[1])))
    attack = {"autoattack": AutoAttack(threat, version)}
    return evaluate(
        model,
        data,
        attack,
        batch_size=batch_size,
        seed=seed,
        index=index,
        keep_images=keep_images,
        state=state,
        backend=backend,
        on_progress=on_progress,
    )
