"""PGD-10, and a training step with it, in this library and in others: same net, same images; seconds and effect.

The others are not part of this project: `peers.txt` says how to install them. MAIR and fast_adversarial are on no
index: check both out into one folder and name it with --peers.

    python benchmarks/peers.py attack --width 16 --mode own --peers DIR --out results
    python benchmarks/peers.py train --width 16 --mode shared --peers DIR --out results --only mair,plain,ours
    python benchmarks/peers.py table results

`--mode own`: each library in new processes of its own, as it comes, so that our tuning of the allocator serves us only.
`--mode shared`: all in one process, tuned for all. The libraries take turns in both. On the CPU only.
NAME-best is the library as somebody who knows it would call it: channels-last, weights frozen while they are only
attacked, and its own options that save time at equal effect; NAME-autocast adds bf16 around the attack. A library that
is missing or fails is left out with a line that says why. An own `--only` run needs a `--tag`, or it replaces the file.
"""

import argparse
import copy
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparring import CE, PGD, Batch, CrossEntropy, Linf, Method, Progress, State, eval_mode, frozen, train_step
from sparring.acceleration import AcceleratedCopy, OriginalModel, prefer_channels_last, tune_process
from sparring.core.rng import make_rng
from sparring.core.types import AttackBackend, TensorData, pixels
from sparring.data import FashionMNIST
from sparring.models import preact_resnet18
from sparring.training import SGD

EPS, SIZE, STEPS, LR, MOMENTUM = 8 / 255, 2 / 255, 10, 0.01, 0.9
TORCH = ("torch", "torchvision", "numpy", "sparring")
PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "adv-lib", "robustness")
Call = Callable[[Tensor, Tensor], Any]  # an attack gives its points; a step nothing, or its seconds if it knows better
Make = Callable[[nn.Module], Call]


def best(model: nn.Module, make: Make, freeze: bool = True, autocast: bool = False) -> Call:
    """What a user can do around a library. Frozen weights matter to those that call `backward`."""
    call = make(model.requires_grad_(not freeze).to(memory_format=torch.channels_last))

    def run(x: Tensor, y: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return call(x.contiguous(memory_format=torch.channels_last), y)

    return run


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def no_cuda() -> None:
    """They write `.cuda()` everywhere, robustness and fast_adversarial: here it leaves things where they are."""
    for kind in (Tensor, nn.Module):
        kind.cuda = lambda self, *args, **options: self


def torchattacks(model: nn.Module) -> Call:
    import torchattacks

    return torchattacks.PGD(model, eps=EPS, alpha=SIZE, steps=STEPS, random_start=True)


def foolbox(model: nn.Module, run: bool = False) -> Call:
    """`run` leaves out the forward pass that says who was fooled."""
    import foolbox

    seen = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack, criterion = foolbox.attacks.LinfPGD(abs_stepsize=SIZE, steps=STEPS), foolbox.criteria.Misclassification
    if run:
        return lambda x, y: attack.run(seen, x, criterion(y), epsilon=EPS)
    return lambda x, y: attack(seen, x, y, epsilons=EPS)[1]


def art_classifier(model: nn.Module) -> Any:
    from art.estimators.classification import PyTorchClassifier

    options = {"optimizer": sgd(model), "clip_values": (0.0, 1.0), "device_type": "cpu"}
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, **options)


def art(model: nn.Module) -> Call:
    """All images in one batch: its default of 32 would be another measurement."""
    from art.attacks.evasion import ProjectedGradientDescent

    options = {"eps_step": SIZE, "max_iter": STEPS, "num_random_init": 1, "verbose": False}
    attack = ProjectedGradientDescent(art_classifier(model), norm=np.inf, eps=EPS, **options)

    def call(x: Tensor, y: Tensor) -> Tensor:
        attack.set_params(batch_size=len(x))
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return call


def adv_lib(model: nn.Module) -> Call:
    """It returns the last point that fooled the model, and the clean image where none did."""
    from adv_lib.attacks import pgd_linf

    return lambda x, y: pgd_linf(model, x, y, ε=EPS, steps=STEPS, absolute_step_size=SIZE)


def mair(model: nn.Module) -> Call:
    from mair import RobModel
    from mair.attacks import PGD as Theirs  # noqa: N811

    return Theirs(RobModel(model, n_classes=10), eps=EPS, alpha=SIZE, steps=STEPS, random_start=True)


