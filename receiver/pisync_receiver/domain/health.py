"""Which devices keep failing: the rule, without a database.

A device's streak is the number of its failures whose effective time is after that of its newest success; at equal times
the success counts as the newer. It is kept up to date at intake, sync event by sync event, and is the same in whatever
order they arrive.

A success whose claimed time is not plausible ends the streak that is known when it arrives, and hides no failure that
arrives later: a clock that was once in 2099 must not silence a failing device.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from msgspec.structs import replace

from pisync_receiver.domain.rows import Health

ALARM: Final = 3
"""The streak at which a device counts as failing."""
FAILURES_COUNTED: Final = 1_000
"""How many failures after a late success are counted; a longer streak is at least this long."""

H = TypeVar("H", bound=Health)


def after_failure(health: H, at_ms: int, errors: str | None) -> H:
    """The record with one more failure in it."""
    newest = health.last_failure_ms is None or at_ms >= health.last_failure_ms
    counts = health.streak_after_ms is None or at_ms > health.streak_after_ms
    return replace(
        health,
        consecutive_failures=health.consecutive_failures + counts,
        total_failures=health.total_failures + 1,
        failing_since_ms=_oldest(health.failing_since_ms, at_ms) if counts else health.failing_since_ms,
        last_sync_ms=_newest(health.last_sync_ms, at_ms),
        last_failure_ms=_newest(health.last_failure_ms, at_ms),
        last_errors=errors if newest else health.last_errors,
    )


def after_success(
    health: H, at_ms: int, failures_after: Callable[[], tuple[int, int | None]], *, plausible: bool = True
) -> H:
    """The record with one more success in it; `plausible` says whether its effective time is the claimed one.

    `failures_after` is called only if the success came late, and returns how many failures are after it and the time of
    the oldest of them.
    """
    seen = replace(
        health,
        last_sync_ms=_newest(health.last_sync_ms, at_ms),
        last_success_ms=_newest(health.last_success_ms, at_ms),
    )
    after_ms = at_ms if plausible else health.last_failure_ms
    if after_ms is None or (health.streak_after_ms is not None and after_ms <= health.streak_after_ms):
        return seen
    count, oldest_ms = failures_after() if is_late(health, after_ms) else (0, None)
    return replace(seen, consecutive_failures=count, failing_since_ms=oldest_ms, streak_after_ms=after_ms)


def is_late(health: Health, at_ms: int) -> bool:
    """Whether a success at that time is the newest success, and a failure after it is stored already."""
    newest = health.streak_after_ms is None or at_ms > health.streak_after_ms
    return newest and health.last_failure_ms is not None and health.last_failure_ms > at_ms


def _newest(known: int | None, at_ms: int) -> int:
    return at_ms if known is None or at_ms > known else known


def _oldest(known: int | None, at_ms: int) -> int:
    return at_ms if known is None or at_ms < known else known
