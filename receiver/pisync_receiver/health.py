"""Who keeps failing: the rule, without a database.

A device's streak is the number of its failures whose timestamp is after that of its newest success; at equal times the
success counts as the newer. It is kept up to date at intake, report by report, and is the same whatever order the
reports arrive in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

ALARM: Final = 3
"""The streak at which a device is called out."""

Crossing = Literal["failing", "recovered"]
"""A streak reached ALARM, or fell below it."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """A device's record. Times are milliseconds since 1970, by the reports' own timestamps."""

    consecutive_failures: int = 0
    total_failures: int = 0
    failing_since_ms: int | None = None
    """The oldest failure of the streak."""
    last_sync_ms: int | None = None
    last_success_ms: int | None = None
    last_failure_ms: int | None = None
    last_errors: str | None = None
    """What the newest failure counted, as JSON text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Some of a device's failures: how many, and the oldest's time."""

    count: int
    oldest_ms: int | None


_NONE: Final = Failures(count=0, oldest_ms=None)


def after_failure(health: Health, at_ms: int, errors: str | None) -> Health:
    """The record with one more failure in it."""
    newest = health.last_failure_ms is None or at_ms >= health.last_failure_ms
    counts = health.last_success_ms is None or at_ms > health.last_success_ms
    return Health(
        consecutive_failures=health.consecutive_failures + counts,
        total_failures=health.total_failures + 1,
        failing_since_ms=_oldest(health.failing_since_ms, at_ms) if counts else health.failing_since_ms,
        last_sync_ms=_newest(health.last_sync_ms, at_ms),
        last_success_ms=health.last_success_ms,
        last_failure_ms=_newest(health.last_failure_ms, at_ms),
        last_errors=errors if newest else health.last_errors,
    )


def after_success(health: Health, at_ms: int, failures_after: Callable[[int], Failures]) -> Health:
    """The record with one more success in it. `failures_after(ms)` is asked only when the success came late."""
    last_sync = _newest(health.last_sync_ms, at_ms)
    if health.last_success_ms is not None and at_ms <= health.last_success_ms:
        return _with(health, health.consecutive_failures, health.failing_since_ms, last_sync, health.last_success_ms)
    late = health.last_failure_ms is not None and health.last_failure_ms > at_ms
    streak = failures_after(at_ms) if late else _NONE
    return _with(health, streak.count, streak.oldest_ms, last_sync, at_ms)


def crossing(before: int, after: int) -> Crossing | None:
    """What a streak's change from `before` to `after` means for whoever watches."""
    if before < ALARM <= after:
        return "failing"
    if after < ALARM <= before:
        return "recovered"
    return None


def _with(health: Health, count: int, since_ms: int | None, sync_ms: int | None, success_ms: int | None) -> Health:
    return replace(
        health, consecutive_failures=count, failing_since_ms=since_ms, last_sync_ms=sync_ms, last_success_ms=success_ms
    )


def _newest(known: int | None, at_ms: int) -> int:
    return at_ms if known is None or at_ms > known else known


def _oldest(known: int | None, at_ms: int) -> int:
    return at_ms if known is None or at_ms < known else known