def robustness_model(model: nn.Module) -> Any:
    """It passes options for its own models to every model; ours has none, so they are dropped on the way."""
    from robustness.attacker import AttackerModel

    class Net(nn.Sequential):
        def forward(self, x: Tensor, **options: bool) -> Tensor:
            return super().forward(x)

    no_cuda()
    return AttackerModel(Net(model), types.SimpleNamespace(mean=torch.zeros(3), std=torch.ones(3)))


def robustness(model: nn.Module, last: bool = False) -> Call:
    """By default the best point, and a forward pass of it; `last` is the last point, and no pass after it.

    It clamps inside what it differentiates, and since torch 2.14 the gradient of clamp is 0 at its very bounds: black
    pixels that the random start has clipped stay black, and the attack is weaker than the others'.
    """
    seen = robustness_model(model).eval()
    options = {"constraint": "inf", "eps": EPS, "step_size": SIZE, "iterations": STEPS, "random_start": True}
    if last:
        return lambda x, y: seen.attacker(x, y, use_best=False, **options)
    return lambda x, y: seen(x, y, make_adv=True, **options)[1]


def plain(model: nn.Module) -> Call:
    """PGD as one would write it, with autograd.grad."""

    def call(x: Tensor, y: Tensor) -> Tensor:
        z = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp_(0, 1)
        for _ in range(STEPS):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
            z = (x + (z.detach() + SIZE * grad.sign() - x).clamp_(-EPS, EPS)).clamp_(0, 1)
        return z

    return call


def ours(model: nn.Module, backend: AttackBackend) -> Call:
    """With `OriginalModel`, fp32 on the model itself. Making the copy that is searched on is part of the time."""
    attack, rng = PGD(Linf(EPS), steps=STEPS, step_size=SIZE), make_rng(torch.initial_seed())

    def call(x: Tensor, y: Tensor) -> Tensor:
        with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
            return attack(CE(attacked.__call__, y), x, rng)

    return call


def ours_step(model: nn.Module, backend: AttackBackend, steps: int = STEPS, size: float = SIZE, lr: float = LR) -> Call:
    method = Method(PGD(Linf(EPS), steps=steps, step_size=size), CrossEntropy())
    if not isinstance(backend, OriginalModel):  # as `fit` does
        prefer_channels_last(model, torch.rand(8, 3, 32, 32))
    optimizer = SGD(MOMENTUM, weight_decay=0.0).build(model.train())
    for group in optimizer.param_groups:
        group["lr"] = lr
    state = State.start(method, model, optimizer, seed=torch.initial_seed())

    def step(x: Tensor, y: Tensor) -> None:
        train_step(method, state, Batch(x, y, torch.arange(len(x))), Progress(state.step, 1000, 1), backend=backend)
        state.step += 1

    return step


def own_loop(model: nn.Module, make: Make, autocast: bool = False) -> Call:
    """A step of one's own around an attack in eval mode; `autocast` is for the attack only, as in our fast path."""
    optimizer, attack = sgd(model), make(model)

    def step(x: Tensor, y: Tensor) -> None:
        model.eval()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            x_adv = attack(x, y)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return step


def mair_step(model: nn.Module) -> Call:
    """Without records and files: with them it evaluates after each epoch, which here is a step."""
    from mair import AT, RobModel

    trainer = AT(RobModel(model, n_classes=10), eps=EPS, alpha=SIZE, steps=STEPS)
    trainer.setup(optimizer=f"SGD(lr={LR}, momentum={MOMENTUM})")
    return lambda x, y: trainer.fit([(x, y)], n_epochs=1, record_type=None, save_type=None)


def robustness_step(model: nn.Module, last: bool = False) -> Call:
    """Its own epoch, over one batch."""
    from robustness.train import _model_loop

    args = types.SimpleNamespace(constraint="inf", eps=EPS, attack_lr=SIZE, attack_steps=STEPS, random_start=True)
    args.use_best, args.random_restarts, args.mixed_precision, args.custom_eps_multiplier = not last, 0, False, None
    seen, optimizer = robustness_model(model), sgd(model)
    return lambda x, y: _model_loop(args, "train", [(x, y)], seen, optimizer, 0, True, None) and None


def art_step(model: nn.Module, one_batch: bool = False) -> Call:
    """By default its attack sees 32 images at a time, whatever the batch of the update."""
    from art.defences.trainer import AdversarialTrainerMadryPGD

    trainer = AdversarialTrainerMadryPGD(art_classifier(model), eps=EPS, eps_step=SIZE, max_iter=STEPS)

    def step(x: Tensor, y: Tensor) -> None:
        if one_batch:
            trainer.attack.set_params(batch_size=len(x))
        trainer.fit(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()], batch_size=len(x), nb_epochs=1)

    return step


