"""Daily numbers of the API as rows of a chart: one row for each day, one column for each name."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

Row = list[Any]
DAYS = 30


def days_until(now_ms: int, count: int = DAYS) -> list[str]:
    """Return the last days, UTC, today's last."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    return [str(today - timedelta(days=back)) for back in range(count - 1, -1, -1)]


def by_name(
    rows: Iterable[Mapping[str, Any]], days: Sequence[str], *, name: str, value: str, most: int, other: str
) -> tuple[list[str], list[Row]]:
    """Return the names with the largest sums, at most `most` and the rest as `other`, and a row for each day: the day
    and the sum of each name. Days before the first number are left out."""
    table: dict[str, dict[str, int]] = {}
    sums: dict[str, int] = {}
    for row in rows:
        of_day = table.setdefault(row["day"], {})
        of_day[row[name]] = of_day.get(row[name], 0) + row[value]
        sums[row[name]] = sums.get(row[name], 0) + row[value]
    ranked = sorted(sums, key=lambda each: (-sums[each], each))
    shown, rest = ranked[:most], ranked[most:]
    lines: list[Row] = []
    for day in _from_first(days, table):
        counts = table.get(day, {})
        line = [day, *(counts.get(each, 0) for each in shown)]
        lines.append([*line, sum(counts.get(each, 0) for each in rest)] if rest else line)
    return [*shown, *([other] if rest else [])], lines


def by_day(rows: Iterable[Mapping[str, Any]], days: Sequence[str], *values: str, empty: int | None = 0) -> list[Row]:
    """Return a row for each day: the day and the row's `values`, `empty` where there is no row."""
    table = {row["day"]: row for row in rows}
    return [
        [day, *(table[day][value] if day in table else empty for value in values)] for day in _from_first(days, table)
    ]


def _from_first(days: Sequence[str], table: Mapping[str, Any]) -> Sequence[str]:
    return next((days[at:] for at, day in enumerate(days) if day in table), ())
