"""Everything that only a GPU can show, in two calls of a few minutes each, which write as they go.

    python benchmarks/gpu.py check --out results/gpu-check            # is it correct there? at most 240 s
    python benchmarks/gpu.py speed --out results/gpu-speed            # how fast is it? at most 420 s
    python benchmarks/gpu.py check --small --out results/tried        # does it run? on the CPU, in seconds

`check`: no devices mix; verdicts of the CPU and the GPU on the same images; what TF32 changes; a run that is killed
and resumed ends with the same bits, eager, compiled and with CUDA graphs; how often the processor waits; the peak of
memory against its prediction. `speed`: the ceilings of the card; a training step with PGD-10 of a PreActResNet-18 at
several batch sizes, as papers release it, by torchattacks, and by us, with the share of time in which the GPU works;
AutoAttack beside the published code; max-autotune last.

Each result is a file of its own, NAME.json, written at once: a call that is cut off loses only what was running. An
item that fails is written with its error, and none begins that may not end in time (`--seconds`). The images are made
(classes with a pattern of their own, and noise), so that no data set is needed. Compiled code goes to `inductor/` in
the output folder: bring it back, and the next call compiles nothing.
"""

import argparse
import copy
import json
import os
import platform
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import (
    AWP,
    FGSM,
    L1,
    L2,
    MART,
    PGD,
    TRADES,
    CrossEntropy,
    Linf,
    Method,
    OptimizerStep,
    RandomStart,
    State,
    TensorData,
    WhiteBox,
    evaluate,
    train_step,
)
from sparring.acceleration import AcceleratedCopy, OriginalModel, tune_process
from sparring.attacks import NFGSM
from sparring.bench import ATTACK, attack, ceilings, gflop_of_forward, standing, step
from sparring.core.modes import full_precision
from sparring.core.serialization import Build
from sparring.core.types import Batch, Progress
from sparring.data import NPZ
from sparring.evaluation import AutoAttack
from sparring.models import preact_resnet18, small_cnn
from sparring.objectives import MixUp, Sum, TemporalEnsembling
from sparring.objectives.grad_align import GradAlign
from sparring.recipes.cifar10 import cifar10_rn18_pgd
from sparring.runs.compute import ComputeSettings
from sparring.runs.fit import fit
from sparring.runs.memory import Trials
from sparring.runs.recipe import Recipe
from sparring.training import SGD
from sparring.training.hooks import Saving
from sparring.training.updates import MixedPrecision

BALL = Linf("8/255")


@dataclass
class Book:
    """Results in a folder, one file each, and the time that is left."""

    folder: Path
    seconds: float
    device: torch.device
    small: bool
    began: float

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def item(self, name: str, needs: float, find: Callable[[], Any]) -> Any:
        """Carry out one item, if `needs` seconds are left, and write what it finds, or why it found nothing."""
        began = time.monotonic()
        if self.left() < needs and not self.small:
            found: dict[str, Any] = {"left out": f"{self.left():.0f} s left, and it may need {needs:.0f}"}
        else:
            try:
                found = {"found": find()}
            except Exception as error:
                last = traceback.format_exc().splitlines()[-8:]
                found = {"failed": f"{type(error).__name__}: {error}", "where": last}
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        found["seconds"] = round(time.monotonic() - began, 2)
        (self.folder / f"{name}.json").write_text(json.dumps(found, indent=1, default=str))
        print(f"{name}: {json.dumps(found, default=str)[:300]}", flush=True)
        return found.get("found")


