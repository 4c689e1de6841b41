"""When the next sync run is due, and why: pure decisions on the monotonic clock."""

from dataclasses import dataclass
from typing import Final

LINK_SETTLE_S: Final = 2.0
"""A new link needs a moment until names resolve."""
LINK_LOOK_S: Final = 60.0
"""How often an agent without a link looks for one, should the kernel's notice have been missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """The next run: when (monotonic seconds), and why then, in words for a technician."""

    at: float
    why: str


class Agenda:
    """What has happened, and so what is due. Not thread-safe; all times are monotonic seconds."""

    def __init__(self, *, now: float, delay: float, interval: float, first: float = 0.0) -> None:
        self._delay = delay
        self._interval = interval
        self._timer = Due(at=now + first, why="the service has started")
        self._asked = False
        self._news: float | None = None
        self._link: float | None = None
        self._retry: Due | None = None
        self._floor = now
        self._offline = False

    def ask(self) -> None:
        """Somebody wants a run now: nothing holds it back."""
        self._asked = True

    def news(self, now: float) -> None:
        """Something was recorded: it is sent after a moment in which more may come."""
        if self._news is None:
            self._news = now + self._delay

    def link(self, now: float) -> None:
        """A link has come up: worth a try at once, but not before a time the receiver named."""
        self._link = now + LINK_SETTLE_S

    def begin(self) -> None:
        """A run begins: what was asked for is being done."""
        self._asked = False
        self._news = self._link = self._retry = None

    def succeed(self, now: float, *, waiting: bool, offline: bool) -> None:
        """A run went well, or found no link and did nothing."""
        self._retry = None
        self._floor = now
        self._offline = offline
        if not waiting:
            self._news = None
        if offline:
            self._timer = Due(at=now + min(LINK_LOOK_S, self._interval), why="there is no link; PiSync looks for one")
        else:
            self._timer = Due(at=now + self._interval, why="it looks at least this often")

    def fail(self, now: float, *, wait: float, retry_after: float | None, why: str) -> None:
        """A run failed: the next one after `wait` seconds; before `retry_after` only if somebody asks."""
        self._offline = False
        self._retry = Due(at=now + wait, why=why)
        self._floor = now + min(wait, retry_after or 0.0)

    def due(self) -> Due:
        """The next run as things stand."""
        if self._asked:
            return Due(at=0.0, why="it was asked for")
        candidates = [self._retry or self._timer]
        if self._link is not None:
            candidates.append(Due(at=max(self._link, self._floor), why="a link has come up"))
        if self._news is not None and self._retry is None:
            candidates.append(Due(at=self._news, why="there is something new to send"))
        return min(candidates, key=lambda due: due.at)

    def starts_over(self, now: float) -> bool:
        """Whether a wait between retries is over early, because somebody asked or a link has come up."""
        return self._asked or (self._link is not None and max(self._link, self._floor) <= now)
