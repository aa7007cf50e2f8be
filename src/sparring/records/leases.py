"""Leases on work in a shared folder: of many processes, on any machines, one does each piece. Needs no torch.

A process holds a lease as long as it gives signs of life; then another may take over. The n-th attempt at a piece of
work is the file `NAME/n.json`. The file system makes a file for one process only, and no attempt is ever deleted, so
whoever makes the next number has the lease, however many try to take over from a process that died. No lock of the
system is involved: those are unreliable on network file systems.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, TypedDict

from ..core.reading import LARGEST_JSON, conform, parse_json, read_bytes
from ..core.writing import write_json

BEAT = 15.0
"""Seconds between two signs of life of a process that works."""
PATIENCE = 180.0
"""Seconds without a sign of life after which a process on another machine counts as dead.

A file server keeps the locks of a machine that died for some 90 seconds, and so long its run cannot be continued.
"""

_TIME = "%Y-%m-%dT%H:%M:%S%z"

State: TypeAlias = Literal["working", "done", "failed", "interrupted"]


class Written(TypedDict):
    """An attempt at a job as its file describes it: its state, its beginning, its failure, and its owner.

    `born` tells the process from a later one of the same number, and `place` says where that number is valid.
    """

    state: State
    started: str
    why: str
    host: str
    process: int
    born: str
    place: str
    device: str
    command: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a piece of work.

    Args:
        number: Its number, from 1 on.
        heard: Time of the last sign of life, by the clock of the file system.
        written: Content of its file; None if that is not complete.
    """

    number: int
    heard: float
    written: Written | None

    @property
    def state(self) -> State:
        """The state of the attempt, as its process last wrote it."""
        return "working" if self.written is None else self.written["state"]

    @property
    def why(self) -> str:
        """The reason of a failure; "" without one."""
        return "" if self.written is None else self.written["why"]

    def plain(self) -> dict[str, Any]:
        """Return the attempt as JSON."""
        shown = ("started", "host", "process", "device")
        written = {key: value for key, value in (self.written or {}).items() if key in shown}
        return {"number": self.number, **written, "heard": time.strftime(_TIME, time.localtime(self.heard))}

    def at_work(self, now: Callable[[], float]) -> bool:
        """Return True unless the attempt has ended, or its process has: it is gone, or silent for `PATIENCE` seconds.

        `now` returns the time by the clock of the file system.
        """
        if self.state != "working":
            return False
        if self.written is not None and self.written["place"] == _place() and os.name == "posix":
            return _born(self.written["process"]) == self.written["born"]
        return now() - self.heard < PATIENCE

    def of(self, command: str) -> bool:
        """Return True for an attempt of a process of this command."""
        return self.written is not None and self.written["command"] == command

    def __str__(self) -> str:
        """Return who works where since when."""
        if self.written is None:
            return "an unknown process"
        device = f" ({self.written['device']})" if self.written["device"] else ""
        return f"process {self.written['process']} on {self.written['host']}{device} since {self.written['started']}"


class Leases:
    """The leases of a folder.

    Args:
        folder: Folder of the leases; made with the first.
        command: A word that all processes of one command have in common, and no others.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        self.folder = folder
        self.command = command

    def last(self, name: str) -> Attempt | None:
        """Return the newest attempt at a piece of work; None if there was none."""
        number = _newest(self.folder / name)
        return _read(self.folder / name / f"{number}.json", number) if number else None

    def take(self, name: str, last: Attempt | None, device: str = "") -> "Lease | None":
        """Take a piece of work, unless somebody has done so since `last`.

        Args:
            name: Name of the piece of work.
            last: The newest attempt that the caller knows, by which it has decided that nobody is at work.
            device: The device to work on, for others to see.

        Returns:
            The lease; None if another process was first.
        """
        path = self.folder / name / f"{1 if last is None else last.number + 1}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        process = os.getpid()
        written: Written = {
            "state": "working",
            "started": time.strftime(_TIME),
            "why": "",
            "host": socket.gethostname(),
            "process": process,
            "born": _born(process),
            "place": _place(),
            "device": device,
            "command": self.command,
        }
        try:
            with path.open("x") as file:
                json.dump(written, file)
        except FileExistsError:
            return None
        return Lease(path, written)

    def numbers(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many attempts there were at each piece of work."""
        return {name: _newest(self.folder / name) for name in names}

    def deaths(self, name: str, since: int) -> int:
        """Return how many attempts after number `since`, but the newest, never said how they ended."""
        numbers = range(since + 1, _newest(self.folder / name))
        return sum(_read(self.folder / name / f"{number}.json", number).state == "working" for number in numbers)

    def now(self) -> float:
        """Return the time by the clock of the file system, which may differ from that of this machine."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime


class Lease:
    """A lease of this process. Within its context, a thread gives signs of life.

    The attempt counts as interrupted unless `end` says otherwise. If another process has taken over, as this one was
    silent for too long, this one ends at once: two must not do the same work.
    """

    def __init__(self, path: Path, written: Written) -> None:
        self._path, self._written = path, written
        self._ended = threading.Event()

    def __enter__(self) -> "Lease":
        self._written["state"] = "interrupted"
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def end(self, state: Literal["done", "failed"], why: str = "") -> None:
        """Say what became of the work; others see it once the context ends."""
        self._written |= {"state": state, "why": why}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._ended.set()
        write_json(self._path, self._written)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self._path)
                if _newest(self._path.parent) > int(self._path.stem):
                    _give_way(self._path.parent.name)
            except OSError:  # a file server may be away for a while
                continue


def _give_way(name: str) -> NoReturn:
    sys.stderr.write(
        f"sparring: another process has taken over {name}, as this one gave no sign of life for {PATIENCE:.0f} "
        "seconds: it ends here, and its command can be given again\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _newest(folder: Path) -> int:
    """Return the number of the newest attempt, 0 if there is none."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    numbers = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _read(path: Path, number: int) -> Attempt:
    try:
        written: Written | None = parse_json(read_bytes(path, LARGEST_JSON))
        conform(written, Written, "it")
    except (ValueError, RecursionError):  # its process is writing it, or died while it did
        written = None
    return Attempt(number, path.stat().st_mtime, written)


def _place() -> str:
    """Return where numbers of processes are valid: the host since its last start, and its namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not on Linux
        return socket.gethostname()


def _born(process: int) -> str:
    """Return when a process of this machine was born, as far as the system tells; "gone" if it has ended."""
    if os.name != "posix":
        return "unknown"  # elsewhere signal 0 is no question
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return "gone"
    except OSError:  # it belongs to somebody else
        pass
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "alive"
    return "gone" if state in "ZX" else rest[18]
