"""A PGD-10 training step on one GPU, in one call of a few minutes: as it comes, in variants, and beside torchattacks.

    python benchmarks/gpu.py --out results/gpu.json
    python benchmarks/gpu.py --device cpu --width 8 --batches 16 --rounds 2 --out results/tried.json   # does it run?

PreActResNet-18, 32 pixels, Linf 8/255. Each variant trains its own copy of one net, in turns; beside the time stand the
peak of memory, the robust accuracy of the net that was trained (judged in float32), and the share of the bf16 matrix
product's ceiling, measured in the same call. A variant that fails is left out with a line that says why, so that one
call brings back all it can. torchattacks is timed if it is installed; written out plainly it is `plain`.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.acceleration import AcceleratedCopy, OriginalModel, tune_process
from sparring.bench import ATTACK, attack, ceilings, gflop_of_forward, in_turns, standing, step, subject

Call = Callable[[], None]
Make = Callable[[nn.Module, Tensor, Tensor], Call]


def descend(
    model: nn.Module, z: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None
) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(z.device.type, dtype) if dtype else nullcontext():
        loss = F.cross_entropy(model(z), y)
    loss.backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    """The loop as papers release it, with TF32 on; `.eval()` while crafting."""
    optimizer, eps, size = sgd(model), ATTACK.threat.eps, ATTACK.step_size or 0.0

    def call() -> None:
        model.eval()
        z = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)
        for _ in range(ATTACK.steps):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
            z = (x + (z.detach() + size * grad.sign() - x).clamp_(-eps, eps)).clamp_(0, 1)
        descend(model, z, y, optimizer, None)

    return call


def torchattacks_step(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    import torchattacks

    optimizer = sgd(model)
    crafted = torchattacks.PGD(model, eps=ATTACK.threat.eps, alpha=ATTACK.step_size, steps=ATTACK.steps)

    def call() -> None:
        model.eval()
        descend(model, crafted(x, y), y, optimizer, None)

    return call


def with_bf16_update(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    """What a bf16 update would save. It is no option of the library: parity has not been shown."""
    crafted, optimizer = attack(model, x, y, AcceleratedCopy("bf16", "on")), sgd(model)
    return lambda: descend(model, crafted(), y, optimizer, torch.bfloat16)


def with_compiled_update(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    crafted, optimizer = attack(model, x, y, AcceleratedCopy("bf16", "on")), sgd(model)
    trained = torch.compile(model)

    def call() -> None:
        descend(trained, crafted(), y, optimizer, None)

    return call


def as_one_graph(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    """The whole attack captured once as a CUDA graph and replayed; its copy of the net is filled anew before."""
    fast, optimizer = AcceleratedCopy("bf16", "off"), sgd(model)
    eps, size = ATTACK.threat.eps, ATTACK.step_size or 0.0
    still, out = x.clone(), x.clone()
    model.eval()
    with fast(model, x[:8]) as attacked:
        net = attacked

    def craft() -> None:
        z = out
        for _ in range(ATTACK.steps):
            z = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
            z = torch.minimum(torch.maximum(z + size * grad.sign(), still - eps), still + eps).clamp_(0, 1)
        out.copy_(z.detach())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        craft()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        craft()

    def call() -> None:
        model.eval()
        with fast(model, x[:8]):
            out.copy_((x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1))
            graph.replay()
        descend(model, out, y, optimizer, None)

    return call


VARIANTS: dict[str, Make] = {
    "plain, fp32": plain,
    "torchattacks, fp32": torchattacks_step,
    "ours, fp32": partial(step, backend=OriginalModel()),
    "ours, bf16, not compiled": partial(step, backend=AcceleratedCopy("bf16", "off")),
    "ours": partial(step, backend=AcceleratedCopy("auto", "on")),
    "ours, max-autotune": partial(step, backend=AcceleratedCopy("auto", "max-autotune")),
    "ours, attack as one graph": as_one_graph,
    "ours, compiled update": with_compiled_update,
    "ours, bf16 update": with_bf16_update,
}


def peak(device: torch.device, call: Call) -> float | None:
    """MiB of the device at most in one call, beyond what lay there before."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)  # the nets of all variants
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measured(args: argparse.Namespace, batch: int, device: torch.device, most: float | None) -> dict[str, Any]:
    """All variants at one size of batch."""
    model, x, y = subject(args.width, batch, device)
    gflop = gflop_of_forward(model, x[:1]) * (2 * ATTACK.steps + 3)
    calls, nets, failed = {}, {}, {}
    for name in args.only or VARIANTS:
        nets[name] = copy.deepcopy(model)
        try:
            began = time.perf_counter()
            calls[name] = VARIANTS[name](nets[name], x, y)
            calls[name]()
            print(f"batch {batch}: {name}: first step after {time.perf_counter() - began:.1f} s", flush=True)
        except Exception as error:
            calls.pop(name, None)
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"batch {batch}: {name}: left out: {failed[name]}", flush=True)
    taken, _ = in_turns(calls, args.rounds, device)
    rows = {}
    for name, seconds in taken.items():
        middle = sorted(seconds)[len(seconds) // 2]
        points = attack(nets[name].eval(), x, y, OriginalModel())()
        rows[name] = {
            "seconds": seconds,
            "images_per_second": batch / middle,
            "share_of_bf16_product": None if most is None else gflop * batch / middle / most,
            "peak_mib": peak(device, calls[name]),
            "robust": standing(nets[name], points, y),
        }
        print(
            f"batch {batch}: {name}: {json.dumps({k: v for k, v in rows[name].items() if k != 'seconds'})}", flush=True
        )
    return {"batch": batch, "gflop_per_image": gflop, "variants": rows, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    tune_process()
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    most = ceilings(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "ceilings": most, "runs": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for batch in args.batches:
        found["runs"].append(measured(args, batch, device, most.get("matrix product bf16")))
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
