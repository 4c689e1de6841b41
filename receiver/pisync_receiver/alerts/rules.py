"""When notices go out and what shares one: pure functions.

What changed waits a short window for more, because devices of one site fail together; silence, which began days ago,
waits longer, because devices of one site fall silent one after another. After a notice the next one waits. Quiet hours
hold everything back until they end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pisync_common.quiet_hours import QuietHours
from pisync_common.times import from_ms, to_ms
from pisync_receiver.domain.fleet import TROUBLE
from pisync_receiver.domain.notices import Transition

_SKEW_MS: Final = 172_800_000
"""A digest made further in the future was made by a wrong clock."""
_FIRST_MS: Final = 3_600_000
"""How long after its hour the first digest of all is made."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When notices go out and how. Durations are in seconds."""

    quiet_hours: QuietHours | None
    zone: tzinfo
    digest_hour: int | None = None
    """The local hour of the daily digest; None for none."""
    window: float = 60.0
    """How long a change waits for others."""
    silence_window: float = 3600.0
    """How long silence waits for others."""
    every: float = 900.0
    """The minimum time from a notice of changes to the next."""
    digest_over: int = 5
    """More devices and sites than this share one message."""

    def is_quiet(self, moment_ms: int) -> bool:
        return self.quiet_hours is not None and self.quiet_hours.includes(moment_ms, self.zone)

    def is_due(
        self, *, first_ms: int | None, first_silent_ms: int | None, now_ms: int, last_notice_ms: int | None
    ) -> bool:
        """Whether to tell everything pending now. `first_ms` and `first_silent_ms` are when the first of what is
        pending was noticed."""
        if self.is_quiet(now_ms):
            return False
        waited = (first_ms is not None and _passed(self.window, first_ms, now_ms)) or (
            first_silent_ms is not None and _passed(self.silence_window, first_silent_ms, now_ms)
        )
        return waited and (last_notice_ms is None or _passed(self.every, last_notice_ms, now_ms))

    def is_digest(self, pending: Sequence[Transition], parts: int) -> bool:
        """Whether to send one message of `parts` devices and sites. What quiet hours held back is one, and so is what
        needed help when the devices were watched for the first time."""
        at_once = any(self.is_quiet(each.at_ms) or (each.before == "new" and each.state in TROUBLE) for each in pending)
        return parts > (1 if at_once else self.digest_over)

    def is_daily_due(self, *, now_ms: int, last_daily_ms: int | None) -> bool:
        """Whether the daily digest of today, or of yesterday if that was missed, is to be made now."""
        if self.digest_hour is None or self.is_quiet(now_ms):
            return False
        scheduled_ms = _last_at(self.digest_hour, now_ms, self.zone)
        if last_daily_ms is None or last_daily_ms > now_ms + _SKEW_MS:
            return now_ms - scheduled_ms < _FIRST_MS
        return last_daily_ms < scheduled_ms


def time_zone(value: str) -> tzinfo:
    """Return a zone by its name, such as `Africa/Nairobi`. Raises ValueError."""
    if value == "UTC":
        return UTC  # known without the system's files
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("not a time zone this system knows, such as Africa/Nairobi or UTC") from error


def _passed(seconds: float, since_ms: int, now_ms: int) -> bool:
    """A clock that was set back delays nothing: a moment in the future counts as long ago."""
    return since_ms > now_ms or now_ms - since_ms >= seconds * 1000


def _last_at(hour: int, now_ms: int, zone: tzinfo) -> int:
    """Return the last moment at which local clocks showed this hour."""
    local = from_ms(now_ms).astimezone(zone)
    today = datetime(local.year, local.month, local.day, hour, tzinfo=zone)
    if today > local:
        before = local.date() - timedelta(days=1)
        today = datetime(before.year, before.month, before.day, hour, tzinfo=zone)
    return to_ms(today)
