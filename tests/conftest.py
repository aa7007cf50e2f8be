"""What the tests share: one thread each, the CPU, a tiny data set, a tiny recipe."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start, too: two threads on a busy core are much slower
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("SPARRING_TEST_CUDA", "")  # exactness is promised on the CPU

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sparring import PGD, CrossEntropy, Linf, Method, TensorData, WhiteBox, make_rng
from sparring.core.serialization import Build
from sparring.models import small_cnn
from sparring.recipes.small import quickstart
from sparring.runs.recipe import Evaluation, Recipe

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=30, help="cases of each fuzzer; `make fuzz` takes many more")
    parser.addoption("--fuzz-seed", type=int, default=0, help="decides the cases")


LONG = (
    "studies/test_studies.py",
    "distributed/",
    "test_tutorials.py",
    "training/test_guard.py",
    "records/test_disk.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that at the end no process waits for one of them."""
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONG))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at a million objects of it again."""
    gc.freeze()


_DRAWING = [False]


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> "Iterator[None]":
    """The pictures of runs are a dot, which saves time. Tests about pictures ask for `drawn`."""
    import sparring.runs.certified
    import sparring.runs.fit
    import sparring.runs.result_files

    def dot(draw: Any) -> Any:
        def drawing(*args: Any) -> None:
            if _DRAWING[-1]:
                draw(*args)
            else:
                Image.new("L", (1, 1)).save(args[-1])

        return drawing

    places = (
        (sparring.runs.fit, "plot_learning_curve"),
        (sparring.runs.result_files, "plot_adversarial_examples"),
        (sparring.runs.result_files, "plot_robustness_curve"),
        (sparring.runs.certified, "plot_certified_accuracy"),
    )
    with pytest.MonkeyPatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, dot(getattr(module, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> "Iterator[None]":
    """Files are not forced to the disk, which takes milliseconds each time: no test cuts the power.

    Tests of what forces them replace `os.fsync` themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture
def drawn() -> "Iterator[None]":
    """The pictures of runs are drawn."""
    _DRAWING.append(True)
    yield
    _DRAWING.pop()


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> "tuple[int, int]":
    """How many cases a fuzzer makes, and its seed."""
    return request.config.getoption("--fuzz"), request.config.getoption("--fuzz-seed")


@pytest.fixture
def tiny() -> Recipe:
    """Four short epochs on the digits: a second of work."""
    threat = Linf(0.1)
    return replace(
        quickstart(0.1),
        model=Build(small_cnn, width=4),
        method=Method(PGD(threat, steps=2, step_size=0.05), CrossEntropy()),
        epochs=3,
        batch_size=256,
        selection=PGD(threat, steps=2, patience=0),
        evaluation=Evaluation({"pgd-3": WhiteBox(PGD(threat, steps=3, patience=0))}, examples=40),
    )


@dataclass
class Counted:
    """How often a model was run and differentiated, in examples too."""

    forwards: int = 0
    backwards: int = 0
    examples: int = 0


def count(model: nn.Module) -> Counted:
    """Counts passes through `model` from now on."""
    seen = Counted()

    def forward(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.forwards += 1
        seen.examples += len(args[0])
        if out.requires_grad:
            out.register_hook(backward)

    def backward(grad: torch.Tensor) -> None:
        seen.backwards += 1

    model.register_forward_hook(forward)
    return seen


class Linear(nn.Module):
    """Logits (w.x, -w.x) + b: its worst case in every norm is known in closed form."""

    def __init__(self, size: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=make_rng(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score], 1)


def toy_data(n: int = 60, classes: int = 3, seed: int = 0) -> TensorData:
    """Grey images whose brightness tells the class."""
    y = torch.arange(n) % classes
    x = 60 + 60 * y.view(-1, 1, 1, 1) + torch.randint(-30, 30, (n, 1, 4, 4), generator=make_rng(seed))
    return TensorData(x.clamp(0, 255).to(torch.uint8), y, tuple("abcdefghij"[:classes]))


def toy_net(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes))
