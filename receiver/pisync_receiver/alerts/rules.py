"""When alerts go out and when they share one digest: pure functions.

Alerts wait a short window for each other, because devices of one site fail together. More than a few go out as one
digest, and after a digest the next alert waits longer. Quiet hours hold everything back until they end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, tzinfo
from typing import Any, Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pisync_common.quiet_hours import QuietHours

FAILING: Final = "failing"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A device's streak of failures reached the threshold (`failing`), or ended (`recovered`)."""

    id: int
    device_id: str
    site: str | None
    kind: str
    at_ms: int
    failing_since_ms: int | None
    last_errors: str | None = None
    """JSON text of an object of counts by error code."""

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Take the columns in the order of the fields."""
        return cls(**{field.name: value for field, value in zip(fields(cls), row, strict=True)})


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When alerts go out and how. Durations are in seconds."""

    quiet_hours: QuietHours | None
    zone: tzinfo
    digest_over: int = 5
    """More devices than this share one digest."""
    digest_window: float = 60.0
    """How long alerts wait for others."""
    digest_every: float = 900.0
    """The minimum time from a digest to the next notice."""

    def is_quiet(self, moment_ms: int) -> bool:
        return self.quiet_hours is not None and self.quiet_hours.includes(moment_ms, self.zone)

    def is_due(self, pending: Sequence[Crossing], *, now_ms: int, last_digest_ms: int | None) -> bool:
        """Whether to send notices of all pending crossings now."""
        if not pending or self.is_quiet(now_ms):
            return False
        first_ms = min(crossing.at_ms for crossing in pending)
        return _passed(self.digest_window, first_ms, now_ms) and (
            last_digest_ms is None or _passed(self.digest_every, last_digest_ms, now_ms)
        )

    def is_digest(self, pending: Sequence[Crossing]) -> bool:
        """Whether to send one notice of all devices. What quiet hours held back is one digest."""
        held_back = any(self.is_quiet(crossing.at_ms) for crossing in pending)
        devices = len({crossing.device_id for crossing in pending})
        return devices > (1 if held_back else self.digest_over)


def _passed(seconds: float, since_ms: int, now_ms: int) -> bool:
    """A clock that was set back delays nothing: a moment in the future counts as long ago."""
    return since_ms > now_ms or now_ms - since_ms >= seconds * 1000


def time_zone(value: str) -> tzinfo:
    """Return a zone by its name, such as `Africa/Nairobi`. Raises ValueError."""
    if value == "UTC":
        return UTC  # known without the system's files
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("not a time zone this system knows, such as Africa/Nairobi or UTC") from error
