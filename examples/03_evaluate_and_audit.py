"""How robust is a model, and is that real? AutoAttack example by example, distances, and an audit.

python examples/03_evaluate_and_audit.py
"""

import torch
from torch import nn

from sparring import AutoAttack, Linf, audit, evaluate
from sparring.core.types import pixels
from sparring.data import Digits
from sparring.evaluation import AuditBudget, MinimumNorm

train, test = Digits().load()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(150):  # ordinary training
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(pixels(train.x)), train.y).backward()
    optimizer.step()

threat, few = Linf("8/255"), test[:40]
found = evaluate(model, few, {"autoattack": AutoAttack(threat), "nearest": MinimumNorm.of(threat)})
for name, accuracy in found.table().items():
    print(f"{name:20} {accuracy}")
print("broken by", {str(name) for name in found.broken_by("autoattack")})
print(f"half of the examples fall at eps {float(torch.from_numpy(found.distance).median()):.3f}")

# what stands behind these figures
for finding in audit(model, few, threat, budget=AuditBudget(steps=20, queries=200, surrogate_steps=50)):
    print(f"{finding.verdict:5} {finding.name}: {finding.meaning}")
