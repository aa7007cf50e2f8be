"""What the files of a run hold, as far as it is checked when they are read; they may hold more. Needs no torch."""

from typing import Any, NotRequired, TypedDict


class HeldOut(TypedDict):
    clean: float
    robust: float


class Row(TypedDict):
    """What is checked of a line of metrics."""

    step: int
    epoch: float
    lr: NotRequired[float]
    gradient: NotRequired[float]
    terms: NotRequired[dict[str, float]]
    held_out: NotRequired[HeldOut]
    guard: NotRequired[dict[str, Any]]


class Status(TypedDict):
    """How a run ended."""

    finished: bool
    step: int
    best: dict[str, float]
    selected: NotRequired[str]
    stopped: NotRequired[str]


class Counted(TypedDict):
    """What is checked of an accuracy."""

    examples: int


class Begun(TypedDict):
    """The precision of the attacks and whether they are compiled, as the run was begun."""

    precision: str
    compile: str


class Event(TypedDict):
    """What the guard saw and did."""

    step: int
    action: str
    what: str


class Session(TypedDict):
    """What is checked of a start or a resumption."""

    started: str
    commit: str | None
    platform: str
    device: str
    threads: int
    versions: dict[str, str]


class Sessions(TypedDict):
    sessions: list[Session]


class Events(TypedDict):
    events: list[Event]


class About(TypedDict):
    """What is checked of what weights say that they are."""

    recipe: NotRequired[dict[str, Any]]
    step: NotRequired[int]
    classes: NotRequired[list[str]]
    shape: NotRequired[list[int]]
    sha256: NotRequired[str]
