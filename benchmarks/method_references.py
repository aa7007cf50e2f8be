"""Methods beside the code of their authors: the same model, images and random numbers, and the largest difference.

    python benchmarks/method_references.py CHECKOUTS

CHECKOUTS is a folder with a checkout of each repository of the table, in a folder `owner+name`. Functions are taken out
of their files without running the rest. Where the code is a script, the passage of its loop that crafts and trains is
run on variables that are set here. Nothing of it is part of this repository.
"""

import argparse
import math
import random
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from authors_code import functions, names, old_torch, passage
from torch import Tensor, nn

from sparring import ASAM, CE, FGSM, L1, L2, PGD, RWP, SAM, CleanStart, CrossEntropy, Linf, Sum
from sparring.attacks import MSD, Highest, Union
from sparring.core.rng import make_rng
from sparring.core.types import Batch, Context, ForwardCache, GivenStart, Objective, Progress, TensorData
from sparring.models import small_cnn
from sparring.objectives import ATTA, ELLE, FGSMMEP, GAT, TDAT, NuAT, elle
from sparring.objectives.extreme_norms import drawn

EPS = 8 / 255
BALL = Linf(EPS)
COUNT = 6
X = 0.3 + 0.4 * torch.rand(COUNT, 3, 32, 32, generator=make_rng(0), dtype=torch.float64)
"""Images away from 0 and 1: where clipping acts, deviations are stated in the docstrings."""
Y = torch.arange(COUNT) % 10

Row = tuple[str, str, str, float]
ROWS: list[Callable[[Path], Iterator[Row]]] = []


def row(function: Callable[[Path], Iterator[Row]]) -> Callable[[Path], Iterator[Row]]:
    ROWS.append(function)
    return function


def net(scale: float = 300.0) -> nn.Module:
    """A small net, with logits that are scaled so that its probabilities differ."""
    torch.manual_seed(0)
    model = small_cnn(10, (3, 32, 32), width=4).double().eval()
    model.head.weight.data.mul_(scale)
    return model


Prepared = Callable[[nn.Module], None]


def ours(attack: Any, objective: Objective, progress: Progress, prepare: Prepared = lambda memory: None) -> Any:
    """Take the parts of a step one by one, and return the context, the points of the attack and the terms."""
    model = net()
    memory = objective.init(TensorData(X, Y, tuple("abcdefghij")))
    prepare(memory)
    ctx = Context(ForwardCache(model), Batch(X, Y, torch.arange(COUNT)), memory, progress, seed=1)
    with torch.no_grad():
        objective.observe(ctx)
        ctx = replace(ctx, start=objective.start(ctx))
    x_adv = objective.attacking(ctx, attack)(objective.inner(ctx), X, ctx.rng("attack"))
    terms = objective.outer(ctx.on(model), x_adv)
    with torch.no_grad():
        objective.remember(ctx, x_adv)
    return ctx, x_adv, terms


def apart(*pairs: tuple[Tensor, Tensor]) -> float:
    """The largest difference between two tensors of each pair."""
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


# -- the methods


@row
def fgsm_mep(folder: Path) -> Iterator[Row]:
    path = folder / "jiaxiaojunQAQ+FGSM-PGI" / "FGSM_MEP.py"
    begin = EPS * (2 * torch.rand(X.shape, generator=make_rng(1), dtype=X.dtype) - 1).float().double()
    old = torch.randn(X.shape, generator=make_rng(2), dtype=X.dtype).float().double()
    objective, size = FGSMMEP(BALL, reset=40), X[0].numel()

    def prepare(memory: Any) -> None:
        memory.delta.rows.copy_(begin.flatten(1))
        memory.momentum.rows.copy_(old.flatten(1))

    ctx, x_adv, terms = ours(FGSM(BALL), objective, Progress(1, 1, 110), prepare)
    found = []
    for i in range(COUNT):  # alone, as the gradients of a batch are scaled together there
        space = functions(path, "_label_smoothing", "LabelSmoothLoss")
        space |= {"model": net(), "opt": torch.optim.SGD(net().parameters(), lr=0.1), "y": Y[i : i + 1]}
        space |= {"X": X[i : i + 1], "delta": begin[i : i + 1].clone(), "next_delta": begin[i : i + 1].clone()}
        space |= {"momentum": old[i : i + 1] / size, "epsilon": torch.tensor(EPS), "alpha": torch.tensor(EPS)}
        space |= {"lower_limit": torch.tensor(0.0), "upper_limit": torch.tensor(1.0)}
        space["args"] = types.SimpleNamespace(factor=0.6, momentum_decay=0.3, lamda=10)
        found.append(passage(path, "label_smoothing = ", "loss.backward()", space))
    what = tuple(torch.cat([each[name] for each in found]) for name in ("delta", "next_delta", "momentum"))
    kept = ctx.memory.delta.rows.view_as(X), ctx.memory.momentum.rows.view_as(X) / size
    yield "FGSM-MEP", str(path), "points", apart((X + what[0], x_adv))
    yield "FGSM-MEP", str(path), "next start, momentum", apart((what[1], kept[0]), (what[2], kept[1]))
    theirs = torch.stack([each["loss"] for each in found]).mean()
    yield "FGSM-MEP", str(path), "loss of the update", apart((theirs, sum(terms.values())))


