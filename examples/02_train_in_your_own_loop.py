"""Adversarial training in a loop of your own: TRADES for any nn.Module, with your data and your optimiser.

python examples/02_train_in_your_own_loop.py
"""

import torch
from torch import nn

from sparring import PGD, TRADES, Batch, GaussianStart, Linf, Method, Progress, State, WhiteBox, evaluate, train_step
from sparring.core.types import pixels
from sparring.data import Digits

train, test = Digits().load()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
epochs, size = 8, 64

# the method: what the attack does, what it raises, what is lowered
threat = Linf("16/255")
method = Method(PGD(threat, steps=5, start=GaussianStart()), TRADES(beta=6.0))
state = State.start(method, model, optimizer, train)

steps = len(train) // size
for epoch in range(epochs):
    for index in torch.randperm(len(train))[: steps * size].split(size):
        batch = Batch(pixels(train.x[index]), train.y[index], index)
        terms = train_step(method, state, batch, Progress(state.step, steps, epochs))
        state.step += 1
    print(f"epoch {epoch + 1}  " + "  ".join(f"{name} {float(value):.3f}" for name, value in terms.items()))

found = evaluate(model, test, {"pgd-20": WhiteBox(PGD(threat, steps=20))})
for name, accuracy in found.table().items():
    print(f"{name:7} {accuracy}")
