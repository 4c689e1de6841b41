"""What daily sums count, against dicts filled in the simplest way; and what they say of speeds."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.domain.rows import StoredEvent, StoredSyncEvent
from pisync_receiver.domain.summaries import median, shown_day
from pisync_receiver.domain.sums import DAY_MS, DailySums, day_of
from tests.support.submissions import DAY, HOUR, NOON

TODAY = NOON // DAY
events = st.builds(
    lambda site, kind, about, hours_ago: StoredEvent(
        "d", "s", 1, kind, site, None, None, about, None, "", None, None, None, False, None, NOON,
        NOON - hours_ago * HOUR, 2, b"",
    ),
    st.sampled_from([None, "School 5", "School 6"]),
    st.sampled_from(["note.taken", "video.watched"]),
    st.sampled_from([None, "o-1", "o-2"]),
    st.sampled_from([0, 1, 2, 6, 23, 24, 25, 72, 168, 720, 721, 10**7]),
)  # fmt: skip


def counted(sums: DailySums) -> dict[tuple[Any, ...], int]:
    rows = [
        ((row.what, row.day, row.site, row.name, about), n) for row in sums.rows() for about, n in row.counts.items()
    ]
    assert len({key for key, _ in rows}) == len(rows), "each once"
    return {key: count for key, count in rows if count}


@given(batches=st.lists(st.lists(events, min_size=1, max_size=12), max_size=4))
def test_events_are_counted_one_by_one(batches: list[list[StoredEvent]]) -> None:
    sums, expected = DailySums(), Counter[tuple[Any, ...]]()
    for batch in batches:
        sums.add_events(batch)
        for event in batch:
            day, site, hours = max(event.best_ms // DAY, 0), event.site or "", (NOON - event.best_ms) // HOUR
            expected["type", day, site, event.type, ""] += 1
            if event.object_id is not None:
                expected["object", day, site, event.type, event.object_id] += 1
            name = next((str(bound) for bound in (1, 6, 24, 72, 168, 720) if hours <= bound), "more")
            expected["delay", TODAY, site, name, ""] += 1
    assert counted(sums) == expected


@given(event=events, to=events)
def test_moved_event_counts_as_if_it_had_always_been_there(event: StoredEvent, to: StoredEvent) -> None:
    sums, other = DailySums(), DailySums()
    moved = StoredEvent(*[*[getattr(event, name) for name in event.__struct_fields__[:16]], to.best_ms, 1, b""])
    sums.add_events([event])
    sums.move_event(event, to.best_ms)
    other.add_events([moved])
    assert counted(sums) == counted(other)


@pytest.mark.parametrize(
    ("speed", "name"),
    [(0, None), (0.001, "64"), (0.064, "64"), (0.065, "128"), (1, "1000"), (1.0, "1000"), (50, "50000"), (51, "more")],
)
def test_speed_is_counted_in_its_range(speed: float, name: str | None) -> None:
    sums = DailySums()
    sums.add_sync_event(StoredSyncEvent("d", 1, None, "", NOON, 0, 0, speed, None, None, NOON))
    assert [row.name for row in sums.rows() if row.what == "speed"] == ([] if name is None else [name])


def test_time_before_1970_counts_on_its_first_day() -> None:
    assert (day_of(-1), day_of(0), day_of(DAY_MS), shown_day(day_of(-(2**62)))) == (0, 0, 1, "1970-01-01")
    assert shown_day(2**62) == "9999-12-31"


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"64": 1}, 0.032),
        ({"1000": 4}, 0.756),
        ({"64": 1, "128": 1}, 0.064),
        ({"64": 1, "5000": 8, "more": 1}, 3.5),
        ({"64": 1, "more": 9}, 50.0),
        ({"more": 1}, 50.0),
    ],
)
def test_median_lies_in_the_range_of_the_middle_run(counts: dict[str, int], found: float) -> None:
    assert median(counts) == found
