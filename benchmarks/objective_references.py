"""What methods compute, beside the released code of their authors, on one model, one batch and the same random numbers.

    python benchmarks/objective_references.py CHECKOUTS

CHECKOUTS is a folder with a clone of each repository of the table, under its name, such as CHECKOUTS/hat. Their
functions are read from their files and run as they are; what is compared are the gradients of the loss by all weights,
after the attack of each side has crafted its examples from the same start. Everything is in double precision, on
the CPU. A repository that is not there is left out.
"""

import argparse
import ast
import copy
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import CE, PGD, Build, Linf
from sparring.core.modes import batch_statistics, eval_mode, train_mode
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, ModelMode, Objective, Progress, TensorData
from sparring.models import small_cnn
from sparring.objectives import (
    ARD,
    FATTRADES,
    HAT,
    IKL,
    LBGAT,
    MAILAT,
    MAILTRADES,
    MLCAT,
    SCORE,
    AdaAD,
    DualTeacher,
)
from sparring.training import EMA

EPS, STEP, STEPS, CLASSES = 0.002, 0.0007, 5, 10  # a small ball, where some examples stay right
X = (0.1 + 0.8 * torch.rand(16, 3, 32, 32, generator=make_rng(0))).double()
NOISE = torch.randn(X.shape, generator=make_rng(1)).double().clamp(-1.5, 1.5)  # a start inside the ball
UNIFORM = (EPS * (2 * torch.rand(X.shape, generator=make_rng(2)) - 1)).double()


def net(seed: int, width: int = 4) -> nn.Module:
    """A net with batch norm whose predictions differ from image to image."""
    torch.manual_seed(seed)
    model = small_cnn(CLASSES, (3, 32, 32), width=width, batch_norm=True).double().train()
    with torch.no_grad():
        for _ in range(40):
            model(X)  # its running statistics become those of the images
        model.head.weight.mul_(20)
        model.head.bias.sub_(model.eval()(X).mean(0))
    return model.train()


def second_net(num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The second net of LBGAT."""
    del num_classes, shape
    return net(3, width=2)


Y = torch.where(torch.arange(16) % 4 == 0, torch.arange(16) % CLASSES, net(0).eval()(X).argmax(1))
DATA = TensorData((X * 255).to(torch.uint8), Y, tuple("abcdefghij"))


# -- their side


def functions_of(path: Path, names: tuple[str, ...], given: Mapping[str, Any]) -> SimpleNamespace:
    """The functions and classes of a file by their names, without what else it does when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name in names]
    assert {each.name for each in body} == set(names), f"{path} has other functions"
    scope = {"torch": torch, "nn": nn, "F": F, "np": np, "Variable": lambda x, requires_grad=False: x, **given}
    scope["optim"] = torch.optim
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)  # noqa: S102
    return SimpleNamespace(**{name: scope[name] for name in names})


def statements_of(path: Path, first: str, last: str) -> Any:
    """The statements of a loop of a script, from the one that assigns to `first` to the one whose text is `last`."""
    text = path.read_text(encoding="utf-8")
    for loop in (each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.For)):
        lines = [ast.unparse(each) for each in loop.body]
        if last in lines and any(line.startswith(f"{first} =") for line in lines):
            begin = next(i for i, line in enumerate(lines) if line.startswith(f"{first} ="))
            return compile("\n".join(lines[begin : lines.index(last) + 1]), str(path), "exec")
    raise AssertionError(f"{path} has no such loop")


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """Runs code that was written for a GPU, in double precision and with the given noise."""
    with ExitStack() as stack:
        for kind in (Tensor, nn.Module):
            stack.enter_context(mock.patch.object(kind, "cuda", lambda self, *args: self))
        stack.enter_context(mock.patch.object(torch, "randn", lambda shape: NOISE[: shape[0]].clone()))
        stack.enter_context(mock.patch.object(torch, "randn_like", return_value=NOISE))
        drawn = SimpleNamespace(uniform_=lambda low, high: UNIFORM.clone())
        stack.enter_context(mock.patch.object(torch, "FloatTensor", return_value=drawn))
        stack.enter_context(mock.patch.object(Tensor, "uniform_", lambda self, low, high: self.copy_(UNIFORM)))
        stack.enter_context(mock.patch.object(torch.cuda, "FloatTensor", torch.DoubleTensor, create=True))
        yield


