"""What training on ImageNet takes on many GPUs, by counting: memory of a step, time of a run, bytes between GPUs.

    python benchmarks/scale.py                              # a minute; needs timm, but no GPU and no data

Models are built and run on torch's meta device, which has shapes and no numbers. Weights, their gradients and what a
forward pass keeps for the backward pass are counted; images a second and bandwidths are assumed: they are arguments.
"""

import argparse
from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparring.core.modes import eval_mode, frozen
from sparring.models import imagenet_resnet, recomputed, repeated_blocks

GIB, MB = 2**30, 1e6
IMAGES = 1_281_167
OPTIMIZERS = {"SGD": 1, "LARS": 1, "RMSProp": 2, "LAMB": 2}
"""Numbers that an optimiser keeps for each weight."""


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().train()


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kept(model: nn.Module, images: int, pixels: int, wants_images: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart, each piece of memory once."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = torch.empty(images, 3, pixels, pixels, device="meta", requires_grad=wants_images)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def per_image(model: nn.Module, pixels: int = 224, wants_images: bool = False) -> int:
    """Bytes of activations of an image, all in float32."""
    return kept(model, 3, pixels, wants_images) - kept(model, 2, pixels, wants_images)


def largest_block(model: nn.Module, whole: int) -> int:
    """Bytes that the block that keeps most keeps of an image; `whole` is what the model keeps."""

    def without(block: nn.Module) -> int:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        try:
            return per_image(model)
        finally:
            del block.forward

    return whole - min(map(without, repeated_blocks(model)))


def flops(model: nn.Module, pixels: int = 224) -> int:
    """Floating-point operations of the forward pass of an image: two for a multiplication with an addition."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), eval_mode(model):
        model(torch.empty(1, 3, pixels, pixels, device="meta"))
    return counter.get_total_flops()


def memory(title: str, model: nn.Module, images: int) -> None:
    count = 4 * weights(model) / GIB
    print(f"\n{title}, {images} images a GPU, GiB in float32: weights {count:.3f}, gradients {count:.3f}, ", end="")
    print(", ".join(f"state of {name} {times * count:.3f}" for name, times in OPTIMIZERS.items()), end="; ")
    print(f"accelerated copy in bf16 {count / 2:.3f}")
    whole = per_image(model)
    with recomputed(model):
        inputs = per_image(model)
    again = inputs + largest_block(model, whole)
    with eval_mode(model), frozen(model):
        attack = per_image(model, wants_images=True)
    for name, one in (("update", whole), ("update, recomputed", again), ("attack step, at most", attack)):
        print(f"{name}: {one / MB:.1f} MB of activations an image; GiB in all: ", end="")
        print(f"{images * one / GIB:.1f} in float32, {images * one / 2 / GIB:.1f} in bf16")


def time(model: nn.Module, gpus: int, rates: dict[int, float], batch: int) -> None:
    one = flops(model)
    print(f"\nforward pass of an image: {one / 1e9:.2f} GFLOP")
    for steps, rate in rates.items():
        total = one * (2 * steps + 3)  # an attack step is a forward pass and the gradient of the image
        epoch = IMAGES / (rate * gpus)
        print(
            f"PGD-{steps}: {total / 1e9:.1f} GFLOP an image, {rate * total / 1e12:.0f} TFLOP/s at {rate:,.0f} images/s "
            f"and GPU; {gpus} GPUs {rate * gpus:,.0f} images/s, {1000 * batch / (rate * gpus):.1f} ms a step of {batch}"
            f", {epoch:.0f} s an epoch, {100 * epoch / 3600:.2f} h for 100"
        )


def traffic(models: dict[str, nn.Module], inside: float, between: float) -> None:
    print("\n| model | weights | gradient, MB | GPUs | sent by each GPU, MB | ms |\n|---|---:|---:|---:|---:|---:|")
    for name, model in models.items():
        count = weights(model)
        for gpus in (8, 64):
            sent = 2 * (gpus - 1) / gpus * 4 * count
            speed = inside if gpus <= 8 else between
            print(
                f"| {name} | {count:,} | {4 * count / MB:.1f} | {gpus} | {sent / MB:,.1f} | {sent / speed / 1e6:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1024, help="images in a batch, of all GPUs")
    parser.add_argument("--pgd-1", type=float, default=7000, help="images a second and GPU, assumed")
    parser.add_argument("--pgd-3", type=float, default=4000, help="images a second and GPU, assumed")
    parser.add_argument("--inside", type=float, default=300, help="GB/s of a GPU to others of its machine, assumed")
    parser.add_argument("--between", type=float, default=50, help="GB/s of a GPU to other machines, assumed")
    args = parser.parse_args()
    resnet = on_meta(lambda: imagenet_resnet(50))
    vit = on_meta(lambda: timm.create_model("vit_large_patch16_224"))
    smooth = on_meta(lambda: imagenet_resnet(50, activation="silu"))
    for title, model in (("ResNet-50", resnet), ("ResNet-50 with SiLU", smooth)):
        memory(title, model, args.batch // args.gpus)
    time(resnet, args.gpus, {1: args.pgd_1, 3: args.pgd_3}, args.batch)
    traffic({"ResNet-50": resnet, "ViT-L/16": vit}, args.inside, args.between)


if __name__ == "__main__":
    main()
