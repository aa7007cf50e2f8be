"""Attack a model of your own: any nn.Module that takes images in [0, 1] and gives logits.

python examples/01_attack_a_model.py
"""

import torch
from torch import nn

from sparring import PGD, Linf, Restarts, WhiteBox, evaluate, perturb
from sparring.core.types import pixels
from sparring.data import Digits

train, test = Digits().load()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(200):  # ordinary training
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(pixels(train.x)), train.y).backward()
    optimizer.step()

# one call: adversarial versions of a batch
x, y = pixels(test.x[:100]), test.y[:100]
attack = PGD(Linf("16/255"), steps=20)
x_adv = perturb(model, x, y, attack)
print(f"largest change {float((x_adv - x).abs().max()) * 255:.1f}/255")
print(f"accuracy {float((model(x).argmax(1) == y).float().mean()):.2f} -> ", end="")
print(f"{float((model(x_adv).argmax(1) == y).float().mean()):.2f}")

# and a table with intervals, per example underneath
found = evaluate(model, test, {"pgd-20-5": WhiteBox(Restarts(attack, 5))})
for name, accuracy in found.table().items():
    print(f"{name:9} {accuracy}")