def images(count: int, seed: int = 0, side: int = 32) -> tuple[Tensor, Tensor]:
    """Return images `[N, 3, S, S]` in [0, 1] of ten classes, each a pattern with noise, and labels `[N]`."""
    patterns = torch.rand(10, 3, side, side, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(seed + 1)
    y = torch.arange(count) % 10
    x = (0.5 + 0.25 * (patterns[y] - 0.5) + 0.12 * torch.randn(count, 3, side, side, generator=rng)).clamp(0, 1)
    return x, y


def data_of(count: int, seed: int = 0) -> TensorData:
    x, y = images(count, seed)
    return TensorData((255 * x).round().to(torch.uint8), y, tuple("abcdefghij"))


def net(book: Book, width: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    wide = width or (1 / 16 if book.small else 1.0)
    return preact_resnet18(10, (3, 32, 32), width=wide).to(book.device)


def trained(book: Book, steps: int = 60) -> nn.Module:
    """Return a net of moderate size after a short adversarial training, in eval mode."""
    torch.manual_seed(0)
    model = small_cnn(10, (3, 32, 32), width=4 if book.small else 32, batch_norm=True).to(book.device).train()
    method = Method(PGD(BALL, 3), CrossEntropy())
    state = State.start(method, model, SGD(momentum=0.9).build(model))
    for group in state.optimizer.param_groups:
        group["lr"] = 0.02
    x, y = (each.to(book.device) for each in images(256, 7))
    for number in range(8 if book.small else steps):
        rows = torch.randperm(len(x))[:128].to(book.device)
        train_step(method, state, Batch(x[rows], y[rows], rows), Progress(number, 10, 100))
    return model.eval()


# -- is it correct there?

STEPS: dict[str, tuple[Any, Any, Any]] = {
    "pgd": (PGD(BALL, 3), CrossEntropy(), OptimizerStep()),
    "patience": (PGD(BALL, 3, patience=1), CrossEntropy(), OptimizerStep()),
    "fgsm-rs": (FGSM(BALL, "10/255", RandomStart()), CrossEntropy(), OptimizerStep()),
    "n-fgsm": (NFGSM(BALL), CrossEntropy(), OptimizerStep()),
    "l2": (PGD(L2(0.5), 3), CrossEntropy(), OptimizerStep()),
    "l1": (PGD(L1(12.0), 3), CrossEntropy(), OptimizerStep()),
    "trades": (PGD(BALL, 3), TRADES(), OptimizerStep()),
    "mart": (PGD(BALL, 3), MART(), OptimizerStep()),
    "awp": (PGD(BALL, 3), CrossEntropy(), AWP(0.01)),
    "ensembling": (PGD(BALL, 3), Sum((CrossEntropy(), TemporalEnsembling(1.0))), OptimizerStep()),
    "mixup": (PGD(BALL, 3), MixUp(), OptimizerStep()),
    "grad-align": (FGSM(BALL), Sum((CrossEntropy(), GradAlign(BALL))), OptimizerStep()),
    "bf16 update": (PGD(BALL, 3), CrossEntropy(), MixedPrecision(OptimizerStep())),
}
SMALL = ("pgd", "patience", "awp")


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """Collect what makes the processor wait for a GPU, as torch reports it."""
    seen: list[str] = []
    if device.type != "cuda":
        yield seen
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def steps_of(book: Book, name: str, backend: AcceleratedCopy, count: int = 4) -> dict[str, Any]:
    """Take a few steps of a method, count the waits of the last, and sum up the weights afterwards."""
    by, objective, update = STEPS[name]
    model, (x, y) = net(book, 1 / 16 if book.small else 1 / 4).train(), (t.to(book.device) for t in images(32))
    method = Method(by, objective)
    state = State.start(method, model, sgd(model), data_of(32).to(book.device))
    batch = Batch(x, y, torch.arange(len(x), device=book.device))
    for number in range(count - 1):
        train_step(method, state, batch, Progress(number, 10, 2), update, backend)
    with waits_counted(book.device) as waits:
        terms = train_step(method, state, batch, Progress(count - 1, 10, 2), update, backend)
    where = {str(each.device) for each in [*model.parameters(), *model.buffers(), *terms.values()]}
    weights = float(sum(p.detach().double().sum() for p in model.parameters()))
    return {"waits": len(waits), "at": waits[:6], "devices": sorted(where), "sum of weights": weights}


def captured_is_eager(book: Book, name: str) -> dict[str, Any]:
    eager = AcceleratedCopy("bf16" if book.device.type == "cuda" else "fp32", "off")
    recorded = AcceleratedCopy(eager.precision, "off", capture=True)
    sums = [steps_of(book, name, backend)["sum of weights"] for backend in (eager, recorded)]
    return {"equal": sums[0] == sums[1], "sums": sums}


def verdicts(book: Book, adversary: Any, count: int) -> dict[str, Any]:
    """Evaluate the same images by the same weights on the CPU and on the device."""
    model, data = trained(book), data_of(count)
    there = evaluate(model, data.to(book.device), {"a": adversary})
    here = evaluate(copy.deepcopy(model).to("cpu"), data, {"a": adversary})
    differing = int((there.robust["a"] != here.robust["a"]).sum())
    return {
        "examples": count,
        "differing": differing,
        "share equal": 1 - differing / count,
        "accuracy": [here.table()["a"].value, there.table()["a"].value],
        "notes": [list(here.notes), list(there.notes)],
    }


def tf32(book: Book) -> dict[str, Any]:
    """What TF32 changes in logits and input gradients of a net, relative to their size."""
    model, (x, y) = net(book).eval(), (t.to(book.device) for t in images(64))

    def answer() -> tuple[Tensor, Tensor]:
        z = x.clone().requires_grad_()
        logits = model(z)
        return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, y), z)[0]

    with full_precision():
        exact = answer()
    loose = answer()
    return {
        name: float((a - b).norm() / b.norm()) for name, a, b in zip(("logits", "gradients"), loose, exact, strict=True)
    }


