"""Zero-shot classifiers: an image encoder, and text embeddings of the class names as its fixed head."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.modes import eval_mode
from ..core.reading import open_file, reading
from ..core.types import Classifier
from .libraries import Shape, timm_model
from .lora import lora


class ZeroShotHead(nn.Module):
    """A head whose logits are scaled cosine similarities between image features and text embeddings of the classes.

    It is not trained: its one matrix is a buffer, which is saved with the weights.

    Args:
        texts: An embedding of each class `[C, F]`, for example of "a photo of a dog"; their lengths do not matter.
        scale: Factor of the similarities; 100 in CLIP.

    Raises:
        UserError: If `texts` is no matrix, or an embedding is 0 or not finite.

    References:
        CLIP: https://arxiv.org/abs/2103.00020.
    """

    weight: Tensor

    def __init__(self, texts: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        if texts.ndim != 2:
            raise UserError(
                f"text embeddings of shape {tuple(texts.shape)} are no matrix [classes, features]: give one row for "
                "each class"
            )
        lengths = texts.norm(dim=1)
        if not bool((lengths.isfinite() & (lengths > 0)).all()):
            bad = int((~(lengths.isfinite() & (lengths > 0))).nonzero()[0])
            raise UserError(f"the text embedding of class {bad} is 0 or not finite: embed its name again")
        self.register_buffer("weight", scale * F.normalize(texts.detach(), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=1), self.weight)


def zero_shot_model(
    name: str,
    texts: str,
    num_classes: int | None = None,
    shape: Shape | None = None,
    scale: float = 100.0,
    lora_rank: int = 0,
    pretrained: bool = False,
) -> Classifier:
    """Makes a zero-shot classifier of an image encoder of timm, such as those of CLIP, and of text embeddings.

    Features are the image embeddings, behind the projection that belongs to the encoder, and not normalised.

    Args:
        name: Name of the encoder in timm, such as "vit_base_patch32_clip_quickgelu_224.openai".
        texts: File of the text embeddings `[classes, features]`, as `numpy.save` writes it, in the order of the
            classes; the text encoder must belong to the image encoder. Empty for a head into which weights are loaded.
        num_classes: Number of classes; None for as many as the file has rows.
        shape: Shape of an image; None for the one that the weights were trained with.
        scale: Factor of the similarities; 100 in CLIP.
        lora_rank: Rank of the adapters that are trained in place of the weights, as for `lora`; 0 trains the weights.
        pretrained: Load the weights of the encoder, which timm downloads.

    Returns:
        The classifier, with the normalisation that the encoder was trained with.

    Raises:
        UserError: If timm cannot be imported or has no such encoder, the weights or the file cannot be had, or the
            file does not fit the encoder or the classes; and as `lora`.

    References:
        CLIP: https://arxiv.org/abs/2103.00020.
    """
    made: Any = timm_model(name, shape=shape, pretrained=pretrained)
    whole = isinstance(made, Classifier)
    normalize, body = (made.normalize, nn.Sequential(made.body, made.head)) if whole else made.children()
    size = made.preprocessing.size
    features = _features(body, shape or (3, size, size))
    rows = _texts(Path(texts), features, num_classes) if texts else torch.ones(num_classes or 1, features)
    found = Classifier(body, ZeroShotHead(rows, scale), normalize)
    found.preprocessing = made.preprocessing
    return lora(found, lora_rank) if lora_rank else found


@torch.no_grad()
def _features(body: nn.Module, shape: Shape) -> int:
    """Return the number of features that a body gives for an image."""
    with eval_mode(body):
        return int(body(torch.zeros(1, *shape)).shape[1])


def _texts(path: Path, features: int, classes: int | None) -> Tensor:
    """Read text embeddings, and check that there are as many as classes, of as many numbers as features."""
    with reading(path, "write the text embeddings with numpy.save"), open_file(path) as file:
        held = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False)).float()
    wanted = (classes or len(held), features)
    if tuple(held.shape) != wanted:
        raise UserError(
            f"{path} holds embeddings of shape {tuple(held.shape)}, and wanted are {wanted}, one for each class with "
            "the features of the encoder: embed the names of the classes by the text encoder that belongs to it"
        )
    return held
