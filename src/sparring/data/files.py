"""Location of the files of a data set: a given folder, a system folder, the cache, or else a download."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.errors import UserError
from ..core.reading import reading


class Remote(NamedTuple):
    """A file to download: its name, the address of its folder, and its MD5 checksum."""

    name: str
    base: str
    md5: str


def cache_folder() -> Path:
    """Return `$SPARRING_DATA`, or `sparring` in the cache folder of the user."""
    import pooch

    return Path(os.environ.get("SPARRING_DATA") or pooch.os_cache("sparring"))


def locate(remote: Remote, folder: str | None, dataset: str, elsewhere: Sequence[Path] = ()) -> Path:
    """Return the path of a data file, downloaded into the cache if it is nowhere else.

    If `folder` is given, only that folder is searched. An unpacked file, without `.gz`, is accepted too. The checksum
    of a downloaded file is verified each time.
    """
    home = cache_folder() / dataset
    for place in [Path(folder)] if folder else [*elsewhere, home]:
        for name in (remote.name, remote.name.removesuffix(".gz")):
            if os.path.isfile(place / name):  # unlike Path.is_file, it never raises
                downloaded = not folder and place == home and name == remote.name
                return _unchanged(place / name, remote) if downloaded else place / name
    if folder:
        raise UserError(f"there is no {remote.name} in {folder}: name the folder that holds it, or none to download it")
    return _download(remote, home, dataset)


def _unchanged(path: Path, remote: Remote) -> Path:
    with reading(path, "delete it, and it is downloaded again"), path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != remote.md5:
            raise ValueError(f"its MD5 sum is {found}, not {remote.md5}")
    return path


def _download(remote: Remote, home: Path, dataset: str) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:  # pooch writes to a temporary file and compares the checksum before it moves it into place
        return Path(pooch.retrieve(remote.base + remote.name, f"md5:{remote.md5}", fname=remote.name, path=home))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        raise UserError(
            f"{remote.name} could not be downloaded from {remote.base} ({type(error).__name__}): put it into {home}, "
            f"or name its folder with --data.folder, or put a folder `{dataset}` that holds it under $SPARRING_DATA"
        ) from error
