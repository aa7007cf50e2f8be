"""Runs by several processes, as a program that torchrun starts: `scenes.py SCENE FOLDER`."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import sparring as sp
from sparring import PGD, CrossEntropy, Linf, Method, UserError, WhiteBox
from sparring.core import ranks
from sparring.core.serialization import Build
from sparring.data import Crop, Flip
from sparring.models import small_cnn
from sparring.recipes.small import quickstart
from sparring.runs.processes import together
from sparring.runs.recipe import Evaluation, Recipe
from sparring.training import EMA, Guard, Interrupted, Saving, TrainingLoop
from sparring.training.example_history import remembering
from sparring.training.updates import gradients

BALL = Linf(0.1)


def recipe() -> Recipe:
    """A run with all that has a memory: ensembling, an average, a guard, a history, the state of SGD."""
    attack = PGD(BALL, steps=1, step_size=0.05)
    return replace(
        quickstart(0.1),
        model=Build(small_cnn, width=4, batch_norm=True),
        method=Method(attack, sp.Sum((CrossEntropy(), sp.TemporalEnsembling(3.0)))),
        augment=(Crop(1), Flip()),
        averaging=EMA(0.9),
        guard=Guard(BALL, "report", examples=32, steps=2),
        example_history=remembering(attack, every=2),
        epochs=2,
        batch_size=333,
        selection=PGD(BALL, steps=1, patience=0),
        evaluation=Evaluation({"fgsm": WhiteBox(sp.FGSM(BALL))}, examples=40),
    )


@contextmanager
def at_step(step: int, act: "object") -> Iterator[None]:
    """Call `act` after a step on the second process."""
    taken = TrainingLoop._step

    def then(self, method, state, batch, size):  # type: ignore[no-untyped-def]
        taken(self, method, state, batch, size)
        if state.step == step and ranks.rank() == 1:
            act()  # type: ignore[operator]

    TrainingLoop._step = then  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingLoop._step = taken  # type: ignore[method-assign]


def whole(folder: Path) -> None:
    sp.fit(recipe(), folder / "whole", profile=True)


class Skips(nn.Module):
    """Leaves out its second layer on one of the processes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(1, 1, bias=False) for _ in range(3))
        for layer in self.children():
            nn.init.ones_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x if ranks.rank() == 1 else x + self.second(x)


def skipping(folder: Path) -> None:
    """An update of a model that leaves out a layer on one process only."""
    model, x = Skips(), torch.ones(1, 1)
    weights = list(model.parameters())

    def loss() -> "dict[str, torch.Tensor]":
        return {"l": 0.5 * model(x).mean()}

    found = gradients(loss, weights)
    sp.OptimizerStep()(model, torch.optim.SGD(weights, lr=0.1), loss)
    told = [[None if g is None else g.item() for g in found], [w.item() for w in weights]]
    (folder / f"skipping-{ranks.rank()}.json").write_text(json.dumps(told))


def evaluated(folder: Path) -> None:
    """The command divides the images between the processes, and the first writes the files of one evaluation."""
    from sparring.cli import run

    assert run(["evaluate", str(folder / "whole"), "--attack", "apgd"]) == 0


def killed(folder: Path) -> None:
    """The second process is killed once; torchrun starts both again."""
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    with at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL) if first else None):
        sp.fit(recipe(), folder / "killed", saving=Saving(steps=1))


def stopped(folder: Path) -> None:
    """A signal to the second process stops both after the same step."""
    try:
        with at_step(2, lambda: signal.raise_signal(signal.SIGTERM)):
            sp.fit(recipe(), folder / "stopped")
    except Interrupted as stop:
        steps = ranks.each_of(stop.step)
        assert len(set(steps)) == 1, steps
        if ranks.first():
            (folder / "stopped-at").write_text(str(stop.step))
        return
    raise AssertionError("the run was not stopped")


def wrong(folder: Path) -> None:
    """What would be silently wrong is refused, in one sentence on every process."""
    mine, said = ranks.rank(), {}

    class Poisoned(CrossEntropy):
        def outer(self, ctx, x_adv):  # type: ignore[no-untyped-def]
            terms = CrossEntropy.outer(self, ctx, x_adv)
            return {n: t * float("nan") if mine == 1 and ctx.progress.step == 2 else t for n, t in terms.items()}

    class Alone:
        def __call__(self, model, optimizer, closure):  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            terms = closure()
            sum(terms.values()).backward()
            optimizer.step()
            return {name: term.detach() for name, term in terms.items()}

    def tell(name: str, act: "object") -> None:
        try:
            act()  # type: ignore[operator]
        except UserError as error:
            said[name] = str(error)

    for name, parts in {"nan": {"method": Method(sp.Benign(), Poisoned())}, "alone": {"update": Alone()}}.items():
        state, batches, loop = own(**parts)
        tell(
            name,
            lambda loop=loop, state=state, batches=batches, parts=parts: loop.run(
                parts.get("method", Method(sp.Benign(), CrossEntropy())), state, batches
            ),
        )
    state, batches, loop = own()
    state.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Derived(3))
    tell("derived", lambda: loop.run(Method(sp.Benign(), CrossEntropy()), state, batches))
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    state = sp.State.start(Method(sp.Benign(), CrossEntropy()), model, torch.optim.SGD(model.parameters(), 0.1))
    tell(
        "wrapped",
        lambda: sp.train_step(
            Method(sp.Benign(), CrossEntropy()), state, sp.Batch(x, y, torch.arange(6)), sp.Progress(0, 1, 1)
        ),
    )
    if ranks.first():
        (folder / "in-use").mkdir(exist_ok=True)
        (folder / "in-use" / "notes.txt").write_text("something else")
    ranks.wait()
    tell("folder", lambda: sp.fit(recipe(), folder / "in-use"))
    tell("few", lambda: sp.fit(replace(recipe(), batch_size=1), folder / "few"))
    every = ranks.each_of(said)
    assert every[0] == every[1], every
    if ranks.first():
        (folder / "said").write_text("\n".join(f"{name}: {text}" for name, text in said.items()))


class Derived(nn.BatchNorm1d):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return nn.BatchNorm1d.forward(self, x).relu()


def own(update=sp.OptimizerStep(), method=None):  # type: ignore[no-untyped-def] # noqa: B008
    """A loop of one's own."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = sp.TensorData(x, torch.arange(24) % 3, ("a", "b", "c"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    state = sp.State.start(
        method or Method(sp.Benign(), CrossEntropy()), model, torch.optim.SGD(model.parameters(), 0.1)
    )
    return state, sp.data.Batches(data, 6), TrainingLoop(1, 0.1, update)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with together("cpu"):
        for scene in sys.argv[2].split(","):
            globals()[scene](Path(sys.argv[1]))
