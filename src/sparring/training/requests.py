"""Requests by which one of several processes makes all of them do something after a step, such as stop."""

import torch
from torch import Tensor

from ..core import ranks
from ..core.errors import UserError

STOP, SAVE = "stop", "save"
_NAMES = (STOP, SAVE)


class Requests:
    """Brings the requests of each process to all, so that all act after the same step.

    One process decides for itself, at once. Several learn of each other's requests with the sums of an update, which
    are read while the next step is prepared: all act one or two steps later.
    """

    def __init__(self) -> None:
        self._own = dict.fromkeys(_NAMES, False)
        self._sent: Tensor | None = None
        self._heard: tuple[int, tuple[bool, ...]] = (0, ())
        self._answered = dict.fromkeys(_NAMES, 0)

    def send(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return the requests of this process as numbers, to be averaged over the processes; none with one process."""
        if ranks.world() == 1:
            return ()
        # filled on the device, as a copy from here would wait for a GPU; the last one shows that all were averaged
        values = [*(float(self._own[name]) for name in _NAMES), float(ranks.first())]
        self._sent = torch.stack([torch.full((), value, device=device) for value in values])
        return (self._sent,)

    @property
    def sent(self) -> Tensor | None:
        """The averages of the requests of the last update; None with one process."""
        return self._sent

    def hear(self, step: int, averages: tuple[float, ...]) -> None:
        """Take note of the averages that were sent in the update which completed `step` steps.

        Raises:
            UserError: If they were not averaged.
        """
        *requests, first = averages
        if abs(first * ranks.world() - 1) > 0.5 / ranks.world():
            raise UserError(
                "an update of your own did not sum over the processes: it has to call sparring.training.backward once, "
                "with the closure that it was given"
            )
        self._heard = step, tuple(request > 0 for request in requests)

    def agreed(self, name: str, request: bool, step: int) -> bool:
        """Return True if this process (with one), or any process, has a request, which is then fulfilled by all.

        Args:
            name: `STOP` or `SAVE`.
            request: whether this process has the request.
            step: number of completed steps.
        """
        if ranks.world() == 1:
            return request
        sent_at, heard = self._heard
        granted = bool(heard) and heard[_NAMES.index(name)] and sent_at > self._answered[name]
        if granted:
            self._answered[name] = step  # requests on their way were for the same
        self._own[name] = request and not granted
        return granted