def fast_adversarial_step(model: nn.Module) -> Call:
    """The released `main` of CIFAR10/train_pgd.py over one batch. It attacks in training mode.

    Only the body of its loop is timed, from one batch to the next. Its apex becomes nothing (fp32), its net ours, which
    normalises itself (so its mean is 0 and its deviation 1); saving and the evaluation at the end are left out. As each
    step is a call of `main`, the first optimizer is kept, for its momentum.
    """
    no_cuda()
    apex: Any = types.ModuleType("apex")
    apex.amp = amp = types.ModuleType("apex.amp")
    kept: dict[str, Any] = {}
    amp.initialize = lambda net, optimizer, **options: (net, kept.setdefault("optimizer", optimizer))
    amp.scale_loss = lambda loss, optimizer: nullcontext(loss)
    sys.modules |= {"apex": apex, "apex.amp": amp}
    try:
        import train_pgd as theirs
    finally:
        del sys.modules["apex"], sys.modules["apex.amp"]
    one, batches = torch.ones(3, 1, 1), Timed()
    replaced = {"std": one, "lower_limit": 0 * one, "upper_limit": one, "PreActResNet18": lambda: model}
    replaced |= dict.fromkeys(("evaluate_pgd", "evaluate_standard"), lambda *args: (0.0, 0.0))
    replaced |= {"get_loaders": lambda *args: (batches, [])}
    options = {"attack-iters": STEPS, "epochs": 1, "lr-min": LR, "lr-max": LR + 1e-9, "weight-decay": 0}
    argv = ["train_pgd.py", f"--out-dir={tempfile.mkdtemp()}", *(f"--{k}={value}" for k, value in options.items())]

    def step(x: Tensor, y: Tensor) -> float:
        batches[:] = [(x, y)]
        quick = patch.multiple(theirs, **replaced), patch.object(torch, "save"), patch.object(sys, "argv", argv)
        with quick[0], quick[1], quick[2]:
            theirs.main()
        return batches.seconds

    return step


class Timed(list[tuple[Tensor, Tensor]]):
    """One batch, and the seconds until the next one is asked for."""

    seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        started = time.perf_counter()
        yield self[0]
        self.seconds = time.perf_counter() - started


ATTACKS: dict[str, Make] = {
    "torchattacks": torchattacks,
    "torchattacks-best": partial(best, make=torchattacks),
    "torchattacks-autocast": partial(best, make=torchattacks, autocast=True),
    "foolbox": foolbox,
    "foolbox-best": partial(best, make=partial(foolbox, run=True)),
    "art": art,
    "art-best": partial(best, make=art),
    "adv_lib": adv_lib,
    "adv_lib-best": partial(best, make=adv_lib),
    "mair": mair,
    "mair-best": partial(best, make=mair),
    "robustness": robustness,
    "robustness-best": partial(best, make=partial(robustness, last=True)),
    "plain": plain,
    "ours-eager-fp32": partial(ours, backend=OriginalModel()),
    "ours": partial(ours, backend=AcceleratedCopy("auto", "off")),
    "ours-compiled": partial(ours, backend=AcceleratedCopy("auto", "on")),
}
TRAINING: dict[str, Make] = {
    "mair": mair_step,
    "mair-best": partial(best, make=mair_step, freeze=False),
    "robustness": robustness_step,
    "robustness-best": partial(best, make=partial(robustness_step, last=True), freeze=False),
    "art": art_step,
    "art-best": partial(best, make=partial(art_step, one_batch=True), freeze=False),
    "fast_adversarial": fast_adversarial_step,
    "torchattacks": partial(own_loop, make=torchattacks),
    "plain": partial(own_loop, make=plain),
    "plain-autocast": partial(best, make=partial(own_loop, make=plain, autocast=True), freeze=False),
    "ours-eager-fp32": partial(ours_step, backend=OriginalModel()),
    "ours": partial(ours_step, backend=AcceleratedCopy("auto", "off")),
    "ours-compiled": partial(ours_step, backend=AcceleratedCopy("auto", "on")),
}
SIDES = {"attack": ATTACKS, "train": TRAINING}


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (ART draws from it)


