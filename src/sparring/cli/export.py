"""The command `sparring export`."""

from dataclasses import dataclass
from typing import Literal

from .common import argument, print_json, say

_EXPORT = """\
usage: sparring export RUN --to robustbench|hub|onnx|torch-export [--out FOLDER] [--json]

Exports the best weights of a run, or a file of weights that names its recipe. What is written is read again, and its
logits are compared with those of the model on test images.

  robustbench    a state dict under the names of RobustBench's class, its model-info JSON and a model card
  hub            a folder for the Hugging Face Hub: safetensors with the recipe, config.json, a model card
  onnx           an ONNX program, which needs sparring[onnx]
  torch-export   a program of torch.export

  sparring export runs/quickstart --to torch-export"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    to: Literal["robustbench", "hub", "onnx", "torch-export"]
    """Format of the export."""
    out: str | None = None
    """Folder for the files; by default exported/NAME-TO."""
    images: int = 16
    """Number of test images on which a program is compared with the model."""
    json: bool = False
    """Print one JSON object on standard output instead of text."""


def export(args: list[str]) -> int:
    target, rest = argument(args, "RUN", _EXPORT)
    from pathlib import Path

    from ..runs.export import export as exported
    from .flags import parse

    options, _, _ = parse(_Options, None, {}, rest, f"sparring export {target}", _EXPORT)
    path = Path(target).resolve()
    out = options.out or f"exported/{path.name if path.is_dir() else path.stem}-{options.to}"
    found = exported(target, options.to, out, images=options.images)
    if options.json:
        print_json({"files": [str(path) for path in found.files], "largest difference": found.difference})
        return 0
    for path in found.files:
        say(f"wrote {path}")
    if found.difference is not None:
        say(f"largest difference of a logit on {found.images} images: {found.difference:.2g}")
    if options.to == "hub":
        say(f"next, hf upload ORGANISATION/NAME {out}")
    return 0