@contextmanager
def noparam_grad(model: nn.Module) -> Iterator[None]:
    """What their context managers do, from modules that cannot be imported alone."""
    with eval_mode(model):
        yield


def track_bn_stats(model: nn.Module, tracked: bool) -> None:
    """Their switch of the running statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = tracked


class NoStep(torch.optim.SGD):
    """An optimiser that leaves weights and gradients."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure


def no_step(*models: nn.Module) -> NoStep:
    return NoStep([p for model in models for p in model.parameters()], lr=0.1)


# -- a comparison


@dataclass(frozen=True)
class Comparison:
    """A method beside the code of its authors.

    Args:
        method: name of the method.
        file: file of their function, from the folder of checkouts.
        names: functions and classes of the file.
        ours: the objective.
        theirs: computes gradients into the models, from their functions: the model, the other models by name.
        scale: their loss over ours.
        inner: mode of the model in our attack.
        start: points at which the attack begins.
        patience: patience of our attack.
        step: whether means of classes are given to the memory (IKL).
    """

    method: str
    file: str
    names: tuple[str, ...]
    ours: Callable[[Teacher, Teacher], Objective]
    theirs: Callable[..., None]
    scale: float = 1.0
    inner: ModelMode = eval_mode
    start: Tensor = X + 0.001 * NOISE
    patience: int | None = None
    given: Mapping[str, Any] = ()  # type: ignore[assignment]


MEANS = torch.softmax(torch.randn(CLASSES, CLASSES, generator=make_rng(4)), 1)


def gradients_of_ours(each: Comparison) -> list[Tensor]:
    """The gradients by the weights of the model, and by those of the memory if it has any."""
    model, objective = net(0), each.ours(Teacher.of(net(1)), Teacher.of(net(2)))
    memory = objective.init(DATA).double()
    if isinstance(objective, IKL):
        memory.means.copy_(MEANS)
    attack = PGD(Linf(EPS), STEPS, STEP, GivenStart(each.start), each.patience)
    ctx = Context(ForwardCache(model), Batch(X, Y, torch.arange(16)), memory, Progress(1, 2, 1))
    with each.inner(model):
        x_adv = attack(objective.inner(ctx), X, make_rng(0))
    torch.stack(list(objective.outer(ctx.on(model), x_adv).values())).sum().backward()
    return [p.grad for module in (model, memory) for p in module.parameters() if p.grad is not None]