@row
def atta(folder: Path) -> Iterator[Row]:
    path = folder / "hzzheng93+ATTA"
    attack = functions(path / "adv_attack.py", "get_adv_atta")["get_adv_atta"]
    start = X + EPS * (2 * torch.rand(X.shape, generator=make_rng(1), dtype=X.dtype) - 1)
    model = net()
    theirs = attack(model, X, start.clone(), Y, step_size=0.007, epsilon=EPS, num_steps=5, loss_type="mat")
    found = PGD(BALL, 5, 0.007, GivenStart(start))(CE(model, Y), X, make_rng(0))
    yield "ATTA", str(path / "adv_attack.py"), "points", apart((theirs, found))

    space = functions(path / "adaptive_data_aug.py", "atta_aug", "atta_aug_trans", "inverse_atta_aug")
    numbers = F.pad(torch.arange(1.0, 1025).view(1, 1, 32, 32).expand(COUNT, 3, -1, -1), [4] * 4)
    random.seed(0)
    cropped, info = space["atta_aug"](numbers, torch.zeros(COUNT, 3, 32, 32))
    delta = start - X
    padded = F.pad(delta, [4] * 4)
    moved = space["atta_aug_trans"](padded, info, torch.zeros_like(delta))
    changed = moved + 1
    back = space["inverse_atta_aug"](padded.clone(), changed.clone(), info)[:, :, 4:-4, 4:-4]
    objective, batch = ATTA(), Batch(X, Y, torch.arange(COUNT), places=cropped[:, 0].long() - 1)
    memory = objective.init(TensorData(X, Y, tuple("abcdefghij")))
    memory.rows.copy_(delta.flatten(1))
    ctx = Context(ForwardCache(model), batch, memory, Progress(1, 1, 9))
    here = objective.start(ctx) - X
    objective.remember(ctx, X + changed)
    pairs = (here, moved), (memory.rows.view_as(X), back)
    yield "ATTA", str(path / "adaptive_data_aug.py"), "moved by crops and flips, and back", apart(*pairs)


@row
def local_linearity(folder: Path) -> Iterator[Row]:
    path = folder / "LIONS-EPFL+ELLE" / "core" / "utils" / "train.py"
    wide = Linf(0.2)
    arguments = types.SimpleNamespace(attack_eps=wide.eps, lin_reg=1000.0)
    space = names(x=X, y=Y, loss=torch.tensor(0.0), self=types.SimpleNamespace(model=net(), args=arguments))
    torch.manual_seed(0)
    passage(path, "bs = x.shape[0]", "loss += self.args.lin_reg", space)
    a, b = space["x_ab"].chunk(2)
    given = iter([a - X, b - X, space["alpha"].view(-1, 1, 1, 1)])
    kept, elle.uniform = elle.uniform, lambda *args: next(given)
    try:
        _, _, terms = ours(FGSM(BALL), Sum((CrossEntropy(), ELLE(wide, 1000.0))), Progress(0, 1, 9))
    finally:
        elle.uniform = kept
    yield "ELLE", str(path), "term of the update", apart((space["loss"], terms["nonlinearity"]))


