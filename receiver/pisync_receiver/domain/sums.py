"""Daily sums of what is stored, kept so that no question about weeks reads the rows of weeks.

Days are days of UTC. An event counts once, when it is stored, on the day of its best time, and moves when that time is
corrected; a sync event counts on the day of its effective time. Sums stay when retention deletes the rows.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, TypeVar

import msgspec

from pisync_common.limits import SEQ_MAX
from pisync_receiver.domain.rows import EarlierEvent, StoredEvent, StoredSyncEvent, Sums

DAY_MS: Final = 86_400_000
COUNT_MAX: Final = SEQ_MAX
"""A sum grows no further: what any reader of JSON takes as it is."""

RUN: Final = "run"
ERROR: Final = "error"
SPEED: Final = "speed"
DELAY: Final = "delay"
TYPE: Final = "type"
OBJECT: Final = "object"
"""Kinds of sums; the schema says what each counts."""
RUNS: Final = "runs"
FAILED: Final = "failed"
FILES: Final = "files"
"""Names of the sums of kind RUN."""

SPEEDS_KBIT: Final = (64, 128, 256, 512, 1_000, 2_000, 5_000, 10_000, 50_000)
DELAYS_H: Final = (1, 6, 24, 72, 168, 720)
"""Upper bounds of ranges, in kbit/s and hours. What is above them all is called MORE."""
MORE: Final = "more"

_SPEEDS: Final = tuple(bound / 1000 for bound in SPEEDS_KBIT)
_SPEED_NAMES: Final = (*map(str, SPEEDS_KBIT), MORE)
_DELAYS: Final = tuple(bound * 3_600_000 for bound in DELAYS_H)
_DELAY_NAMES: Final = (*map(str, DELAYS_H), MORE)
P = TypeVar("P")

_error_counts: Final = msgspec.json.Decoder(dict[str, int]).decode
_best_ms: Final = attrgetter("best_ms")
_site_type_and_object: Final = attrgetter("site", "type", "object_id")


def day_of(ms: int) -> int:
    """Return the day of UTC that a moment is in, counted from 1970; what is before counts on the first."""
    return max(ms // DAY_MS, 0)


class DailySums:
    """What is to be added to the sums."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int, str, str], dict[str, int]] = {}

    def add_events(self, events: Sequence[StoredEvent]) -> None:
        """Count the events that a batch brought."""
        arrived_ms = events[0].received_ms
        arrived = day_of(arrived_ms)
        for (day, delay), group in _grouped(events, lambda ms: (day_of(ms), _delay(arrived_ms - ms))).items():
            kinds: dict[tuple[str | None, str], dict[str, int]] = defaultdict(dict)
            for (site, name, about), count in Counter(map(_site_type_and_object, group)).items():
                kinds[site, name][about or ""] = count
            for (site, name), counts in kinds.items():
                count = sum(counts.values())
                self._add(TYPE, day, site, name, count)
                self._add(DELAY, arrived, site, delay, count)
                counts.pop("", None)
                if counts:
                    added = self._of(OBJECT, day, site, name)
                    for about, count in counts.items():
                        added[about] = added.get(about, 0) + count

    def move_event(self, event: StoredEvent | EarlierEvent, best_ms: int) -> None:
        """Count an event as one with another best time."""
        self._count_event(event, event.best_ms, -1)
        self._count_event(event, best_ms, 1)

    def take_event(self, event: EarlierEvent) -> None:
        """Count an event no longer."""
        self._count_event(event, event.best_ms, -1)

    def add_sync_event(self, event: StoredSyncEvent) -> None:
        """Count a sync event."""
        day, site = day_of(event.at_ms), event.site
        self._add(RUN, day, site, RUNS, 1)
        if event.total_errors > 0:
            self._add(RUN, day, site, FAILED, 1)
        if event.total_files_synced > 0:
            self._add(RUN, day, site, FILES, event.total_files_synced)
        if event.internet_speed > 0:
            self._add(SPEED, day, site, _SPEED_NAMES[bisect_left(_SPEEDS, event.internet_speed)], 1)
        if event.errors is not None:
            for code, count in _error_counts(event.errors).items():
                self._add(ERROR, day, site, code, count)

    def rows(self) -> list[Sums]:
        return [Sums(*key, counts) for key, counts in self._counts.items()]

    def _count_event(self, event: StoredEvent | EarlierEvent, best_ms: int, count: int) -> None:
        self._add(TYPE, day_of(best_ms), event.site, event.type, count)
        if event.object_id is not None:
            self._add(OBJECT, day_of(best_ms), event.site, event.type, count, event.object_id)
        self._add(DELAY, day_of(event.received_ms), event.site, _delay(event.received_ms - best_ms), count)

    def _add(self, what: str, day: int, site: str | None, name: str, count: int, about: str = "") -> None:
        counts = self._of(what, day, site, name)
        counts[about] = min(counts.get(about, 0) + count, COUNT_MAX)

    def _of(self, what: str, day: int, site: str | None, name: str) -> dict[str, int]:
        key = (what, day, site or "", name)
        if (counts := self._counts.get(key)) is None:
            counts = self._counts[key] = {}
        return counts


def _delay(ms: int) -> str:
    return _DELAY_NAMES[bisect_left(_DELAYS, ms)]


def _grouped(events: Sequence[StoredEvent], place: Callable[[int], P]) -> Mapping[P, Sequence[StoredEvent]]:
    """Group events by where their best time lies, in ranges: mostly, those of a batch lie in one."""
    times = [*map(_best_ms, events)]
    if (first := place(min(times))) == place(max(times)):
        return {first: events}
    groups: dict[P, list[StoredEvent]] = defaultdict(list)
    for event in events:
        groups[place(event.best_ms)].append(event)
    return groups