def gradients_of_theirs(each: Comparison, checkouts: Path) -> list[Tensor]:
    model, standard, robust, second = net(0), net(1).eval(), net(2).eval(), net(3, width=2)
    for teacher in (standard, robust):
        teacher.requires_grad_(False)
    path = checkouts / each.file
    code = functions_of(path, each.names, dict(each.given)) if each.names else path
    with on_a_cpu(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # their arguments are of older versions of torch
        each.theirs(code, model, standard, robust, second)
    return [p.grad for module in (model, second) for p in module.parameters() if p.grad is not None]


def largest_difference(each: Comparison, checkouts: Path) -> tuple[float, float]:
    """The largest difference of a gradient, and the largest gradient."""
    ours, theirs = gradients_of_ours(each), gradients_of_theirs(each, checkouts)
    assert len(ours) == len(theirs), (each.method, len(ours), len(theirs))
    apart = max(float((each.scale * a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return apart, max(float(b.abs().max()) for b in theirs)


# -- how each of their functions is called

BALL = {"step_size": STEP, "epsilon": EPS, "perturb_steps": STEPS}
METRICS = {"accuracy": lambda *args: 0.0}


def hat(name: str, code: Any, model: nn.Module, standard: nn.Module, *_: nn.Module) -> None:
    loss, _metrics = getattr(code, name)(
        model, X, Y, no_step(model), **BALL, h=2.0, beta=2.5, gamma=0.5, hr_model=standard
    )
    loss.backward()


def ard(code: Any, model: nn.Module, standard: nn.Module, *_: nn.Module) -> None:
    scope = code.train.__globals__
    config = {"epsilon": EPS, "num_steps": STEPS, "step_size": STEP}
    loader = type("Loader", (list,), {"set_description": lambda self, text: None})([(X, Y)])
    scope.update(
        net=code.AttackPGD(model, config),
        basic_net=model,
        teacher_net=standard,
        trainloader=loader,
        tqdm=lambda loader, **options: loader,
        device="cpu",
        KL_loss=nn.KLDivLoss(),
        XENT_loss=F.cross_entropy,
        args=SimpleNamespace(alpha=1.0, temp=30.0, save_period=2),
    )
    code.train(0, no_step(model))


def adaad(code: Any, model: nn.Module, standard: nn.Module, *_: nn.Module) -> None:
    x_adv = code.adaad_inner_loss(model, standard, X, step_size=STEP, steps=STEPS, epsilon=EPS)
    log_q, p = F.log_softmax(model(x_adv), dim=1), F.softmax(standard(x_adv), dim=1)
    nn.KLDivLoss(reduction="batchmean")(log_q, p).backward()


def ikl(attack_beta: float, code: Any, model: nn.Module, *_: nn.Module) -> None:
    del attack_beta
    onehot = F.one_hot(Y, CLASSES).double() @ MEANS.double()
    weight = onehot.view(-1, CLASSES, 1) @ onehot.view(-1, 1, CLASSES)
    x_adv = code.perturb_input(model, X, STEP, EPS, STEPS, weight=weight)
    model.train()
    adversarial, clean = model(x_adv), model(X)
    loss = F.cross_entropy(clean, Y) + code.dkl_loss(clean, adversarial, weight, 4.0, 20.0)
    loss.backward()


def lbgat(code: Any, model: nn.Module, standard: nn.Module, robust: nn.Module, second: nn.Module) -> None:
    del standard, robust
    code.lbgat_loss(model, second, X, Y, no_step(model, second), STEP, EPS, STEPS, beta=6.0).backward()


def score(code: Any, model: nn.Module, *_: nn.Module) -> None:
    loss, _metrics = code.trades_loss_LSE(
        model, X, Y, no_step(model), **BALL, beta=4.0, label_smoothing=0.0, clip_value=CLIP
    )
    loss.backward()


def mail(method: str, bias: float, slope: float, code: Any, model: nn.Module, *_: nn.Module) -> None:
    code.mail_loss(model, X, Y, no_step(model), bias, slope, **BALL, beta=5.0, method=method).backward()


def fat(code: Any, model: nn.Module, *_: nn.Module) -> None:
    found, target, clean, _count = code.earlystop(
        model, X, Y, STEP, EPS, STEPS, 0, "normal_distribution_randominit", "kl"
    )
    model.train()
    model.zero_grad()
    adversarial, natural = model(found), model(clean)
    log_q, p = F.log_softmax(adversarial, dim=1), F.softmax(natural, dim=1)
    (F.cross_entropy(natural, target) + 6.0 * nn.KLDivLoss(reduction="batchmean")(log_q, p)).backward()


def dual_teacher(code: Any, model: nn.Module, standard: nn.Module, robust: nn.Module, *_: nn.Module) -> None:
    x_adv = madry(model)
    out = model(x_adv)
    loss = F.cross_entropy(out, Y) * 0.3
    for teacher, weight in ((standard, 0.1), (robust, 0.6)):
        loss = loss + weight * code.loss_fn_kd(out, teacher(x_adv).detach(), T=2.0)
    loss.backward()


def mlcat(path: Path, model: nn.Module, *_: nn.Module) -> None:
    x_adv = madry(model)
    code = statements_of(path, "scale_rate", "robust_loss = robust_loss.mean()")
    scope = {"torch": torch, "robust_loss": F.cross_entropy(model(x_adv), Y, reduction="none")}
    exec(code, scope)  # noqa: S102
    scope["robust_loss"].backward()


def madry(model: nn.Module) -> Tensor:
    """The attack of repositories that take it from another library: our PGD."""
    with eval_mode(model):
        return PGD(Linf(EPS), STEPS, STEP, GivenStart(X + 0.001 * NOISE))(CE(model, Y), X, make_rng(0))


CLIP = 0.001
COMPARISONS = (
    Comparison(
        *("HAT", "hat/core/utils/hat.py", ("hat_loss",), lambda s, r: HAT(s)),
        functools.partial(hat, "hat_loss"),
        given={**METRICS, "ctx_noparamgrad_and_eval": noparam_grad},
    ),
    Comparison(
        *("ARD", "AdversariallyRobustDistillation/main.py", ("AttackPGD", "train"), lambda s, r: ARD(s), ard),
        scale=1 / CLASSES,
        inner=train_mode,
        start=X + UNIFORM,
    ),
    Comparison("AdaAD", "AdaAD/AT_helper.py", ("adaad_inner_loss",), lambda s, r: AdaAD(s), adaad),
    Comparison(
        *("IKL, CIFAR-10", "DKL/DKLv1/Adv-training-dkl/train_dkl_cifar10.py", ("dkl_loss", "perturb_input")),
        *(lambda s, r: IKL(), functools.partial(ikl, 0.0)),
        given={"device": "cpu"},
    ),
    Comparison(
        *("IKL, CIFAR-100", "DKL/DKLv1/Adv-training-dkl/train_dkl_cifar100.py", ("dkl_loss", "perturb_input")),
        *(lambda s, r: IKL(attack_beta=1.0), functools.partial(ikl, 1.0)),
        given={"device": "cpu"},
    ),
    Comparison("LBGAT", "LBGAT/lbgat.py", ("lbgat_loss",), lambda s, r: LBGAT(Build(second_net)), lbgat),
    Comparison(
        *("SCORE", "SCORE/gowal21uncovering/utils/trades.py", ("trades_loss_LSE",)),
        *(lambda s, r: SCORE(clip=CLIP), score),
        inner=batch_statistics,
        start=X + UNIFORM,
        given={**METRICS, "track_bn_stats": track_bn_stats},
    ),
    Comparison(
        *("MAIL-AT", "MAIL/mail_loss.py", ("PM", "weight_assign", "mail_loss"), lambda s, r: MAILAT()),
        functools.partial(mail, "mail_at", -0.5, 10.0),
    ),
    Comparison(
        *("MAIL-TRADES", "MAIL/mail_loss.py", ("PM", "weight_assign", "mail_loss"), lambda s, r: MAILTRADES()),
        functools.partial(mail, "mail_trades", 0.0, 2.0),
    ),
    Comparison(
        *("FAT-TRADES", "Friendly-Adversarial-Training/earlystop.py", ("earlystop",), lambda s, r: FATTRADES(), fat),
        patience=0,
    ),
    Comparison(
        *("KD of KD & SWA", "Alleviate-Robust-Overfitting/utils.py", ("loss_fn_kd",)),
        *(DualTeacher, dual_teacher),
    ),
    Comparison(
        *("MLCAT", "Understanding-Robust-Overfitting/train_step4_scale_15.py", (), lambda s, r: MLCAT(), mlcat),
    ),
)
SEAT = "Self-Ensemble-Adversarial-Training/seat.py"


def averages_apart(path: Path) -> tuple[float, float]:
    """The largest difference of an averaged weight, after 40 steps counted alike, and the largest weight."""
    model = net(0)
    theirs = functions_of(path, ("EMA",), {"copy": copy}).EMA(model, 0.9)
    ours = EMA(0.9)
    average = ours.init(model)
    for step in range(40):
        with torch.no_grad():
            for number, p in enumerate(model.parameters()):
                p.add_(0.1 * torch.randn(p.shape, generator=make_rng(100 * step + number)).double())
        theirs.update_params(model)
        ours.update(average, model, Progress(step, 10, 4))
    pairs = [(p, theirs.shadow[name]) for name, p in average.named_parameters()]
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(b.abs().max()) for _, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    args = parser.parse_args()
    print("| method | file of the authors | compared | largest difference | largest value |")
    print("|---|---|---|---:|---:|")
    for each in COMPARISONS:
        if not (args.checkouts / each.file).is_file():
            print(f"{each.method}: {each.file} is not there", file=sys.stderr)
            continue
        apart, size = largest_difference(each, args.checkouts)
        print(f"| {each.method} | `{each.file}` | gradient | {apart:.1e} | {size:.1e} |", flush=True)
    if (args.checkouts / SEAT).is_file():
        apart, size = averages_apart(args.checkouts / SEAT)
        print(f"| SEAT: EMA | `{SEAT}` | averaged weights | {apart:.1e} | {size:.1e} |")


if __name__ == "__main__":
    main()
