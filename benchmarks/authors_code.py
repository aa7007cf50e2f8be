"""Runs parts of files of other people: functions of a file, or a passage of a script, on a CPU and a newer torch."""

import ast
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def names(**more: Any) -> dict[str, Any]:
    """What the code of the authors finds in its files."""
    return {
        "torch": torch,
        "nn": nn,
        "F": F,
        "np": np,
        "math": math,
        "random": random,
        "print": lambda *a: None,
        "Variable": lambda x, requires_grad=False: x.detach().requires_grad_(requires_grad),
        "zero_gradients": lambda x: None,
        "clamp": lambda x, low, high: torch.max(torch.min(x, high), low),
        **more,
    }


def functions(path: Path, *wanted: str, **more: Any) -> dict[str, Any]:
    """The functions of a file by name, in one namespace."""
    tree = ast.parse(path.read_text())
    body: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in wanted]
    space = names(**more)
    exec(compile(ast.Module(body, []), str(path), "exec"), space)  # noqa: S102
    return space


def passage(path: Path, first: str, last: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run the statements of one block, from the one that begins with `first` to the one that begins with `last`."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        texts = [ast.unparse(each) for each in body] if isinstance(body, list) else []
        begin = next((i for i, text in enumerate(texts) if text.startswith(first)), None)
        if begin is None or not any(text.startswith(last) for text in texts[begin:]):
            continue
        end = next(i for i in range(begin, len(texts)) if texts[i].startswith(last))
        exec(compile(ast.Module(body[begin : end + 1], []), str(path), "exec"), space)  # noqa: S102
        return space
    raise SystemExit(f"{path} has no passage from {first!r} to {last!r}")


@contextmanager
def old_torch() -> Iterator[None]:
    """Let code for a GPU and for older versions of torch run here, in double precision."""
    kept = {(kind, name): getattr(kind, name) for kind in (Tensor, nn.Module) for name in ("cuda", "half")}
    minus, after = Tensor.__rsub__, Tensor.__sub__
    for kind, name in kept:
        setattr(kind, name, lambda self, *args: self)
    Tensor.__rsub__ = lambda self, other: minus(self.double() if self.dtype == torch.bool else self, other)  # type: ignore
    Tensor.__sub__ = lambda self, other: after(self.double() if self.dtype == torch.bool else self, other)  # type: ignore
    half, torch.HalfTensor = torch.HalfTensor, torch.DoubleTensor  # type: ignore[misc]
    try:
        yield
    finally:
        for (kind, name), value in kept.items():
            setattr(kind, name, value)
        Tensor.__rsub__, Tensor.__sub__, torch.HalfTensor = minus, after, half  # type: ignore[misc, method-assign]