def images(data: TensorData, rows: slice) -> tuple[Tensor, Tensor]:
    part = data[rows]
    return F.pad(pixels(part.x), (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), part.y


def net(args: argparse.Namespace, weights: Path | None = None) -> nn.Module:
    model = preact_resnet18(num_classes=10, shape=(3, 32, 32), width=args.width / 64)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def weights_of(args: argparse.Namespace) -> Path:
    """The file with which every side starts: given, or made once by a little PGD-3 training of ours."""
    if args.weights:
        return args.weights
    steps = args.train_steps or (60 if args.width < 64 else 30)
    path = args.out / f"peers-w{args.width}-{steps}.safetensors"
    if not path.exists():
        seeded(0)
        model, train = net(args), FashionMNIST().load()[0]
        step = ours_step(model, AcceleratedCopy("fp32", "off"), steps=3, size=4 / 255, lr=0.02)
        for start in range(0, 64 * steps, 64):
            step(*images(train, slice(start, start + 64)))
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    return path


class Bench:
    """The images, the judge (fp32, eager, untouched), and the sides that were built."""

    def __init__(self, args: argparse.Namespace, weights: Path) -> None:
        self.args, self.weights, self.makers = args, weights, SIDES[args.what]
        self.x, self.y = images(FashionMNIST().load()[1], slice(args.batch))
        self.judge, self.sides = net(args, weights), {}

    def build(self, name: str) -> "Bench":
        model = net(self.args, self.weights)
        self.sides[name] = (model, self.makers[name](model))
        return self

    def timed(self, name: str) -> tuple[float, Any]:
        """Seconds and what came back. Progress bars go nowhere: stdout is for JSON."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            started = time.perf_counter()
            found = self.sides[name][1](self.x, self.y)
            seconds = time.perf_counter() - started
        return (found, None) if isinstance(found, float) else (seconds, found)

    def effect(self, name: str, found: Tensor | None) -> dict[str, Any]:
        """Of an attack, what the judge makes of its points; of training, what is left of the net under our fp32 PGD."""
        judge = self.judge
        if found is None:
            judge = copy.deepcopy(self.sides[name][0]).to(memory_format=torch.contiguous_format).requires_grad_(True)
            seeded(1)
            found = ours(judge, OriginalModel())(self.x, self.y)
        found = found.detach().contiguous()
        largest = float((found - self.x).abs().max())
        inside = bool(((found >= 0) & (found <= 1)).all())
        with eval_mode(judge), torch.no_grad():
            logits = judge(found)
        return {
            "robust": float((logits.argmax(1) == self.y).float().mean()),
            "loss": float(F.cross_entropy(logits, self.y)),
            "largest": largest * 255,
            "valid": inside and largest <= EPS + 1e-5,
        }


def peak_mb() -> float:
    """The largest resident set of this process. ru_maxrss is the second choice: a child inherits it from its parent."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [float(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def worker(args: argparse.Namespace) -> None:
    """One library in a process of its own; the last line is JSON."""
    found: dict[str, Any] = {"tuned": args.name.startswith("ours") and tune_process().allocator == "kept"}
    seeded(args.seed)
    bench = Bench(args, args.weights).build(args.name)
    found["rss_before"] = peak_mb()
    found["first"] = bench.timed(args.name)[0]
    taken = [bench.timed(args.name) for _ in range(args.calls)]
    found["rss_mb"] = peak_mb()
    print(json.dumps({**found, "seconds": [s for s, _ in taken], **bench.effect(args.name, taken[-1][1])}))


def in_own_process(args: argparse.Namespace, weights: Path, name: str, turn: int) -> dict[str, Any]:
    options = {k: getattr(args, k) for k in ("width", "batch", "calls", "threads", "peers") if getattr(args, k)}
    flags = [f"--{option}={value}" for option, value in {**options, "weights": weights, "seed": turn}.items()]
    command = [sys.executable, __file__, "worker", args.what, name, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def in_this_process(bench: Bench, name: str, last: bool) -> dict[str, Any]:
    """A side's first turn has a warm-up before it. A trained net is attacked once, at the end, as that takes long."""
    first = {} if name in bench.sides else {"first": bench.build(name).timed(name)[0]}
    seconds, points = bench.timed(name)
    return {**first, "seconds": [seconds], **(bench.effect(name, points) if last or points is not None else {})}


def machine(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.processor())
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "date": date, "load": os.getloadavg()}


def versions() -> dict[str, str]:
    found = {d.metadata["Name"].lower(): d.version for d in distributions()}
    return {"python": platform.python_version(), **{name: found[name] for name in (*TORCH, *PEERS) if name in found}}


def run(args: argparse.Namespace) -> None:
    """All rounds; round i starts with side i. The file is written after each, so that a killed run is not lost."""
    args.out.mkdir(parents=True, exist_ok=True)
    weights, known = weights_of(args), list(SIDES[args.what])
    names = args.only.split(",") if args.only else known
    if unknown := set(names) - set(known):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    held: dict[str, Any] = {k: getattr(args, k) for k in ("what", "mode", "width", "batch", "calls", "rounds")}
    held |= {"weights": weights.name, "machine": machine(args.threads), "versions": versions()}
    held |= {
        "errors": {},
        "found": {name: [] for name in names},
        "tuned": args.mode == "shared" and tune_process().allocator == "kept",
    }
    bench = Bench(args, weights) if args.mode == "shared" else None
    path = args.out / f"peers-{args.what}-{args.mode}-w{args.width}-b{args.batch}{args.tag and '-' + args.tag}.json"
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in held["errors"]:
                continue
            seeded(turn)
            last = turn == args.rounds - 1
            try:
                new = in_this_process(bench, name, last) if bench else in_own_process(args, weights, name, turn)
            except Exception as error:
                held["errors"][name] = f"{type(error).__name__}: {error}"
                print(f"{name}: left out: {held['errors'][name]}", flush=True)
                continue
            held["found"][name].append(new)
            print(turn, name, json.dumps(new), flush=True)
        path.write_text(json.dumps(held, indent=1))


def table(args: argparse.Namespace) -> None:
    """Markdown. The ratios are to `ours` of the same file: how many times as long a library takes."""
    for path in sorted(args.out.glob("peers-*.json")):
        held = json.loads(path.read_text())
        found, where = held["found"], held["machine"]
        taken = {name: [s for new in turns for s in new["seconds"]] for name, turns in found.items()}
        base = taken.get("ours")
        tuned = held["tuned"] or any(new.get("tuned") for turns in found.values() for new in turns)
        print(
            f"\n{held['what']}, {held['mode']}, width {held['width']}, batch {held['batch']}, {held['rounds']} rounds"
        )
        print(f"{where['cpu']}, {where['threads']} threads, torch {held['versions']['torch']}, {where['date']}")
        print("" if tuned else "\nno process was tuned")
        columns = [
            "library",
            "min s",
            "median s",
            "max s",
            "median/ours",
            "min/ours",
            "robust",
            "loss",
            "max 1/255",
            "MB",
        ]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name, seconds in taken.items():
            if seconds:
                ratios = [f"{f(seconds) / f(base):.2f}" if base else "" for f in (median, min)]
                times = [f"{f(seconds):.3f}" for f in (min, median, max)]
                print(f"| {' | '.join([name, *times, *ratios, *effects(found[name])])} |")
        for name, error in held["errors"].items():
            print(f"\n{name}: left out: {error}")


def effects(turns: list[dict[str, Any]]) -> list[str]:
    memory = f"{max(new['rss_mb'] for new in turns):.0f}" if "rss_mb" in turns[0] else ""
    judged = [new for new in turns if "robust" in new]
    if not judged:
        return ["", "", "", memory]
    largest = f"{max(new['largest'] for new in judged):.3f}" + ("" if all(n["valid"] for n in judged) else " INVALID")
    return [f"{fmean(n[what] for n in judged):.4f}" for what in ("robust", "loss")] + [largest, memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{attack,train,table}", dest="what")
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--width", type=int, default=16, help="channels of the first stage; 64 is the usual net")
    both.add_argument("--batch", type=int, default=128)
    both.add_argument("--calls", type=int, default=2, help="timed calls a process (--mode own), after one warm-up")
    both.add_argument("--threads", type=int, default=os.cpu_count())
    both.add_argument("--weights", type=Path, help="safetensors; without it a little training makes one in --out")
    both.add_argument("--peers", type=Path, help="the folder with MAIR and fast_adversarial")
    for what, sides in SIDES.items():
        one = commands.add_parser(what, parents=[both])
        one.add_argument("--mode", choices=["own", "shared"], default="own")
        one.add_argument("--rounds", type=int, default=5)
        one.add_argument("--only", help=f"some of {','.join(sides)}")
        one.add_argument("--train-steps", type=int, help="of that training: 60, or 30 from width 64 on")
        one.add_argument("--out", type=Path, default=Path("results"))
        one.add_argument("--tag", default="", help="at the end of the file's name")
        one.set_defaults(do=run)
    hidden = commands.add_parser("worker", parents=[both])
    hidden.add_argument("what", choices=SIDES)
    hidden.add_argument("name")
    hidden.add_argument("--seed", type=int, default=0)
    hidden.set_defaults(do=worker)
    last = commands.add_parser("table")
    last.add_argument("out", type=Path)
    last.set_defaults(do=table, threads=1, peers=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peers:
        sys.path += [str(args.peers / folder) for folder in ("MAIR", "robustness", "fast_adversarial/CIFAR10")]
    args.do(args)


if __name__ == "__main__":
    main()
