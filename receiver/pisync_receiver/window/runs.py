"""What a device's sync runs say, without I/O: its days, its causes, and how wrong its clock is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pisync_common.times import parse_ms

CLOCK_MS: Final = 300_000
"""A report that is stamped this much later than it arrived has a wrong clock."""
BEHIND_MS: Final = 86_400_000
"""A report arrives late for many reasons, but the newest one does not by a day."""

Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Day:
    """A day of a device."""

    day: str
    runs: int
    failed: int

    @property
    def kind(self) -> Literal["ok", "failed", "mixed", "none"]:
        if not self.runs:
            return "none"
        if not self.failed:
            return "ok"
        return "failed" if self.failed == self.runs else "mixed"


def days_of(runs: Sequence[Run], days: Sequence[str]) -> list[Day]:
    """Return each day's runs, by their claimed time."""
    counts = {day: [0, 0] for day in days}
    for run in runs:
        if (count := counts.get(run["timestamp"][:10])) is not None:
            count[0] += 1
            count[1] += run["total_errors"] > 0
    return [Day(day=day, runs=all_runs, failed=failed) for day, (all_runs, failed) in counts.items()]


def causes_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the error codes of failed runs, those of most runs first."""
    counts: dict[str, int] = {}
    for run in runs:
        for code in run.get("errors", {}):
            counts[code] = counts.get(code, 0) + 1
    return [{"code": code, "runs": counts[code]} for code in sorted(counts, key=lambda code: (-counts[code], code))]


def speeds_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the median of each day's measured speeds."""
    measured: dict[str, list[float]] = {}
    for run in runs:
        if run["internet_speed"] > 0:
            measured.setdefault(run["timestamp"][:10], []).append(run["internet_speed"])
    return [{"day": day, "speed": sorted(speeds)[len(speeds) // 2]} for day, speeds in sorted(measured.items())]


def clock_error_s(runs: Sequence[Run]) -> int | None:
    """Return by how many seconds the clock of the newest report was ahead; below 0, behind. None if it seems right."""
    newest = max(runs, key=lambda run: int(run["id"]), default=None)
    if newest is None:
        return None
    ahead_ms = parse_ms(newest["timestamp"]) - parse_ms(newest["received_at"])
    return ahead_ms // 1000 if ahead_ms > CLOCK_MS or ahead_ms < -BEHIND_MS else None
