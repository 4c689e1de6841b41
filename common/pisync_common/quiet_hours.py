"""Hours of the day in which nothing is sent."""

from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from pisync_common.times import from_ms


class QuietHours(NamedTuple):
    """From `start` until `end` (excluded) by local time; may span midnight.

    No dataclass, which every command of the agent would then load with its settings.
    """

    start: time
    end: time

    def includes(self, moment_ms: int, zone: tzinfo | None) -> bool:
        """Return whether it is quiet, where clocks show the time of `zone`; of this system, where that is None."""
        local = from_ms(moment_ms).astimezone(zone).time()
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end

    def left_s(self, moment_ms: int, zone: tzinfo | None) -> float:
        """Return the seconds until quiet hours end; 0 if it is not quiet."""
        if not self.includes(moment_ms, zone):
            return 0.0
        local = from_ms(moment_ms).astimezone(zone).replace(tzinfo=None)
        end = datetime.combine(local.date(), self.end)
        return (end - local if end > local else end + timedelta(days=1) - local).total_seconds()


def quiet_hours(value: str) -> QuietHours:
    """Parse `22:00-06:00`. Raises ValueError."""
    try:
        start, end = (datetime.strptime(part.strip(), "%H:%M").replace(tzinfo=UTC).time() for part in value.split("-"))
    except ValueError as error:
        raise ValueError("not two times of day, such as 22:00-06:00") from error
    if start == end:
        raise ValueError("the start equals the end; leave it empty, or give two different times")
    return QuietHours(start=start, end=end)
