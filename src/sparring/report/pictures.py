"""Images as data of a page: the pictures of a gallery on sheets, and figures that lie on the disk. Imports no torch."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.reading import read_bytes, reading
from ..records.gallery import Array, Gallery
from .evaluated import Plain

SIDE = 96
"""The largest side of an image on a sheet, in pixels; larger ones are made smaller."""
COLUMNS = 12
LARGEST_FIGURE = 600_000  # bytes
LOWER, UPPER = (0.15, 0.45, 0.80), (0.85, 0.37, 0.10)  # blue and orange, which all readers tell apart


def sheets(gallery: Gallery) -> Plain:
    """The images of a gallery on three sheets, `COLUMNS` in a row: clean, perturbation and adversarial, as data URIs.

    The perturbation of each image is scaled by its own largest value. Without colours in the image, pixels that became
    darker are blue and those that became lighter are orange; with colours, no change is grey.
    """
    clean, adversarial = gallery.clean.astype(np.float32), gallery.adversarial.astype(np.float32)
    delta = adversarial - clean
    largest = np.abs(delta).max(axis=(1, 2, 3), initial=0)
    scaled = delta / np.maximum(largest, 1e-8)[:, None, None, None]
    drawn = {"clean": clean, "perturbation": _signed(scaled), "adversarial": adversarial}
    parts = {name: _small(images) for name, images in drawn.items()}
    height, width = parts["clean"].shape[1:3]
    found = {name: uri(_sheet(images)) for name, images in parts.items()}
    return {"width": width, "height": height, "columns": COLUMNS, "largest": largest.tolist(), **found}


def _signed(scaled: Array) -> Array:
    """Perturbations in [-1, 1] as images `[G, C, H, W]`."""
    if scaled.shape[1] != 1:
        return 0.5 + scaled / 2
    size = np.abs(scaled)
    ends = np.where(scaled < 0, np.reshape(LOWER, (1, 3, 1, 1)), np.reshape(UPPER, (1, 3, 1, 1)))
    mixed: Array = 1 - size * (1 - ends)
    return mixed


def _small(images: Array) -> Array:
    """Images `[G, C, H, W]` in [0, 1] as bytes `[G, H, W, 3]` of at most `SIDE` pixels."""
    channels = images[:, :3] if images.shape[1] >= 3 else np.repeat(images[:, :1], 3, axis=1)
    colours = np.round(255 * np.clip(np.nan_to_num(channels), 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    height, width = colours.shape[1:3]
    if max(height, width) <= SIDE:
        return colours
    size = (max(1, round(width * SIDE / max(height, width))), max(1, round(height * SIDE / max(height, width))))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in colours])


def _sheet(images: Array) -> Image.Image:
    count, height, width = images.shape[:3]
    sheet = np.zeros((max(1, math.ceil(count / COLUMNS)) * height, COLUMNS * width, 3), np.uint8)
    for place, image in enumerate(images):
        top, left = divmod(place, COLUMNS)
        sheet[top * height : (top + 1) * height, left * width : (left + 1) * width] = image
    return Image.fromarray(sheet)


def uri(image: Image.Image) -> str:
    """An image as a data URI: a WebP file without loss, or PNG where Pillow writes no WebP."""
    out, options = io.BytesIO(), {"format": "WEBP", "lossless": True, "method": 4}
    try:
        image.save(out, **options)  # type: ignore[arg-type]
    except (KeyError, OSError):
        out, options = io.BytesIO(), {"format": "PNG", "optimize": True}
        image.save(out, **options)  # type: ignore[arg-type]
    return _data(f"image/{str(options['format']).lower()}", out.getvalue())


def picture(path: Path) -> str | None:
    """A figure on the disk as a data URI; None if it is missing or too large for a page."""
    if not path.is_file() or path.stat().st_size > LARGEST_FIGURE:
        return None
    with reading(path, "draw it again"):
        content = read_bytes(path, LARGEST_FIGURE)
        kind: Any = Image.open(io.BytesIO(content)).format  # raises for a file that is no image
    return _data(f"image/{str(kind).lower()}", content)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
