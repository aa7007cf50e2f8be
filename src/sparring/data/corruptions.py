"""Test images with common corruptions, from files in the format of CIFAR-10-C."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.errors import UserError
from ..core.reading import Array
from ..core.types import LabelledData
from .array_files import map_arrays
from .mapped import MappedImages

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions that a benchmark averages over; the files hold four more, for development."""
SEVERITIES = range(1, 6)


@dataclass(frozen=True, slots=True)
class CorruptedImages:
    """The test images of a data set with 15 common corruptions at five severities, from files such as CIFAR-10-C's.

    The folder holds CORRUPTION.npy, bytes `[5 N, H, W, C]`, the N test images in their order at severity 1, then all at
    severity 2, and so on, and labels.npy, `[5 N]` or `[N]`. An image is read when it is needed.

    Args:
        folder: folder of the files.

    References:
        Common corruptions: https://arxiv.org/abs/1903.12261.
    """

    folder: str

    def load(self, test: LabelledData) -> dict[str, LabelledData]:
        """Return the corrupted versions of test images.

        Args:
            test: the clean test images, or the first of them.

        Returns:
            The images by name, as "fog-3" for fog at severity 3, with the rows of `test`.

        Raises:
            UserError: when a file is missing or damaged, or belongs to other test images.
        """
        held = map_arrays(Path(self.folder), (*CORRUPTIONS, "labels"))
        labels = np.asarray(held["labels"])
        count = len(held[CORRUPTIONS[0]]) // len(SEVERITIES)
        if len(labels) not in (count, count * len(SEVERITIES)):
            raise UserError(
                f"{self.folder} has {len(labels)} labels for 5 x {count} images: wanted is a label for each"
            )
        self._check(test, labels[:count])
        self._check_alike(test, held["jpeg_compression"])
        for name in CORRUPTIONS:
            self._check_images(name, held[name].dtype, held[name].shape, count)
        return {
            f"{name}-{severity}": MappedImages(
                held[name], test.y.cpu(), test.classes, torch.arange(len(test)) + (severity - 1) * count
            ).to(test.y.device)
            for name in CORRUPTIONS
            for severity in SEVERITIES
        }

    def _check(self, test: LabelledData, labels: Array) -> None:
        if len(test) > len(labels) or not np.array_equal(labels[: len(test)], test.y.cpu().numpy()):
            raise UserError(
                f"{self.folder} holds corruptions of {len(labels)} images with other labels than those of the "
                f"{len(test)} test images: name the folder that was made from these, in their order"
            )

    def _check_alike(self, test: LabelledData, mildest: Array) -> None:
        """Check that the mildest JPEG compression of the first images looks like them; labels alone do not show it."""
        few = test[: min(16, len(test))].x.float().permute(0, 2, 3, 1).cpu().numpy()
        if mildest.ndim != 4 or not len(few) or mildest.shape[1:] != few.shape[1:]:
            return
        with np.errstate(invalid="ignore"):  # an image of one colour has no correlation
            alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(few, mildest, strict=False)]
        if np.nanmedian([1.0, *alike]) < 0.5:
            raise UserError(
                f"{self.folder} holds corruptions of other images than the {len(test)} test images, though of the same "
                "labels: are these rotated or inverted? Name the folder that was made from these"
            )

    def _check_images(self, name: str, kind: "np.dtype[np.generic]", shape: tuple[int, ...], count: int) -> None:
        if kind != np.uint8 or len(shape) != 4 or shape[0] != count * len(SEVERITIES):
            raise UserError(
                f"{self.folder}: {name}.npy holds {kind} {shape}, wanted are bytes [{count * len(SEVERITIES)}, height, "
                "width, channels]"
            )