@row
def guided(folder: Path) -> Iterator[Row]:
    path = folder / "val-iisc+GAMA-GAT" / "CIFAR10" / "GAT_cifar10.py"
    yield from relaxed("GAT", path, "Guided_Attack", "Q_out", GAT(40.0), {"l2_reg": 40.0})


@row
def nuclear(folder: Path) -> Iterator[Row]:
    path = folder / "val-iisc+NuAT" / "CIFAR10" / "NuAT_cifar10.py"
    yield from relaxed("NuAT", path, "NucAttack", "closs", NuAT(4.0), {"Nuc_reg": 4.0})


def relaxed(
    name: str, path: Path, attack: str, first: str, objective: Objective, weight: dict[str, float]
) -> Iterator[Row]:
    """Compare GAT or NuAT, in a step with relaxation and one without."""
    noisy = X + EPS / 2 * torch.where(torch.rand(X.shape, generator=make_rng(1)) < 0.5, 1.0, -1.0)
    points: list[Tensor] = []
    for number in (0, 1):
        space = functions(path, attack, TRAIN_BATCH_SIZE=COUNT, **weight)
        model, loss = net(), nn.CrossEntropyLoss()
        logits = model(X).detach()
        out = {"P_out": logits.softmax(1)} if name == "GAT" else {"out": logits}
        z = space[attack](model, loss, noisy, Y, eps=EPS, **out, **weight, alt=number)
        z = (X + (z - X).clamp(-EPS, EPS)).clamp(0, 1)
        space |= {"adv_out": model(z), "out": model(X), "target": Y, "loss": loss, "l_ce": 1.0, **weight}
        passage(path, first, "cost = ", space)
        _, x_adv, terms = ours(FGSM(BALL, start=GivenStart(noisy)), objective, Progress(400 + number, 4, 110))
        points.append(x_adv)
        yield name, str(path), f"points, {'with' if number else 'without'} relaxation", apart((z, x_adv))
        yield name, str(path), "loss of the update", apart((space["cost"], sum(terms.values())))
    if torch.equal(*points):
        raise SystemExit(f"the relaxation of {name} changes no point here, so that the comparison says nothing")


@row
def taxonomy(folder: Path) -> Iterator[Row]:
    path = folder / "bookman233+TDAT" / "TDAT.py"
    begin = EPS * (2 * torch.rand(X.shape, generator=make_rng(1), dtype=X.dtype) - 1)
    for epoch in (0, 90):
        true = max(0.15, math.tan(1 - epoch / 110) * 0.6)
        space = functions(path, "label_relaxation") | {"model": net().float(), "X": X.float(), "y": Y, "momentum": None}
        space |= {"delta": begin.float(), "epsilon": torch.tensor(EPS), "alpha": torch.tensor(EPS)}
        space |= {"lower_limit": torch.tensor(0.0), "upper_limit": torch.tensor(1.0)}
        space |= {"inner_gammas": true, "outer_gammas": true, "momentum": begin.float()}
        space["args"] = types.SimpleNamespace(batch_m=0.75, batch_size=COUNT, lamda=0.65)
        passage(path, "relaxtion_label = ", "loss = ", space)
        objective = TDAT(BALL, momentum=0.0)
        ctx, x_adv, terms = ours(
            FGSM(BALL), objective, Progress(epoch, 1, 110), lambda memory: setattr(memory, "held", begin.clone())
        )
        points = apart((X + space["delta"], x_adv), (space["momentum"], ctx.memory.held))
        yield "TDAT", str(path), f"points and next start, epoch {epoch}, in float32", points
        yield "TDAT", str(path), "loss of the update, in float32", apart((space["loss"], sum(terms.values())))