def recipe_on(folder: str, book: Book, count: int, width: float) -> Recipe:
    """Return a recipe on made images, which are written to a folder."""
    import numpy as np

    (x, y), (x_test, y_test) = ((each.numpy() for each in images(n, seed)) for n, seed in ((count, 0), (40, 1)))
    path = Path(folder) / "made.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    base = replace(cifar10_rn18_pgd(), data=NPZ(str(path)), model=Build(preact_resnet18, width=width), epochs=1)
    return replace(base, method=Method(PGD(BALL, 2), CrossEntropy()), selection=PGD(BALL, 2), batch_size=48)


class Killed(BaseException):
    """Ends a training as a kill does: nothing is saved that was not saved before."""


def killed_and_resumed(book: Book, **how: Any) -> dict[str, Any]:
    """Whether a run that is killed and resumed ends with the bits of one that is not."""
    how = {"device": book.device.type, "deterministic": True, **how}

    def kill(news: Any) -> None:
        if news.progress.step == 5 and news.held_out is None:
            raise Killed

    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_on(folder, book, 480, 1 / 16 if book.small else 1 / 4)
        whole = fit(recipe, Path(folder) / "whole", **how)
        with suppress(Killed):
            fit(recipe, Path(folder) / "cut", **how, on_progress=kill, saving=Saving(steps=2))
        cut = fit(recipe, Path(folder) / "cut", **how)
        equal = cut.weights("last").read_bytes() == whole.weights("last").read_bytes()
        return {"equal": equal, "steps": cut.status()["step"], "how": cut.backend()}


def peaks(book: Book) -> dict[str, Any]:
    """The peak of memory of a step against its prediction from two small batches."""
    sizes = (96,) if book.small else (128, 512, 1024)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_on(folder, book, 2 * max(sizes), 1 / 16 if book.small else 1.0)
        trials = Trials(recipe, book.device, ComputeSettings("auto", "off"), Path())
        line, found = trials.predicted(), {size: trials.peak(size) for size in sizes}
    return {size: {"MiB": peak / 2**20, "predicted": line.peak(size) / peak} for size, peak in found.items()}


def check(book: Book) -> None:
    precision = "bf16" if book.device.type == "cuda" else "fp32"
    for name in SMALL if book.small else STEPS:
        book.item(f"step {name}", 5, partial(steps_of, book, name, AcceleratedCopy(precision, "off")))
    for name in SMALL[:1] if book.small else ("pgd", "trades", "n-fgsm", "l2"):
        book.item(f"captured {name}", 8, partial(captured_is_eager, book, name))
    count = 40 if book.small else 1000
    book.item("verdicts pgd", 30, partial(verdicts, book, WhiteBox(PGD(BALL, 10, patience=0)), count))
    book.item("tf32", 5, partial(tf32, book))
    book.item("resumed eager", 20, partial(killed_and_resumed, book))
    book.item("peaks", 20, partial(peaks, book))
    if not book.small:
        book.item("resumed captured", 20, partial(killed_and_resumed, book, capture=True))
        book.item("resumed compiled", 60, partial(killed_and_resumed, book, compile="on"))
        book.item("verdicts autoattack", 60, partial(verdicts, book, AutoAttack(BALL), 64))


