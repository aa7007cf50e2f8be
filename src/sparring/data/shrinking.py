"""Pictures in folders made smaller once, so that training need not decode large ones again and again."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..acceleration.process import usable_cores
from ..core.errors import UserError, need_whole
from ..core.writing import write_bytes
from .looks import in_colour, opened, tried

QUALITY = 95
"""Quality of the JPEG files that are written, of 100; as usual, their colours have half the resolution."""
_AT_A_TIME = 1024
_ENDINGS = (".jpg", ".jpeg")


class Shrunk(NamedTuple):
    """Number of pictures `written` now and `kept` from an earlier time, and why others are `unreadable`."""

    written: int
    kept: int
    unreadable: list[str]


def shrink_pictures(
    folder: Path | str,
    out: Path | str,
    side: int,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shrunk:
    """Write the pictures below a folder to another one, as JPEG, with a shorter side of at most `side` pixels.

    Folders are kept. Pictures are resized by Lanczos's filter, and never enlarged; a JPEG file that is small enough is
    copied. A picture that is in `out` already is not written again, so that the same call continues one that was
    interrupted.

    Args:
        folder: The folder of the pictures, such as that of an `ImageStream`; what is hidden is left out.
        out: The folder to write to, outside of `folder`.
        side: Largest shorter side of the written pictures in pixels, at least 1.
        workers: Number of pictures that are worked on at the same time; None for one per core.
        on_progress: Called with the number of pictures that are done, and of all.

    Returns:
        How many pictures were written and kept, and a sentence for each file that is no picture.

    Raises:
        UserError: If `folder` holds no files, `out` lies in it, two pictures would get one name, or a number is out of
            its range.
    """
    folder, out = Path(folder), Path(out)
    need_whole("side", side)
    need_whole("workers", workers if workers is not None else 1)
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"the small pictures cannot be written to {out}, which lies in {folder}: name another folder")
    targets = _targets(folder, out)
    _need_side(targets, side)
    written = kept = 0
    unreadable: list[str] = []
    todo = iter(targets.items())
    with ThreadPoolExecutor(workers or usable_cores()) as pool:  # decoder and encoder release Python's lock
        while few := list(islice(todo, _AT_A_TIME)):
            found = list(pool.map(lambda pair: _shrunk(pair[0], pair[1], side), few))
            written, kept = written + found.count("written"), kept + found.count("kept")
            unreadable += [reason for reason in found if reason not in ("written", "kept")]
            on_progress(written + kept + len(unreadable), len(targets))
    return Shrunk(written, kept, unreadable)


def _targets(folder: Path, out: Path) -> dict[Path, Path]:
    """Return the file of each picture below `folder`, by the file that it will be written to."""
    found: dict[Path, Path] = {}
    for source in sorted(_files(folder)):
        name = source.name if source.suffix.lower() in _ENDINGS else f"{source.name}.jpg"
        target = out / source.relative_to(folder).with_name(name)
        if target in found:
            raise UserError(f"{found[target]} and {source} would both become {target}: rename one of them")
        found[target] = source
    if not found:
        raise UserError(f"there are no files in {folder}: name a folder of pictures")
    return found


def _need_side(targets: dict[Path, Path], side: int) -> None:
    """Raise `UserError` if the first small picture that is there already was made with another side."""
    there = next((target for target in targets if target.exists()), None)
    if there is None:
        return
    sizes = [tried(path, _shorter_side) for path in (there, targets[there])]
    if all(isinstance(size, int) for size in sizes) and sizes[0] != min(side, int(sizes[1])):
        raise UserError(
            f"{there} has a shorter side of {sizes[0]} pixels, not {min(side, int(sizes[1]))}, and was made with "
            "another side: name another folder, or delete that one"
        )


def _shorter_side(path: Path) -> int:
    with opened(path) as image:
        return min(image.size)


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, also behind links to folders, without what is hidden."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(here))
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(here, name)) not in seen
        ]
        yield from (Path(here, name) for name in files if name[0] != ".")


def _shrunk(target: Path, source: Path, side: int) -> str:
    """Write a small picture. Return "written", "kept" if it is there already, or the reason why it cannot be read."""
    if target.exists():
        return "kept"
    content = tried(source, lambda path: _small(path, side))
    if isinstance(content, str):
        return content
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
    return "written"


def _small(path: Path, side: int) -> bytes:
    """Return a picture as the content of a JPEG file."""
    from PIL import Image

    with opened(path) as image:
        width, height = image.size
        by = side / min(width, height)
        if by >= 1 and image.format == "JPEG":
            image.load()  # raises an error if the file is damaged
            return path.read_bytes()
        size = (max(side, round(width * by)), max(side, round(height * by))) if by < 1 else image.size
        raw = io.BytesIO()
        in_colour(image).resize(size, Image.Resampling.LANCZOS).save(raw, "JPEG", quality=QUALITY)
        return raw.getvalue()
