"""Hours in which nobody is to be woken."""

import re
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pisync_common.times import from_ms

_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, kw_only=True)
class QuietHours:
    """From one minute of the day until another (excluded), by the clock on the wall; over midnight too."""

    start: int
    """Minutes since midnight."""
    end: int

    def includes(self, moment_ms: int, zone: tzinfo) -> bool:
        """Whether it is quiet then, where clocks show the time of `zone`."""
        local = from_ms(moment_ms).astimezone(zone)
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def quiet_hours(value: str) -> QuietHours:
    """`22:00-06:00`. Raises ValueError."""
    match = _HOURS.fullmatch(value.replace(" ", ""))
    if match is None:
        raise ValueError("not two times of day, such as 22:00-06:00")
    hours = [int(part) for part in match.groups()]
    start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if start == end:
        raise ValueError("that is no time or all day; leave it empty, or give two different times")
    return QuietHours(start=start, end=end)


def time_zone(value: str) -> tzinfo:
    """A zone by its name, such as `Africa/Nairobi`. Raises ValueError."""
    if value == "UTC":
        return UTC  # known without the system's files
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("not a time zone this system knows, such as Africa/Nairobi or UTC") from error
