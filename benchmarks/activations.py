"""Are smooth activations free? Seconds of a PGD-1 training step and peak memory of each, against ReLU, in one run.

    python benchmarks/activations.py --out results
    python benchmarks/activations.py --width 64 --batch 512 --device cuda --out results

A step crafts by one step from a random start and moves the weights once (PreActResNet-18). Three ways: in float32 on
the model as it is; on the fast path, as by default; and with both attack and update compiled. Times are taken in turns
in one process; memory is the peak of a process of its own, less what it held before its first step (CUDA: torch's).
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sparring import FGSM, SGD, Linf, RandomStart, UserError, bench, make_rng
from sparring.acceleration import AcceleratedCopy, OriginalModel, prefer_channels_last, tune_process
from sparring.attacks import CE
from sparring.bench import in_turns
from sparring.core.modes import eval_mode, frozen
from sparring.models import preact_resnet18
from sparring.runs.environment import session

NAMES = ("relu", "parametric_softplus", "softplus", "silu", "gelu", "elu", "celu", "smooth_relu", "mish")
WAYS = ("plain", "ours", "compiled")


def step(name: str, way: str, options: argparse.Namespace) -> Callable[[], None]:
    """One training step, to be called again and again."""
    device, threat = torch.device(options.device), Linf("8/255")
    torch.manual_seed(0)
    model: nn.Module = preact_resnet18(width=options.width / 64, activation=name).to(device)
    x, y = torch.rand(options.batch, 3, 32, 32, device=device), torch.arange(options.batch, device=device) % 10
    attack = FGSM(threat, threat.eps, RandomStart())
    if way != "compiled":
        return bench.step(model, x, y, OriginalModel() if way == "plain" else AcceleratedCopy("auto", "off"), attack)
    prefer_channels_last(model.train(), x[:8])
    optimizer, rng = SGD().build(model), make_rng(0, device)
    backend, update = AcceleratedCopy("auto", "on"), torch.compile(model)

    def call() -> None:
        with eval_mode(model), frozen(model), backend(model, x[:8]) as attacked:
            z = attack(CE(attacked.__call__, y), x, rng)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(update(z), y).backward()
        optimizer.step()

    return call


def memory(name: str, way: str, options: argparse.Namespace) -> float:
    """MiB, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, way, "--device", options.device]
    command += ["--width", str(options.width), "--batch", str(options.batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(name: str, way: str, options: argparse.Namespace) -> float:
    tune_process()
    call = step(name, way, options)
    before = high_water()
    for _ in range(3):
        call()
    return high_water() - before if options.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def high_water() -> float:
    """MiB of this process; what `getrusage` says begins with the peak of the parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "WAY"), help="print the peak of one, in MiB")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES), help="relu among them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.memory:
        print(peak(*options.memory, options))
        return
    if options.out is None:
        raise UserError("--out is missing")
    tune_process()
    rows = []
    for way in options.ways:
        taken, _ = in_turns(
            {n: step(n, way, options) for n in options.names}, options.rounds, torch.device(options.device)
        )
        # no compiled memory on the CPU: the compiler's own is more than that of the net
        known = way != "compiled" or options.device != "cpu"
        for name, seconds in taken.items():
            mib = memory(name, way, options) if known else None
            rows.append({"way": way, "name": name, "seconds": seconds, "mib": mib})
        first = next(row for row in rows if row["way"] == way and row["name"] == "relu")
        for row in (row for row in rows if row["way"] == way):
            ratio = [a / b for a, b in zip(row["seconds"], first["seconds"], strict=True)]
            more = "" if row["mib"] is None else f", {row['mib']:.0f} MiB, {row['mib'] / first['mib']:.2f} x"
            print(
                f"{way:9} {row['name']:20} {statistics.median(row['seconds']):.3f} s, "
                f"{statistics.median(ratio):.2f} x [{min(ratio):.2f}, {max(ratio):.2f}]{more}",
                flush=True,
            )
    about = {"width": options.width, "batch": options.batch, "rounds": options.rounds}
    found = {"machine": session(0, torch.device(options.device)), "settings": about, "rows": rows}
    (options.out / "activations.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
