"""Pieces of the fast path, each beside what it stands for: medians of milliseconds, in turns.

    python benchmarks/pieces.py                        # batch norm, convolutions, Square
    python benchmarks/pieces.py filled                 # an evaluation, compiled: batches filled from one and from four

Nets are not trained, except in `filled`. The CPU only, tuned; the figures are in docs/speed.md and docs/log.md.
"""

import argparse
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import PGD, Linf, Square, WhiteBox, make_rng
from sparring.acceleration import AcceleratedCopy, computes_bf16, tune_process
from sparring.acceleration.body_copy import Shadow, sites
from sparring.acceleration.compiled import Compiled
from sparring.acceleration.convolution import worth
from sparring.acceleration.normalisation import FrozenNorm, folded
from sparring.attacks import CE
from sparring.attacks.gradients import value_and_grad
from sparring.bench import in_turns, subject
from sparring.core.types import LossOutput, TensorData, pixels
from sparring.data import Digits
from sparring.evaluation import evaluate
from sparring.models import preact_resnet18, small_cnn

CPU = torch.device("cpu")
Call = Callable[[], object]


def told(name: str, calls: Mapping[str, Call], rounds: int) -> None:
    taken, _ = in_turns(calls, rounds, CPU)
    middle = {side: 1e3 * sorted(seconds)[len(seconds) // 2] for side, seconds in taken.items()}
    print(f"{name}: " + ", ".join(f"{side} {ms:.2f} ms" for side, ms in middle.items()), flush=True)


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=make_rng(0)).to(dtype).contiguous(memory_format=torch.channels_last)


def batch_norm(rounds: int) -> None:
    """With a ReLU, there and back."""
    for dtype in (torch.float32, torch.bfloat16)[: 1 + computes_bf16(CPU)]:
        for shape in ((32, 8, 32, 32), (32, 16, 32, 32), (128, 16, 32, 32), (128, 32, 16, 16), (128, 128, 4, 4)):
            norm = nn.BatchNorm2d(shape[1]).eval().requires_grad_(False)
            frozen = FrozenNorm(norm, True, dtype)
            ((scale, shift),) = folded([norm])
            frozen.scale.copy_(scale)
            frozen.shift.copy_(shift)
            x, back = channels_last(*shape, dtype=dtype).requires_grad_(), channels_last(*shape, dtype=dtype)
            calls = {
                "torch": lambda x=x, norm=norm, back=back: torch.autograd.grad(norm(x).relu(), x, back),
                "ours": lambda x=x, frozen=frozen, back=back: torch.autograd.grad(frozen(x), x, back),
            }
            told(f"batch norm and ReLU, {dtype}, {shape}", calls, 3 * rounds)


def convolutions(rounds: int) -> None:
    """The gradient of images: differentiated by ours wherever there is something to save, by torch, and as it comes."""
    nets = {
        "small_cnn(8)": (small_cnn(width=8), (1, 28, 28), (16, 64)),
        "small_cnn(32)": (small_cnn(), (1, 28, 28), (32, 256)),
        "preact_resnet18, width 8": (preact_resnet18(width=1 / 8), (3, 32, 32), (32, 128)),
    }
    for name, (model, shape, batches) in nets.items():
        net = Shadow(model.eval(), torch.float32, sites(model)).net
        for batch in batches:
            loss, x = CE(net.__call__, torch.arange(batch) % 10), torch.rand(batch, *shape)

            def at(least: int | None, loss: CE = loss, x: Tensor = x) -> Call:
                def call() -> None:
                    if least is None:
                        value_and_grad(loss, x)
                    else:
                        with worth(least):
                            value_and_grad(loss, x)

                return call

            told(f"{name}, {batch} images", {"ours": at(0), "torch": at(2**60), "as it comes": at(None)}, 2 * rounds)


class Nothing:
    """A loss that costs nothing, and is never raised."""

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput(x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool))

    def __getitem__(self, rows: Tensor) -> "Nothing":
        return self


def square(rounds: int) -> None:
    x, attack = torch.rand(184, 1, 28, 28), Square(Linf(0.1), 100)
    told(
        "a hundred queries of Square without a model, 184 images",
        {"": lambda: attack(Nothing(), x, make_rng(0))},
        rounds,
    )


class FromOne(AcceleratedCopy):
    def ahead(self, device: torch.device) -> int:
        return 1


@contextmanager
def counted(count: list[int]) -> Generator[None]:
    filled = Compiled._filled

    def watched(self: Compiled, x: Tensor) -> Tensor:
        out = filled(self, x)
        count[0] += len(x)
        count[1] += len(out)
        return out

    Compiled._filled = watched
    try:
        yield
    finally:
        Compiled._filled = filled


def filled(rounds: int) -> None:
    """The first turn of each compiles."""
    model, _, _ = subject(16, 128, CPU)
    digits = Digits().load()[0]
    x = F.interpolate(pixels(digits[:1024].x), size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    data, adversary = TensorData(x, digits.y[:1024], digits.classes), {"pgd": WhiteBox(PGD(Linf(0.06), 20, patience=0))}
    for turn in range(rounds):
        for name, backend in (("from one", FromOne("fp32", "on")), ("from four", AcceleratedCopy("fp32", "on"))):
            count, began = [0, 0], time.perf_counter()
            with counted(count):
                found = evaluate(model, data, adversary, batch_size=128, seed=turn, backend=backend)
            seconds, robust = time.perf_counter() - began, float(found.robust["pgd"].mean())
            print(
                f"turn {turn}, {name}: {seconds:.1f} s, {count[1] / count[0] - 1:.1%} filled, {robust:.1%} stand",
                flush=True,
            )


PIECES = {"batch_norm": batch_norm, "convolutions": convolutions, "square": square, "filled": filled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[*PIECES, []], default=[])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    tune_process()
    torch.manual_seed(0)
    for name in args.pieces or ("batch_norm", "convolutions", "square"):
        PIECES[name](args.rounds)


if __name__ == "__main__":
    main()
