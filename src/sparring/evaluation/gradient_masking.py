"""An audit of a model for masked gradients, which mislead attacks and make a model look robust.

The signs are from Carlini et al. (https://arxiv.org/abs/1902.06705), Athalye et al. (https://arxiv.org/abs/1802.00420)
and Tramèr et al. (https://arxiv.org/abs/2002.08347). A model that passes has shown none of the known signs; that is no
proof.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..attacks.threats import L1, L2, Linf
from ..attacks.threats import threat as threat_named
from ..core.errors import UserError, need_seed
from ..core.gate import FEW, alone, as_taken, check_model, check_taken
from ..core.modes import eval_mode, frozen, full_precision
from ..core.types import TensorData, Threat
from ..core.validation import check_data
from ..data.given import evaluation_data
from ..records.results import Finding
from .accuracy import with_classes_of
from .audit_checks import CHECKS, optimisation_inside, output, train_mode, transfer
from .audit_context import AuditBudget, AuditContext
from .named import within_of
from .verifier import MutationCheck, Verifier


def audit(
    model: nn.Module,
    data: Any,
    threat: Threat | str | None = None,
    *,
    eps: float | str | None = None,
    surrogate: nn.Module | None = None,
    budget: AuditBudget = AuditBudget(),  # noqa: B008
    seed: int = 0,
    on_check: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """Check a model for the known signs of masked gradients.

    The checks run in the order in which they explain each other. All but the first three use only the examples that
    the model gets right. A model that passes has shown none of the known signs; that is no proof of robustness.

    Args:
        model: Any module that gives logits.
        data: Images in [0, 1] (or bytes) with labels, in any form that `evaluate` takes; a few hundred are enough.
        threat: The set that attacks search: `Linf`, `L2` or `L1`, or text such as "l2:0.5".
        eps: Radius in Linf, as 0.03 or "8/255", in the place of `threat`.
        surrogate: Another model, adversarial examples of which are transferred to this one; by default a small network
            that is trained on the model's own answers.
        budget: Steps, queries and samples of the checks.
        seed: Seed of the random numbers.
        on_check: Called with the name of each check on the attacks and gradients before it runs.

    Returns:
        A finding for each check. If the logits cannot be used, only those of the first three checks.

    Raises:
        UserError: For bad data, no set or one other than these three balls, or a model that gets no example right.

    References:
        Carlini et al.: https://arxiv.org/abs/1902.06705.
        Athalye et al.: https://arxiv.org/abs/1802.00420.
        Tramèr et al.: https://arxiv.org/abs/2002.08347.
    """
    check_model(model)
    data = evaluation_data(data, "audit")[:]
    check_data(data, "audit")
    data = with_classes_of(model, data)
    need_seed(seed)
    within = within_of(eps, threat)
    if within is None:
        raise UserError("an audit needs eps, the radius of the perturbations: give it, as eps='8/255'")
    ball = threat_named(within) if isinstance(within, str) else within
    if not isinstance(ball, Linf | L2 | L1):
        raise UserError(f"an audit is defined for Linf, L2 and L1, not for {ball!r}")
    found = [train_mode(model)]
    with alone(model, *([] if surrogate is None else [surrogate])), full_precision(), eval_mode(model), frozen(model):
        for each in (model, *([] if surrogate is None else [surrogate])):
            check_taken(each, as_taken(each, data.x[:FEW]))
        x = as_taken(model, data.x)
        data = TensorData(x, data.y.to(x.device), data.classes)
        unaltered = MutationCheck(model)
        found += [output(model, data), optimisation_inside(model, data.x[:8])]
        if found[1].verdict == "fail" and found[1].figure is None:
            return found
        verdict = Verifier(model)(data.x, data.y)
        unaltered.check()
        right = data[verdict.right]
        if not len(right):
            raise UserError("the model gets none of these images right: there is no robustness to audit")
        case = AuditContext(model, right.x, right.y, ball, budget, seed)
        for check in CHECKS:
            on_check(check.__name__.replace("_", " "))
            found.append(check(case))
        on_check("transfer")
        found.append(transfer(case, surrogate))
    return found
