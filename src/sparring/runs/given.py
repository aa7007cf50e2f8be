"""A model that was handed over as an object, as the model of a recipe."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..core import foreign
from ..core.errors import UserError
from ..core.serialization import Build
from ..data.sources import Source


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A model that was handed over as an object, so that a file can only describe it.

    Calling it gives a copy, with the weights that the object has then.

    Args:
        kind: Its class and number of weights, for people.
        fingerprint: Hash of the names, shapes and types of its weights and buffers.
        module: The model; None where a recipe was read from a file.
    """

    kind: str
    fingerprint: str
    module: nn.Module | None = field(default=None, repr=False, compare=False, metadata={"on_disk": False})

    @classmethod
    def of(cls, module: nn.Module) -> "GivenModel":
        """Describe a model."""
        tensors = module.state_dict()
        parts = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()]
        count = sum(p.numel() for p in module.parameters())
        found = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
        return cls(f"{type(module).__name__} with {count:,} weights", found, module)

    def takes(self, name: str) -> bool:
        """Return False: no option can be passed to an object."""
        del name
        return False

    def __call__(self, **options: object) -> nn.Module:
        del options
        if self.module is None:
            raise UserError(
                f"the model of this run was handed to sparring.fit as an object ({self.kind}), which no file holds. In "
                "Python, hand it over again: to fit, to go on with it, or as load_model(run, recipe_for(model, data)), "
                "with recipe_for of sparring.runs.own. The shell takes functions, as fit(build, ..) of mymodels.py does"
            )
        return copy.deepcopy(self.module).cpu()


def as_model(
    model: nn.Module | Callable[..., nn.Module] | Build[nn.Module], source: Source, seed: int
) -> Build[nn.Module] | GivenModel:
    """Makes the model of a recipe.

    Args:
        model: A model; or a function or class that makes one, which may take `num_classes`, `shape` and `normalize`.
        source: The data, of which a function without an importable name gets the number of classes and the shape.
        seed: Seed of torch's random numbers, from which such a function makes the model.

    Returns:
        The call to be made, by name, if the function can be imported by its name; else the model as an object.

    Raises:
        UserError: If it is neither a model nor a function that makes one.
    """
    if isinstance(model, Build | GivenModel):
        return model
    if isinstance(model, nn.Module):
        return GivenModel.of(model)
    if not callable(model):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module, or a function that makes one")
    try:
        foreign.name_of(model)
    except (UserError, AttributeError):  # a lambda, a local function or a partial
        made = _made(Build(model), source, seed)
        if not isinstance(made, nn.Module):
            raise UserError(f"{model!r:.60} gives a {type(made).__name__}: wanted is a torch.nn.Module") from None
        return GivenModel.of(made)
    return Build(model)


def _made(build: Build[nn.Module], source: Source, seed: int) -> Any:
    """Call a function, with what it takes of the classes and the shape of the data."""
    wanted = [name for name in ("num_classes", "shape") if build.takes(name)]
    train = source.load()[0] if wanted else None
    of_data = {} if train is None else {"num_classes": len(train.classes), "shape": train.shape}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**of_data, normalize=None)