@row
def several_norms(folder: Path) -> Iterator[Row]:
    path = folder / "locuslab+robust_union" / "CIFAR10" / "cifar_funcs.py"
    wanted = (
        "norms norms_l1 norms_l2 pgd_linf pgd_l2 pgd_l1_topk msd_v0 pgd_worst_dir kthlargest l1_dir_topk proj_l1ball"
    )
    always = types.SimpleNamespace(randint=lambda low, high: 20)
    space = functions(path, *wanted.split(), "proj_simplex", random=always)
    sets, sizes, model = (L1(12, 20 / 3072), L2(0.5), Linf(0.03)), (1.0, 0.05, 0.003), net()
    theirs = X + space["msd_v0"](model, X, Y, num_iter=20, device="cpu")
    found = MSD(Union(sets), 20, sizes)(CE(model, Y), X, make_rng(0))
    yield "MSD", str(path), "points after 20 steps", apart((theirs, found))
    once = space["pgd_l1_topk"]
    space["pgd_l1_topk"] = lambda *args, **more: once(*args, **more, restarts=0)
    theirs = X + space["pgd_worst_dir"](model, X, Y, device="cpu")
    steps = zip(sets, (50, 50, 40), sizes, strict=True)
    found = Highest(tuple(PGD(s, k, size, CleanStart()) for s, k, size in steps))(CE(model, Y), X, make_rng(0))
    yield "MAX", str(path), "points", apart((theirs, found))


@row
def extreme_norms(folder: Path) -> Iterator[Row]:
    path = folder / "fra31+robust-finetuning" / "train.py"
    different = 0
    for seed in range(200):
        random.seed(seed)
        space = names(acc_norms=[[float(seed), 300.0], [120.0, 250.0]])
        passage(path, "if all(", "norm_curr = ", space)
        different += space["norm_curr"] != drawn([[300.0 - seed, 300.0], [130.0, 250.0]], [0.5, 0.5], seed)
    yield "E-AT", str(path), "norms drawn for 200 seeds that differ", different


@row
def sharpness(folder: Path) -> Iterator[Row]:
    path = folder / "davda54+sam" / "sam.py"
    kind = functions(path, "SAM")["SAM"]
    yield (
        "SAM",
        str(path),
        "weights after 5 steps",
        updated(
            SAM(0.05), lambda model: stepping(kind(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9))
        ),
    )
    path = folder / "SamsungLabs+ASAM" / "asam.py"
    adaptive = functions(path, "ASAM", defaultdict=defaultdict)["ASAM"]

    def two_steps(model: nn.Module) -> Callable[[Callable[[], Tensor]], None]:
        minimiser = adaptive(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, rho=0.5, eta=0.01)

        def take(loss: Callable[[], Tensor]) -> None:
            loss().backward()
            minimiser.ascent_step()
            loss().backward()
            minimiser.descent_step()

        return take

    yield "ASAM", str(path), "weights after 5 steps", updated(ASAM(0.5, 0.01), two_steps)


def stepping(optimizer: Any) -> Callable[[Callable[[], Tensor]], None]:
    def take(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()

        def closure() -> None:
            loss().backward()

        optimizer.step(closure)
        optimizer.zero_grad()

    return take


def updated(update: Any, make: Callable[[nn.Module], Callable[[Callable[[], Tensor]], None]]) -> float:
    """Train two equal models for 5 steps, and return how far apart their weights are."""
    here, there = net(1.0), net(1.0)
    optimizer, take = torch.optim.SGD(here.parameters(), lr=0.1, momentum=0.9), make(there)
    for _ in range(5):
        update(here, optimizer, lambda: {"ce": F.cross_entropy(here(X), Y)})
        take(lambda: F.cross_entropy(there(X), Y))
    return apart(*zip(here.parameters(), there.parameters(), strict=True))


@row
def random_weights(folder: Path) -> Iterator[Row]:
    path = folder / "nblt+RWP" / "train_rwp_parallel.py"
    model, kept = net(), net()
    torch.manual_seed(3)
    torch.manual_seed(int(torch.randint(2**62, ())))
    space = names(model=model, device="cpu", args=types.SimpleNamespace(gamma=0.01))
    passage(path, "noise = []", "for mp in model.parameters()", space)
    torch.manual_seed(3)
    noise = RWP(0.01)._noise(list(kept.parameters()))
    yield "RWP", str(path), "noise", apart(*zip(space["noise"], noise, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    folder = parser.parse_args().checkouts
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    print("| method | repository, file | what is compared | largest difference |\n|---|---|---|---:|")
    with old_torch():
        for compare in ROWS:
            for name, path, what, difference in compare(folder):
                owner, _, file = str(Path(path).relative_to(folder)).partition("/")
                print(f"| {name} | {owner.replace('+', '/')}, {file} | {what} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
