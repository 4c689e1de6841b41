"""When the next sync run is due, and why: pure decisions on the monotonic clock.

New events are gathered: the first begins a wait of `delay`, which GATHERED events end early, and one request then
carries them all. On a metered link that wait is `metered_delay`. The start, a new link, a retry and a request do not
wait for more events. In quiet hours only a request makes a run.
"""

from dataclasses import dataclass
from typing import Final

START_S: Final = 3.0
"""The longest wait of the first run, for what was pending when the service started."""
GATHERED: Final = 500
"""This many events are worth a request of their own: gathering more would save hardly a byte an event."""
LINK_RETRIES_S: Final = (1.0, 2.0)
"""The waits of a new link's next attempts if the first fails: names may resolve only after a moment."""
LINK_CHECK_S: Final = 60.0
"""How often an agent without a link looks for one, in case an event of the kernel was missed."""
QUIET_MOST_S: Final = 24 * 3600.0
"""The longest that quiet hours hold a run back. They are read from a clock that may be set wrong again and again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A moment (monotonic seconds), and why then, as a technician reads it."""

    at: float
    why: str


class Schedule:
    """What has happened, and so what is due. Not thread-safe; all times are monotonic seconds."""

    def __init__(
        self, *, now: float, delay: float, interval: float, first: float = 0.0, metered_delay: float | None = None
    ) -> None:
        self._delay = delay
        self._metered_delay = delay if metered_delay is None else max(delay, metered_delay)
        self._metered = False
        self._interval = interval
        self._timer = Due(at=now + first, why="the service has started")
        self._requested = False
        self._recorded: float | None = None
        self._gathered = 0
        self._link: float | None = None
        self._link_attempts = 0
        self._retry: Due | None = None
        self._floor = now
        self._quiet: Due | None = None
        self._quiet_since: float | None = None

    def request(self) -> None:
        """Make a run due now, whatever else was to be waited for."""
        self._requested = True

    def recorded(self, now: float, events: int = 1) -> bool:
        """Make a run due for new events, after a time in which more may come; return whether that changes when."""
        before = self._recorded, self._gathered >= GATHERED
        self._recorded = now if self._recorded is None else self._recorded
        self._gathered += events
        return before != (self._recorded, self._gathered >= GATHERED)

    def link_up(self, now: float) -> None:
        """Make a run due for a new link, but not before a time the receiver named."""
        self._link = now
        self._link_attempts = 0

    def set_metered(self, metered: bool) -> None:
        """Note whether the link is paid for by its bytes."""
        self._metered = metered

    def set_quiet(self, now: float, quiet: Due | None) -> None:
        """Note the end of the quiet hours that hold runs back at present; None if there are none."""
        if quiet is None:
            self._quiet = self._quiet_since = None
            return
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        self._quiet = Due(at=min(quiet.at, self._quiet_since + QUIET_MOST_S), why=quiet.why)

    def begin(self) -> None:
        """Clear what the run that begins now will do."""
        if self._link is None:
            self._link_attempts = len(LINK_RETRIES_S)
        self._requested = False
        self._recorded = self._link = self._retry = self._quiet_since = None
        self._gathered = 0

    def succeed(self, now: float, *, waiting: bool, offline: bool) -> None:
        """Note a run that succeeded, or found no link and did nothing."""
        self._retry = None
        self._floor = now
        if not waiting:
            self._recorded = None
            self._gathered = 0
        if offline:
            self._metered = False
            self._timer = Due(at=now + min(LINK_CHECK_S, self._interval), why="there is no link; PiSync looks for one")
            self._try_link_again(now)
        else:
            self._timer = Due(at=now + self._interval, why="regular check")

    def fail(self, now: float, *, wait: float, retry_after: float | None, why: str) -> None:
        """Note a run that failed: the next is due after `wait` seconds; before `retry_after` only on request."""
        self._retry = Due(at=now + wait, why=why)
        self._floor = now + min(wait, retry_after or 0.0)
        self._try_link_again(now)

    def due(self) -> Due:
        """Return the next run."""
        if self._requested:
            return Due(at=0.0, why="it was requested")
        candidates = [self._retry or self._timer]
        if self._recorded is not None and self._retry is None:
            gathered = self._events_due(self._recorded)
            # The regular check would end the longer wait of a metered link.
            candidates = [gathered] if self._metered else [*candidates, gathered]
        if self._link is not None:
            candidates.append(Due(at=max(self._link, self._floor), why="a link has come up"))
        first = min(candidates, key=lambda due: due.at)
        return first if self._quiet is None or self._quiet.at <= first.at else self._quiet

    def starts_over(self, now: float) -> bool:
        """Return whether the wait between retries ends early, on request or because a link has come up."""
        if self._requested:
            return True
        held = self._quiet is not None and now < self._quiet.at
        return self._link is not None and not held and max(self._link, self._floor) <= now

    def _events_due(self, since: float) -> Due:
        if self._gathered >= GATHERED:
            return Due(at=since, why="there are many new events to send")
        if self._metered:
            return Due(at=since + self._metered_delay, why="there are new events to send; the link is metered")
        return Due(at=since + self._delay, why="there are new events to send")

    def _try_link_again(self, now: float) -> None:
        """Make another attempt due soon if the link is new."""
        if self._link is None and self._link_attempts < len(LINK_RETRIES_S):
            self._link = now + LINK_RETRIES_S[self._link_attempts]
            self._link_attempts += 1
