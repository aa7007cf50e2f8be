"""The fields of a run's files that are checked when they are read; the files may hold more. Needs no torch."""

from typing import Any, Literal, NotRequired, TypedDict


class HeldOut(TypedDict):
    """The checked fields of an accuracy on held-out images."""

    clean: float
    robust: float


class Row(TypedDict):
    """The checked fields of a line of metrics."""

    step: int
    epoch: float
    lr: NotRequired[float]
    gradient: NotRequired[float]
    terms: NotRequired[dict[str, float]]
    held_out: NotRequired[HeldOut]
    guard: NotRequired[dict[str, Any]]


class Status(TypedDict):
    """Outcome of a run."""

    finished: bool
    step: int
    best: dict[str, float]
    selected: NotRequired[str]
    stopped: NotRequired[str]


class Counted(TypedDict):
    """The checked fields of an accuracy."""

    examples: int


class Certified(TypedDict):
    """The checked fields of a certified accuracy."""

    images: int


class Begun(TypedDict):
    """The settings of a run that say how it computes; older runs have only the first two."""

    precision: str
    compile: str
    update_precision: NotRequired[str]
    capture: NotRequired[bool]
    deterministic: NotRequired[bool]
    accumulate: NotRequired[int]
    batch_norm: NotRequired[str]
    recompute: NotRequired[bool]
    notes: NotRequired[list[str]]


class Event(TypedDict):
    """An event that the guard detected, and its action."""

    step: int
    action: str
    what: str


class Session(TypedDict):
    """The checked fields of a start or a resumption."""

    started: str
    commit: str | None
    platform: str
    device: str
    threads: int
    versions: dict[str, str]


class Sessions(TypedDict):
    """All starts and resumptions of a run."""

    sessions: list[Session]


class Events(TypedDict):
    """All events of the guard."""

    events: list[Event]


class Check(TypedDict):
    """The fields of a check of an audit."""

    name: str
    figure: float | None
    meaning: str
    verdict: Literal["pass", "warn", "fail", "skip"]
    threshold: str
    advice: str


class Audited(TypedDict):
    """The checked fields of an audit."""

    passed: bool
    checks: list[Check]
    threat: NotRequired[str]
    examples: NotRequired[int]


class About(TypedDict):
    """The checked fields of the metadata of a weights file."""

    recipe: NotRequired[dict[str, Any]]
    step: NotRequired[int]
    classes: NotRequired[list[str]]
    shape: NotRequired[list[int]]
    sha256: NotRequired[str]
