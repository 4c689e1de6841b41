"""When the next sync run is due, and why: pure decisions on the monotonic clock."""

from dataclasses import dataclass
from typing import Final

LINK_SETTLE_S: Final = 2.0
"""A new link needs a moment until names resolve."""
LINK_CHECK_S: Final = 60.0
"""How often an agent without a link looks for one, in case an event of the kernel was missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """The next run: when (monotonic seconds), and why then, as a technician reads it."""

    at: float
    why: str


class Schedule:
    """What has happened, and so what is due. Not thread-safe; all times are monotonic seconds."""

    def __init__(self, *, now: float, delay: float, interval: float, first: float = 0.0) -> None:
        self._delay = delay
        self._interval = interval
        self._timer = Due(at=now + first, why="the service has started")
        self._requested = False
        self._recorded: float | None = None
        self._link: float | None = None
        self._retry: Due | None = None
        self._floor = now

    def request(self) -> None:
        """Make a run due now, whatever else was to be waited for."""
        self._requested = True

    def recorded(self, now: float) -> None:
        """Make a run due for new events, after a moment in which more may come."""
        if self._recorded is None:
            self._recorded = now + self._delay

    def link_up(self, now: float) -> None:
        """Make a run due for a new link, but not before a time the receiver named."""
        self._link = now + LINK_SETTLE_S

    def begin(self) -> None:
        """Clear what the run that begins now will do."""
        self._requested = False
        self._recorded = self._link = self._retry = None

    def succeed(self, now: float, *, waiting: bool, offline: bool) -> None:
        """Note a run that succeeded, or found no link and did nothing."""
        self._retry = None
        self._floor = now
        if not waiting:
            self._recorded = None
        if offline:
            self._timer = Due(at=now + min(LINK_CHECK_S, self._interval), why="there is no link; PiSync looks for one")
        else:
            self._timer = Due(at=now + self._interval, why="regular check")

    def fail(self, now: float, *, wait: float, retry_after: float | None, why: str) -> None:
        """Note a run that failed: the next is due after `wait` seconds; before `retry_after` only on request."""
        self._retry = Due(at=now + wait, why=why)
        self._floor = now + min(wait, retry_after or 0.0)

    def due(self) -> Due:
        """Return the next run."""
        if self._requested:
            return Due(at=0.0, why="it was requested")
        candidates = [self._retry or self._timer]
        if self._link is not None:
            candidates.append(Due(at=max(self._link, self._floor), why="a link has come up"))
        if self._recorded is not None and self._retry is None:
            candidates.append(Due(at=self._recorded, why="there are new events to send"))
        return min(candidates, key=lambda due: due.at)

    def starts_over(self, now: float) -> bool:
        """Return whether the wait between retries ends early, on request or because a link has come up."""
        return self._requested or (self._link is not None and max(self._link, self._floor) <= now)
