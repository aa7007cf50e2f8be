"""What the proof of a copy costs: a training step with it at every use, at every 16th, and never, in turns.

    python benchmarks/proof.py --width 16 --batch 128 --rounds 5

Medians of milliseconds, with least and most, and the ratio of medians to "never", on the CPU, tuned. A step reads the
fingerprint of the model in all three.
"""

import argparse
import json

import torch

from sparring import PGD, CrossEntropy, Linf, Method, Progress, State, train_step
from sparring.acceleration import AcceleratedCopy, prefer_channels_last, tune_process
from sparring.acceleration.fingerprint import Fingerprint
from sparring.attacks import FGSM
from sparring.bench import in_turns, subject
from sparring.core.types import Batch
from sparring.training import engine

CPU = torch.device("cpu")
EVERY = {"at every use": 1, "at every 16th": engine.PROVED_EVERY, "never": 2**60}
ATTACKS = {"PGD-10": PGD(Linf("8/255"), 10, "2/255"), "FGSM": FGSM(Linf("8/255"))}
STEPS = 16  # so that each turn holds one proof of those at every 16th step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attack", choices=ATTACKS, default="PGD-10")
    args = parser.parse_args()
    tune_process()
    model, x, y = subject(args.width, args.batch, CPU)
    prefer_channels_last(model, x[:8])
    method = Method(ATTACKS[args.attack], CrossEntropy())
    batch = Batch(x, y, torch.arange(args.batch))

    def step(every: int) -> object:
        state = State.start(method, model, torch.optim.SGD(model.parameters(), lr=1e-4))
        state.backend = AcceleratedCopy()

        def steps() -> None:
            engine.PROVED_EVERY = every
            for number in range(STEPS):
                train_step(method, state, batch, Progress(number + 1, 10**6, 1))

        return steps

    taken, _ = in_turns({name: step(every) for name, every in EVERY.items()}, args.rounds, CPU)
    rows = {}
    for name, seconds in taken.items():
        times = sorted(1e3 * each / STEPS for each in seconds)
        rows[name] = {"median": times[len(times) // 2], "least": times[0], "most": times[-1]}
    never = rows["never"]["median"]
    marks = in_turns({"fingerprint": lambda: Fingerprint.of(model)}, 31, CPU)[0]["fingerprint"]
    print(
        json.dumps(
            {
                "attack": args.attack,
                "ms a step": rows,
                "times never": {name: row["median"] / never for name, row in rows.items()},
                "ms for a fingerprint": 1e3 * sorted(marks)[len(marks) // 2],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