# -- how fast is it?


def descend(
    model: nn.Module, z: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None
) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(z.device.type, dtype) if dtype else nullcontext():
        loss = F.cross_entropy(model(z), y)
    loss.backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def plain(model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """The loop as papers release it; with `dtype`, in channels-last order and under autocast."""
    optimizer, eps, size = sgd(model), ATTACK.threat.eps, ATTACK.step_size or 0.0
    if dtype is not None:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)

    def call() -> None:
        model.eval()
        z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(ATTACK.steps):
            z.requires_grad_()
            with torch.autocast(x.device.type, dtype) if dtype else nullcontext():
                loss = F.cross_entropy(model(z), y)
            (grad,) = torch.autograd.grad(loss, z)
            z = (x + (z.detach() + size * grad.sign() - x).clamp_(-eps, eps)).clamp_(0, 1)
        descend(model, z, y, optimizer, dtype)

    return call


def by_torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    import torchattacks

    optimizer = sgd(model)
    crafted = torchattacks.PGD(model, eps=ATTACK.threat.eps, alpha=ATTACK.step_size, steps=ATTACK.steps)

    def call() -> None:
        model.eval()
        descend(model, crafted(x, y), y, optimizer)

    return call


def ours(model: nn.Module, x: Tensor, y: Tensor, bf16_update: bool = False, **how: Any) -> Callable[[], None]:
    backend = AcceleratedCopy(**how)
    if not bf16_update:
        return step(model, x, y, backend)
    method, update = Method(ATTACK, CrossEntropy()), MixedPrecision(OptimizerStep())
    model.to(memory_format=torch.channels_last).train()
    state = State.start(method, model, sgd(model))
    index, number = torch.arange(len(x), device=x.device), iter(range(10**9))

    def call() -> None:
        train_step(method, state, Batch(x, y, index), Progress(next(number), 100, 100), update, backend)

    return call


def with_compiled_update(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    crafted, optimizer, compiled = attack(model, x, y, AcceleratedCopy("bf16", "off")), sgd(model), torch.compile(model)
    return lambda: descend(compiled, crafted(), y, optimizer)


VARIANTS: Mapping[str, tuple[float, Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]]] = {
    "plain": (8, plain),
    "plain, channels-last, autocast": (8, partial(plain, dtype=torch.bfloat16)),
    "torchattacks": (8, by_torchattacks),
    "ours, model itself": (8, partial(step, backend=OriginalModel())),
    "ours, eager": (8, partial(ours, precision="bf16", compile="off")),
    "ours, captured": (8, partial(ours, precision="bf16", compile="off", capture=True)),
    "ours, captured, bf16 update": (8, partial(ours, precision="bf16", compile="off", capture=True, bf16_update=True)),
    "ours, compiled": (60, partial(ours, precision="bf16", compile="on")),
    "ours, compiled, captured": (60, partial(ours, precision="bf16", compile="on", capture=True)),
    "compiled update": (60, with_compiled_update),
    "ours, max-autotune, captured": (120, partial(ours, precision="bf16", compile="max-autotune", capture=True)),
}
LAST = "ours, max-autotune, captured"
WITHOUT_COMPILER = [name for name in VARIANTS if "compiled" not in name and name != LAST]


