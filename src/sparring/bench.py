"""Speed of the attack and of a training step on this machine, accelerated and in plain eager float32."""

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
    """Timings of one kind of work on one side of the comparison.

    Args:
        work: kind of work, the attack or a training step.
        side: side of the comparison, such as "eager fp32" or "fast".
        seconds: seconds of each round.
        robust: robust accuracy after the work, 0 to 1, evaluated in float32 on every side.
        images: number of images per round.
        gflop: arithmetic per image in GFLOP; multiplications and additions count separately.
    """

    work: str
    side: str
    seconds: tuple[float, ...]
    robust: float
    images: int
    gflop: float

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def gflops(self) -> float:
        """GFLOP per second, by the median."""
        return self.gflop * self.images / self.median

    def plain(self) -> dict[str, Any]:
        """Return the timings in plain types, for JSON."""
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
    """Time PGD-10 and a training step with it, on a PreActResNet-18, with the sides taking turns.

    The net is trained for 40 steps before, on digits resized to 32x32 pixels. The training steps of each side continue
    on a copy of the net of their own.

    Args:
        width: number of channels of the first stage.
        batch: number of images in a batch.
        rounds: number of timed rounds per side.
        device: device of the net.
        compiled: add a side whose accelerated copy is compiled.
        on_step: receives a line of text before each kind of work.

    Returns:
        One timing per kind of work and side.
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
    """Run each call once untimed and `rounds` times timed, in turns; the calls take turns to be first.

    Args:
        calls: functions to time, by name.
        rounds: number of timed rounds.
        device: device that is synchronised before the time is read.

    Returns:
        The seconds of the timed rounds and the last result, each by name.
    """
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
    """Return a net after a short adversarial training, and a batch of images with labels.

    Args:
        width: number of channels of the first stage.
        batch: number of images B.
        device: device of the net and of the images.
        steps: number of training steps.

    Returns:
        The net in eval mode, images `[B, 3, 32, 32]` in [0, 1] and labels `[B]`.
    """
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
    """Return a function that runs `ATTACK` on a batch.

    Args:
        model: model to attack.
        x: images `[B, C, H, W]` in [0, 1].
        y: labels `[B]`.
        backend: gives the model that the attack runs on.

    Returns:
        A function that returns the adversarial examples `[B, C, H, W]`.
    """
    rng = make_rng(0, x.device)

    def call() -> Tensor:
        with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
            return ATTACK(CE(attacked.__call__, y), x, rng)

    return call


def step(
    model: nn.Module, x: Tensor, y: Tensor, backend: AttackBackend, by: PGD = ATTACK, lr: float = 0.01
) -> Callable[[], None]:
    """Return a function that takes one training step on `model` itself.

    Args:
        model: model to train. Its weights keep their memory layout if `backend` is an `OriginalModel`; otherwise they
            are put in channels-last order, if the model runs with it.
        x: images `[B, C, H, W]` in [0, 1].
        y: labels `[B]`.
        backend: gives the model that the attack runs on.
        by: attack of the training step.
        lr: learning rate.

    Returns:
        A function that takes the next step each time it is called.
    """
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
    """Return the accuracy of the model itself in float32.

    Args:
        model: model to evaluate.
        z: images `[B, C, H, W]` in [0, 1].
        y: labels `[B]`.

    Returns:
        The accuracy, 0 to 1.
    """
    with full_precision(), eval_mode(model):
        return 1 - float(misclassified(model(z), y).float().mean())


def gflop_of_forward(model: nn.Module, image: Tensor) -> float:
    """Return the arithmetic of one forward pass.

    A backward pass to the input takes about as much, one to the input and the weights twice as much.

    Args:
        model: model to run, in eval mode.
        image: one image `[1, C, H, W]`.

    Returns:
        GFLOP per image.
    """
    with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops()) / 1e9


def ceilings(device: torch.device | str = "cpu", rounds: int = 8) -> dict[str, float]:
    """Measure the highest speed of a convolution and of a matrix product on this machine, over a few shapes.

    Args:
        device: device to measure.
        rounds: number of timed calls per shape, of which the fastest counts.

    Returns:
        GFLOP per second by name, in float32 and, if the processor computes in bf16, in bf16.
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
