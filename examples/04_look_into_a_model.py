"""What a net tells of an image, and what can be rebuilt from it: before and after adversarial training.

python examples/04_look_into_a_model.py
"""

import torch

from sparring import L2, PGD, Batch, Benign, CrossEntropy, Method, Progress, State, train_step
from sparring.analysis import Inverter, invert, measure_information, measure_transfer_learning, psnr, shots, ssim
from sparring.core.types import pixels
from sparring.data import ClassSubset, Digits, Rotated
from sparring.models import small_cnn

train, test = ClassSubset(Digits(), (0, 1, 2, 3, 4)).load()
x, y = pixels(train.x), train.y
turned, turned_test = Rotated(Digits()).load()

for name, attack in (("natural", Benign()), ("robust, L2 0.5", PGD(L2(0.5), steps=3))):
    torch.manual_seed(0)
    model = small_cnn(5, (1, 8, 8), width=12, hidden=False)  # its features are 96 numbers, an image is 64
    method = Method(attack, CrossEntropy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = State.start(method, model, optimizer)
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        index = torch.randint(len(x), (64,), generator=rng)
        train_step(method, state, Batch(x[index], y[index], index), Progress(state.step, 100, 1))
        state.step += 1
    model.eval()
    few = test[:32]
    with torch.no_grad():
        right = float((model(pixels(test.x)).argmax(1) == test.y).float().mean())
    told = measure_information(model, train[:100], few, jacobian_examples=4).plain()["figures"]
    rebuilt = invert(model, pixels(few.x), Inverter(steps=100))
    moved = measure_transfer_learning(model, shots(turned, 100, seed=0), turned_test)
    print(f"{name}: accuracy {100 * right:.1f} %; all digits, turned, from 100 of them: {moved.accuracy}")
    for figure in (
        "weights: relative: all",
        "prediction: trace",
        "representation: scale-free",
        "effective information",
    ):
        print(f"  {figure}: {told[figure]['mean']['value']:.3g}")
    likeness = [float(measure(rebuilt, pixels(few.x)).median()) for measure in (ssim, psnr)]
    print(f"  rebuilt from its features: SSIM {likeness[0]:.2f}, PSNR {likeness[1]:.1f} dB")