def timed(book: Book, batch: int, name: str, most: float | None) -> dict[str, Any]:
    """Time one variant: seconds of each step, images a second, share of the ceiling, memory, what the GPU does."""
    model, (x, y) = net(book), (t.to(book.device) for t in images(batch))
    gflop = gflop_of_forward(model, x[:1]) * (2 * ATTACK.steps + 3)
    call, cuda = VARIANTS[name][1](model, x, y), book.device.type == "cuda"
    began = now(book.device)
    call()
    first = now(book.device) - began
    call()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < (2 if book.small else 20) and sum(seconds) < 4:
        began = now(book.device)
        call()
        seconds.append(now(book.device) - began)
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "first": first,
        "seconds": seconds,
        "images a second": batch / middle,
        "share of the bf16 matrix product": None if most is None else gflop * batch / middle / most,
        "peak MiB": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "robust": standing(model, attack(model.eval(), x, y, OriginalModel())(), y),
        **(profiled(call, middle) if cuda else {}),
    }


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def profiled(call: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Number of kernels of a step, their share of its time, and those that take longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as found:
        call()
        torch.cuda.synchronize()
    kernels = [e for e in found.events() if str(e.device_type).endswith("CUDA")]
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    longest = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:12]
    table = {e.key[:80]: round(e.self_device_time_total / 1e3, 3) for e in longest}
    return {"kernels": len(kernels), "share of time in which the GPU works": busy / seconds, "ms by kernel": table}


def autoattack_time(book: Book, batch: int | None, published: Path | None) -> dict[str, Any]:
    """AutoAttack of 512 images, by us and by the published code on the same net and images."""
    model, count = trained(book), 16 if book.small else 512
    x, y = (t.to(book.device) for t in images(count))
    began = now(book.device)
    adversary = WhiteBox(PGD(BALL, 5)) if book.small else AutoAttack(BALL)
    found = evaluate(model, (x, y), {"aa": adversary}, batch_size=batch)
    result: dict[str, Any] = {"ours": now(book.device) - began, "robust": found.table()["aa"].value}
    if published is not None:
        import sys

        sys.path.insert(0, str(published))
        from autoattack import AutoAttack as Published

        began = now(book.device)
        z = Published(model, norm="Linf", eps=BALL.eps, verbose=False, device=str(book.device)).run_standard_evaluation(
            x, y, bs=batch or 256
        )
        result["published"] = now(book.device) - began
        with full_precision(), torch.no_grad():
            theirs = (model(z).argmax(1) == y).cpu().numpy()
        result["share of equal verdicts"] = float((theirs == found.robust["aa"]).mean())
        result["times"] = result["published"] / result["ours"]
    return result


def speed(book: Book, published: Path | None) -> None:
    most = (book.item("ceilings", 10, partial(ceilings, book.device)) or {}).get("matrix product bf16")
    batches = (8,) if book.small else (128, 512, 1024)
    for batch in batches:
        for name in WITHOUT_COMPILER:
            book.item(f"step {batch} {name}", VARIANTS[name][0], partial(timed, book, batch, name, most))
    for batch in (256, 1024) if not book.small else (None,):
        given = published if batch == 256 else None
        book.item(f"autoattack {batch}", 60, partial(autoattack_time, book, batch, given))
    if book.small:
        return
    for batch in batches:
        for name in VARIANTS:
            if name not in WITHOUT_COMPILER and name != LAST:
                book.item(f"step {batch} {name}", VARIANTS[name][0], partial(timed, book, batch, name, most))
    book.item(f"step 512 {LAST}", VARIANTS[LAST][0], partial(timed, book, 512, LAST, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "speed"))
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--seconds", type=float, help="time for all items: 240 or 420 by default")
    parser.add_argument("--small", action="store_true", help="small nets and few images, on the CPU")
    parser.add_argument("--published", type=Path, help="folder that holds the package `autoattack`")
    args = parser.parse_args()
    device = torch.device("cpu" if args.small else "cuda")
    seconds = args.seconds or {"check": 240.0, "speed": 420.0}[args.what]
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((args.out / "inductor").resolve()))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tune_process()
    book = Book(args.out, seconds, device, args.small, time.monotonic())
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    book.item("machine", 0, lambda: {"device": card, **versions, "cores": os.cpu_count()})
    check(book) if args.what == "check" else speed(book, args.published)


if __name__ == "__main__":
    main()
