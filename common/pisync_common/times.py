"""Times on the wire: RFC 3339 in UTC with milliseconds; in code: whole milliseconds since 1970."""

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from pisync_common.errors import RuleError

EARLIEST_MS: Final = -62_135_596_800_000
LATEST_MS: Final = 253_402_300_799_999
"""The years 1 to 9999: every time between the two can be written."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
# RFC 3339 section 5.6: "T" or "t" or a space between date and time, an offset required.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def now_ms() -> int:
    """Return the wall clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def from_ms(ms: int) -> datetime:
    """Return milliseconds since 1970 as an aware datetime. Raises OverflowError outside years 1-9999."""
    return _EPOCH + timedelta(milliseconds=ms)


def format_ms(ms: int) -> str:
    """Return milliseconds since 1970 as `2026-11-23T10:00:00.000Z`. Raises OverflowError outside years 1-9999."""
    second, millisecond = divmod(ms, 1000)
    return f"{_second(second)}.{millisecond:03}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """Return a second since 1970 without its zone. Cached, because times are mostly written in order."""
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:-6]


def to_ms(moment: datetime) -> int:
    """Return an aware datetime as whole milliseconds since 1970, rounded down. Raises ValueError if naive."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone is a guess; pass an aware datetime")
    return (moment - _EPOCH) // _MILLISECOND


def parse_ms(text: str) -> int:
    """Return an RFC 3339 time, any offset, as milliseconds since 1970; raise RuleError.

    A leap second (`:60`) is the last millisecond before it: clocks here have none.
    """
    match = _RFC3339.fullmatch(text)
    if not match:
        raise RuleError(f"not an RFC 3339 time with an offset, such as 2026-11-23T10:00:00.000Z: {text[:40]!r}")
    fraction, offset = match.group(1) or "", match.group(2)
    second = text[17:19]
    if second == "60":
        second, fraction = "59", ".999"
    base = f"{text[:10]}T{text[11:17]}{second}" + ("+00:00" if offset in "Zz" else offset)
    try:
        ms = to_ms(datetime.fromisoformat(base)) + int((fraction[1:] + "000")[:3])
    except (ValueError, OverflowError) as error:
        raise RuleError(f"no such time: {text[:40]!r}") from error
    if not EARLIEST_MS <= ms <= LATEST_MS:  # an offset can move a time out of the years that can be written
        raise RuleError(f"no such time in UTC: {text[:40]!r}")
    return ms
