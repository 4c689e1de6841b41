"""What daily sums say: causes, speeds, sync runs and activity, by day and site. Days are days of UTC."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from msgspec import Meta, Struct

from pisync_receiver.domain.sums import FAILED, FILES, MORE, RUNS, SPEEDS_KBIT

Day = Annotated[str, Meta(extra_json_schema={"format": "date"})]

DIMENSIONS: Final = ("day", "site", "type", "object")
"""What activity can be grouped by."""

_FIRST_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = 2_932_896
"""9999-12-31."""


class SumFilter(Struct, frozen=True, kw_only=True):
    """Which days and sites; None does not filter."""

    first_day: int
    last_day: int
    """Counted from 1970; included."""
    site: str | None = None
    sites: tuple[str, ...] | None = None
    """The only sites that the caller may see."""


class CauseRecord(Struct, frozen=True, kw_only=True):
    """How many errors with a code the sync events of a day and a site named."""

    day: Day
    site: str | None
    code: str
    errors: int


class RunRecord(Struct, frozen=True, kw_only=True):
    """The sync runs of a day and a site: all, those with errors, and the files that they synced."""

    day: Day
    site: str | None
    runs: int
    failed: int
    files: int


class SpeedRange(Struct, frozen=True, kw_only=True):
    """Sync runs that were no faster, but faster than the range before."""

    up_to_mbit_s: float | None
    """None: faster than all ranges."""
    runs: int


class SpeedRecord(Struct, frozen=True, kw_only=True):
    """The measured speeds of a day and a site."""

    day: Day
    site: str | None
    median_mbit_s: float
    """An estimate from the ranges."""
    runs: int
    """Those that measured a speed."""
    ranges: list[SpeedRange]


class ActivityRecord(Struct, frozen=True, kw_only=True):
    """Events; what they are not grouped by is null."""

    day: Day | None
    site: str | None
    type: str | None
    object_id: str | None
    events: int


def shown_day(day: int) -> str:
    """Return a day as a date."""
    return str((_FIRST_DAY + timedelta(days=min(max(day, 0), _LAST))).date())


def run_record(day: int, site: str, counts: Mapping[str, int]) -> RunRecord:
    return RunRecord(
        day=shown_day(day),
        site=site or None,
        runs=counts.get(RUNS, 0),
        failed=counts.get(FAILED, 0),
        files=counts.get(FILES, 0),
    )


def speed_record(day: int, site: str, counts: Mapping[str, int]) -> SpeedRecord:
    bounds = [(str(bound), bound / 1000) for bound in SPEEDS_KBIT]
    ranges = [SpeedRange(up_to_mbit_s=up_to, runs=counts[name]) for name, up_to in bounds if name in counts]
    if MORE in counts:
        ranges.append(SpeedRange(up_to_mbit_s=None, runs=counts[MORE]))
    return SpeedRecord(
        day=shown_day(day),
        site=site or None,
        median_mbit_s=median(counts),
        runs=sum(each.runs for each in ranges),
        ranges=ranges,
    )


def median(counts: Mapping[str, int]) -> float:
    """Estimate the median speed from the runs in each range, as if those of a range were spread evenly over it."""
    half = sum(counts.values()) / 2
    low = 0.0
    for bound in SPEEDS_KBIT:
        inside = counts.get(str(bound), 0)
        if inside and half <= inside:
            return float(f"{(low + (bound - low) * half / inside) / 1000:.3g}")
        half -= inside
        low = bound
    return low / 1000
