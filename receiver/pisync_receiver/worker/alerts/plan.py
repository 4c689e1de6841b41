"""What operators are told now, and what waits: decisions without side effects, which tests can read.

Alerts wait a short window together, because devices of one place fail together. If more than a few have come by then,
they go as one digest, and while digests go the next waits longer. Quiet hours hold everything back, and what they held
goes as one digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from enum import Enum
from itertools import groupby
from typing import Final

from pisync_receiver.worker.alerts.quiet import QuietHours

FAILING: Final = "failing"
RECOVERED: Final = "recovered"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A device's streak of failures reached the threshold (`failing`), or ended (`recovered`)."""

    id: int
    device_id: str
    site: str | None
    kind: str
    at_ms: int
    consecutive_failures: int
    failing_since_ms: int | None
    last_errors: str | None = None
    """JSON text of an object, code to count."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When alerts go and how. Times are seconds."""

    quiet_hours: QuietHours | None
    zone: tzinfo
    digest_over: int
    """More devices than this at once go as one digest."""
    digest_window: float
    """How long alerts wait for others."""
    digest_every: float
    """The least time from one digest to the next notice."""


class State(Enum):
    """How it went with a device, as far as nobody was told yet."""

    FAILING = "keeps failing"
    RECOVERED = "recovered"
    FAILED_AND_RECOVERED = "failed and recovered"
    FAILING_AGAIN = "recovered and keeps failing again"


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that is told of one device at once."""

    device_id: str
    site: str | None
    state: State
    failures: int
    """How long the streak was that is told of."""
    since_ms: int | None
    """When it began to fail."""
    at_ms: int
    """When the last of it arrived."""
    last_errors: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is spoken of now, each in a notice of its own or (`digest`) all in one; and the crossings that this tells."""

    stories: tuple[Story, ...] = ()
    digest: bool = False
    crossings: tuple[int, ...] = ()


NOTHING: Final = Plan()


def plan(waiting: Sequence[Crossing], *, now_ms: int, last_digest_ms: int | None, rules: Rules) -> Plan:
    """What to tell now of what waits: all of it or nothing. `last_digest_ms` is when a digest went last."""
    if not waiting or is_quiet(now_ms, rules) or now_ms < _due_ms(waiting, now_ms, last_digest_ms, rules):
        return NOTHING
    stories = tuple(_stories(waiting))
    held_back = any(is_quiet(crossing.at_ms, rules) for crossing in waiting)
    digest = len(stories) > (1 if held_back else rules.digest_over)
    return Plan(stories=stories, digest=digest, crossings=tuple(crossing.id for crossing in waiting))


def is_quiet(moment_ms: int, rules: Rules) -> bool:
    """Whether nobody is to be told then."""
    return rules.quiet_hours is not None and rules.quiet_hours.includes(moment_ms, rules.zone)


def _due_ms(waiting: Sequence[Crossing], now_ms: int, last_digest_ms: int | None, rules: Rules) -> int:
    first = min(crossing.at_ms for crossing in waiting)
    # A clock that went back holds nothing up.
    due = now_ms if first > now_ms else first + round(rules.digest_window * 1000)
    if last_digest_ms is None or last_digest_ms > now_ms:
        return due
    return max(due, last_digest_ms + round(rules.digest_every * 1000))


def _stories(waiting: Sequence[Crossing]) -> list[Story]:
    ordered = sorted(waiting, key=lambda crossing: (crossing.device_id, crossing.id))
    return [_story(list(group)) for _, group in groupby(ordered, key=lambda crossing: crossing.device_id)]


def _story(crossings: Sequence[Crossing]) -> Story:
    last = crossings[-1]
    failing = [crossing for crossing in crossings if crossing.kind == FAILING]
    told_of = failing[-1] if failing else last
    return Story(
        device_id=last.device_id,
        site=last.site,
        state=_state([crossing.kind for crossing in crossings]),
        failures=told_of.consecutive_failures,
        since_ms=told_of.failing_since_ms,
        at_ms=last.at_ms,
        last_errors=told_of.last_errors,
    )


def _state(kinds: Sequence[str]) -> State:
    if kinds[-1] == FAILING:
        return State.FAILING_AGAIN if RECOVERED in kinds else State.FAILING
    return State.FAILED_AND_RECOVERED if FAILING in kinds else State.RECOVERED
