"""How fast the attack and a training step are on this machine: as they come, and written plainly in eager float32."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .acceleration import AcceleratedCopy, OriginalModel, computes_bf16, prefer_channels_last
from .attacks import PGD
from .attacks.losses import CE, misclassified
from .attacks.threats import Linf
from .core.modes import eval_mode, frozen, full_precision
from .core.rng import make_rng
from .core.types import AttackBackend, Batch, Progress, pixels
from .data import Digits
from .models import Normalize, preact_resnet18
from .objectives.cross_entropy import CrossEntropy
from .training.engine import Method, State, train_step
from .training.optimizers import SGD

ATTACK = PGD(Linf("8/255"), steps=10, step_size="2/255")


@dataclass(frozen=True, slots=True)
class Timing:
    """One side of one kind of work. `robust` is the accuracy under what it did, judged in float32 for all alike."""

    work: str
    side: str
    seconds: tuple[float, ...]
    robust: float
    images: int
    gflop: float
    """Arithmetic an image, multiplications and additions counted apart."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def gflops(self) -> float:
        """GFLOP a second, by the median."""
        return self.gflop * self.images / self.median

    def plain(self) -> dict[str, Any]:
        named = {"work": self.work, "side": self.side, "seconds": list(self.seconds), "median": self.median}
        return {**named, "robust": self.robust, "images": self.images, "gflops": self.gflops}


def bench(
    width: int = 16,
    batch: int = 128,
    rounds: int = 5,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """PGD-10 and a training step with it, of a PreActResNet-18 of `width` channels, side by side in turns.

    The net has been trained for 40 steps on digits that fill 32 pixels. A training step that is compared begins from
    its own copy of the net, and goes on with it.
    """
    where = torch.device(device)
    model, x, y = subject(width, batch, where)
    gflop = gflop_of_forward(model, x[:1])
    searches: dict[str, AttackBackend] = {"eager fp32": OriginalModel(), "fast": AcceleratedCopy()}
    if compiled:
        searches["fast, compiled"] = AcceleratedCopy("auto", "on")
    timings = []
    for work, make, passes in (("attack", attack, 2 * ATTACK.steps), ("training step", step, 2 * ATTACK.steps + 3)):
        nets = {name: copy.deepcopy(model) for name in searches}
        calls = {name: make(nets[name], x, y, backend) for name, backend in searches.items()}
        on_step(f"{work}: {', '.join(calls)}")
        taken, last = in_turns(calls, rounds, where)
        for name in searches:
            found = last[name]
            points = attack(nets[name].eval(), x, y, OriginalModel())() if found is None else found
            judged = standing(nets[name], points, y)
            timings.append(Timing(work, name, tuple(taken[name]), judged, batch, gflop * passes))
    return timings


def in_turns(
    calls: Mapping[str, Callable[[], Tensor | None]],
    rounds: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, Tensor | None]]:
    """Each call once untimed and `rounds` times on the clock, in turns that another one begins; and what came out."""
    names, last = list(calls), dict[str, Tensor | None]()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = _now(device)
            last[name] = calls[name]()
            if turn >= 0:
                taken[name].append(_now(device) - began)
    return taken, last


def subject(width: int, batch: int, device: torch.device, steps: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    """A net that has learned a little, and images `[B, 3, 32, 32]` with labels."""
    torch.manual_seed(0)
    data = Digits().load()[0]
    rows = torch.arange(batch) % len(data)
    every = F.interpolate(pixels(data[:].x), size=32, mode="bilinear").expand(-1, 3, -1, -1)
    x, y = every[rows].contiguous().to(device), data.y[rows].to(device)
    normalize = Normalize(every.mean((0, 2, 3)).tolist(), every.std((0, 2, 3)).tolist())
    model = preact_resnet18(10, (3, 32, 32), normalize, width / 64).to(device)
    learn = step(model, x, y, AcceleratedCopy("fp32", "off"), PGD(ATTACK.threat, steps=2, step_size="4/255"), lr=0.05)
    for _ in range(steps):
        learn()
    return model.eval(), x, y


def attack(model: nn.Module, x: Tensor, y: Tensor, backend: AttackBackend) -> Callable[[], Tensor]:
    rng = make_rng(0, x.device)

    def call() -> Tensor:
        with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
            return ATTACK(CE(attacked.__call__, y), x, rng)

    return call


def step(
    model: nn.Module, x: Tensor, y: Tensor, backend: AttackBackend, by: PGD = ATTACK, lr: float = 0.01
) -> Callable[[], None]:
    """A step that trains `model` itself; `OriginalModel` also keeps its weights in the usual order in memory."""
    if not isinstance(backend, OriginalModel):
        prefer_channels_last(model, x[:8])
    method = Method(by, CrossEntropy())
    optimizer = SGD().build(model.train())
    state, index = State.start(method, model, optimizer), torch.arange(len(x), device=x.device)
    for group in optimizer.param_groups:
        group["lr"] = lr

    def call() -> None:
        train_step(method, state, Batch(x, y, index), Progress(state.step, 10**6, 1), backend=backend)
        state.step += 1

    return call


@torch.no_grad()
def standing(model: nn.Module, z: Tensor, y: Tensor) -> float:
    """The share that the model itself gets right in float32."""
    with full_precision(), eval_mode(model):
        return 1 - float(misclassified(model(z), y).float().mean())


def gflop_of_forward(model: nn.Module, image: Tensor) -> float:
    """Of one image; a pass back to the input takes about as much, one to the weights too twice as much."""
    with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops()) / 1e9


def ceilings(device: torch.device | str = "cpu", rounds: int = 8) -> dict[str, float]:
    """The most GFLOP/s of a convolution and of a matrix product over a few shapes, in float32 and, where the processor
    computes in it, in bf16.
    """
    where, found = torch.device(device), {}
    images = 64 if where.type == "cpu" else 512
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))[: 1 + computes_bf16(where)]:
        best = 0.0
        for channels, side in ((64, 32), (128, 16), (256, 8)):
            x = torch.randn(images, channels, side, side, device=where, dtype=dtype)
            w = torch.randn(channels, channels, 3, 3, device=where, dtype=dtype)
            x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
            flop = 2 * images * channels * channels * 9 * side * side
            best = max(best, flop / _least(partial(F.conv2d, x, w, padding=1), rounds, where))
        found[f"convolution {name}"] = best / 1e9
        size = 2048 if where.type == "cpu" else 8192
        a = torch.randn(size, size, device=where, dtype=dtype)
        found[f"matrix product {name}"] = 2 * size**3 / _least(partial(torch.mm, a, a), rounds, where) / 1e9
    return found


def _least(call: Callable[[], Tensor], rounds: int, device: torch.device) -> float:
    call()
    taken = []
    for _ in range(rounds):
        began = _now(device)
        call()
        taken.append(_now(device) - began)
    return min(taken)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
