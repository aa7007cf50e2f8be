"""What tests of several rooms share."""

import signal
from dataclasses import replace

import numpy as np
import torch
from conftest import toy_data, toy_net

from sparring import PGD, TRADES, CrossEntropy, Linf, Method, State, WhiteBox, evaluate
from sparring.attacks import FGSM, GaussianStart
from sparring.core.serialization import Build
from sparring.core.types import pixels
from sparring.data import Crop, Digits, Flip, Subset
from sparring.models import small_cnn
from sparring.training import EMA, SGD

METHOD = Method(PGD(Linf(0.1), steps=1), CrossEntropy())
ATTACK = {"fgsm": WhiteBox(FGSM(Linf(0.1)))}


def bits(run, which="last"):
    return run.weights(which).read_bytes()


def stop_at(step):
    def show(news):
        if news.progress.step == step and news.held_out is None:
            signal.raise_signal(signal.SIGINT)

    return show


def demanding(tiny):
    """A recipe in which everything that a checkpoint must hold matters."""
    attack = PGD(Linf(0.1), steps=1, start=GaussianStart(0.01))
    return replace(
        tiny,
        method=Method(attack, TRADES()),
        model=Build(small_cnn, width=4, batch_norm=True),
        augment=(Crop(1), Flip()),
        averaging=EMA(0.9),
        optimizer=SGD(nesterov=True),
        data=Subset(Digits(), 400, 40),
        batch_size=110,
    )


def state(step=0, seed=0, average=True):
    model = toy_net(seed)
    made = State.start(METHOD, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), toy_data(), seed)
    made.average = EMA().init(model) if average else None
    for p in model.parameters():
        p.grad = torch.full_like(p, float(step))
    made.optimizer.step()  # momentum to remember
    made.step, made.best = step, {"robust": 0.5, "clean": 0.7, "step": 1}
    return made


def evaluated(folder):
    return evaluate(toy_net().eval(), toy_data(), ATTACK, state=folder).robust["fgsm"].tolist()


def labelled_by(net):
    """Toy data with the labels that a net in float64 gives, but for every tenth."""
    y = net(pixels(toy_data().x).double()).argmax(1)
    y[::10] = (y[::10] + 1) % 3
    return toy_data().relabelled(y)


def same_results(found, wanted):
    """All of two results of an evaluation is equal, but for the last bits of what the model computed."""
    ours, theirs = found.arrays(pictures=True), wanted.arrays(pictures=True)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        if name.startswith("seconds/"):
            continue
        assert ours[name].dtype.kind == values.dtype.kind, name
        if values.dtype.kind == "f":
            assert np.allclose(ours[name], values, atol=1e-5, equal_nan=True), name
        else:
            assert np.array_equal(ours[name], values), name
