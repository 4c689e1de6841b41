"""Daily sums: they equal a recount of the rows, whatever arrives."""

import json
from collections import Counter
from functools import partial
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisync_common.limits import SEQ_MAX
from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.domain.summaries import DIMENSIONS, SpeedRange, SumFilter
from pisync_receiver.errors import BadCursor
from tests.conformance.properties import SHARED_STORE, Recipe, devices, example_prefix, groups
from tests.conformance.tables import Tables, folded
from tests.support.blocking import BlockingStore, send, sync, written
from tests.support.submissions import DAY, HOUR, NOON, batch, event, stamp, sync_event

TODAY: Final = NOON // DAY
WEEK: Final = SumFilter(first_day=TODAY - 6, last_day=TODAY)

offline_days: Final = st.builds(
    lambda device, first, hours, boot, sent_hours, arrival: (
        lambda prefix: batch(
            [
                event(first + place, occurred_ms=5, type=f"note.{boot}", boot=(boot, hour * HOUR))
                for place, hour in enumerate(hours)
            ],
            device=prefix + device,
            sent=None if sent_hours is None else stamp(boot, sent_hours * HOUR),
            received_ms=NOON + arrival * HOUR,
        )
    ),
    devices,
    st.integers(1, 9),
    st.lists(st.integers(0, 70), min_size=1, max_size=5).map(sorted),
    st.sampled_from(["one", "one", "two"]),
    st.none() | st.integers(70, 100),
    st.integers(0, 60),
)
"""Batches of a device without a clock; once it says how long ago its boot began, earlier events move to other days."""


def recount(tables: Tables) -> dict[tuple[str, int, str, str, str], int]:
    """Count every stored row in the simplest words."""
    counted: Counter[tuple[str, int, str, str, str]] = Counter()
    for site, kind, about, best_ms, received_ms in tables.all(
        ("site", "type", "object_id", "best_ms", "received_ms"), "events"
    ):
        counted["type", best_ms // DAY, site or "", kind, ""] += 1
        if about is not None:
            counted["object", best_ms // DAY, site or "", kind, about] += 1
        hours = [bound for bound in (1, 6, 24, 72, 168, 720) if received_ms - best_ms <= bound * HOUR]
        counted["delay", received_ms // DAY, site or "", str(hours[0]) if hours else "more", ""] += 1
    for site, at_ms, files, errors, speed, codes in tables.all(
        ("site", "at_ms", "total_files_synced", "total_errors", "internet_speed", "errors"), "sync_events"
    ):
        day = at_ms // DAY
        counted["run", day, site or "", "runs", ""] += 1
        counted["run", day, site or "", "failed", ""] += errors > 0
        counted["run", day, site or "", "files", ""] += files
        if speed > 0:
            bounds = (64, 128, 256, 512, 1000, 2000, 5000, 10_000, 50_000)
            fitting = [bound for bound in bounds if float(speed) <= bound / 1000]
            counted["speed", day, site or "", str(fitting[0]) if fitting else "more", ""] += 1
        for code, count in json.loads(codes or "{}").items():
            counted["error", day, site or "", code, ""] += count
    return {key: min(count, SEQ_MAX) for key, count in counted.items() if count}


class SumConformance:
    @settings(max_examples=40, deadline=None, suppress_health_check=SHARED_STORE)
    @given(groups=st.lists(groups | st.lists(offline_days, min_size=1, max_size=3), min_size=2, max_size=8))
    def test_sums_equal_a_recount(self, store: BlockingStore, tables: Tables, groups: list[list[Recipe]]) -> None:
        prefix = example_prefix()
        for group in groups:
            store.write([recipe(prefix) for recipe in group])
        assert folded(store, tables) == recount(tables)

    def test_repeat_counts_once(self, store: BlockingStore, tables: Tables) -> None:
        for _ in range(2):
            send(store, batch([1, 2], received_ms=NOON + HOUR))
            sync(store, sync_event(NOON, key="k", errors={"dns": 2, "tls": 1}, failed=True, received_ms=NOON))
        assert folded(store, tables) == {
            ("type", TODAY, "", "video.watched", ""): 2,
            ("object", TODAY, "", "video.watched", "math/g5/ch02/v03"): 2,
            ("delay", TODAY, "", "1", ""): 2,
            ("run", TODAY, "", "runs", ""): 1,
            ("run", TODAY, "", "failed", ""): 1,
            ("run", TODAY, "", "files", ""): 3,
            ("speed", TODAY, "", "5000", ""): 1,
            ("error", TODAY, "", "dns", ""): 2,
            ("error", TODAY, "", "tls", ""): 1,
        }

    def test_corrected_time_moves_an_event_to_its_day(self, store: BlockingStore, tables: Tables) -> None:
        """Events of a boot without a clock arrive a day late; what is sent in that boot tells when it began."""
        boot: dict[str, Any] = {"boot_id": "b", "clock_synced": False}
        early = [event(seq, occurred_ms=5, boottime_ms=seq, **boot) for seq in (1, 2)]
        send(store, batch(early, received_ms=NOON))
        before = folded(store, tables)
        late = event(3, occurred_ms=5, boottime_ms=3, **boot)
        send(store, batch([late], sent=stamp("b", 2 * DAY), received_ms=NOON))
        after = folded(store, tables)
        assert before != after == recount(tables)
        assert after["type", TODAY - 2, "", "video.watched", ""] == 3
        assert after["delay", TODAY, "", "72", ""] == 3

    def test_moved_device_counts_at_the_site_of_the_time(self, store: BlockingStore, tables: Tables) -> None:
        for site, since_ms in (("School 5", 0), ("School 6", NOON)):
            sync(store, sync_event(NOON - DAY))
            written(store, DeviceChange(device_id="pibook-1", site=site, site_since_ms=since_ms, at_ms=NOON))
        sync(store, sync_event(NOON - HOUR))
        sync(store, sync_event(NOON))
        runs = {
            (site, day): count for (what, day, site, name, _), count in folded(store, tables).items() if name == "runs"
        }
        assert runs == {("", TODAY - 1): 1, ("School 5", TODAY - 1): 1, ("School 5", TODAY): 1, ("School 6", TODAY): 1}

    def test_sums_stay_when_rows_are_deleted(self, store: BlockingStore, tables: Tables) -> None:
        send(store, batch([1, 2, 3]))
        sync(store, sync_event(NOON))
        before = folded(store, tables)
        store.retain(NOON + DAY, dry_run=False)
        assert tables.all(("id",), "events") == tables.all(("id",), "sync_events") == []
        assert folded(store, tables) == before

    def test_largest_counts_add_up_to_the_largest(self, store: BlockingStore, tables: Tables) -> None:
        """A caller must not make a sum too large to be stored, after which no sync event of its site could be."""
        for group in range(3):
            store.write([sync_event(NOON + group, total_files_synced=SEQ_MAX) for _ in range(2)])
        assert folded(store, tables)["run", TODAY, "", "files", ""] == SEQ_MAX

    def test_any_text_is_counted(self, store: BlockingStore, tables: Tables) -> None:
        texts = ['"quoted"', "back\\slash", "\\u0041", "éع数", "'", "{}", "$.a", "a.b[0]", "\ufffe", "\U0001f469"]
        send(store, batch([event(number, object_id=text) for number, text in enumerate(texts, 1)]))
        assert folded(store, tables) == recount(tables)


@pytest.fixture
def schools(store: BlockingStore) -> BlockingStore:
    """Three days of a device in each of two schools, and of one without."""
    for device, site in (("a", "School 5"), ("b", "School 6"), ("c", None)):
        sync(store, sync_event(NOON - 9 * DAY, device=device))
        if site is not None:
            written(store, DeviceChange(device_id=device, at_ms=NOON, site=site))
        for day in range(3):
            at_ms = NOON - day * DAY
            failed = day == 0
            errors = {"dns": 1, "tls": 2} if failed else None
            speed = 0.2 if failed else 3
            sync(store, sync_event(at_ms, device=device, failed=failed, errors=errors, internet_speed=speed))
            clock: dict[str, Any] = {"occurred_ms": at_ms, "clock_synced": True}
            one = event(2 * day + 1, type="note.taken", object_id="o-1", **clock)
            other = event(2 * day + 2, object_id=None if day else "o-2", **clock)
            send(store, batch([one, other], device=device))
    return store


class SumQueryConformance:
    def test_causes(self, schools: BlockingStore) -> None:
        found = [(row.day, row.site, row.code, row.errors) for row in schools.causes(WEEK).rows]
        codes = (("dns", 1), ("tls", 2))
        assert found == [("2026-11-23", site, *code) for site in (None, "School 5", "School 6") for code in codes]

    def test_runs_come_with_the_newest_day_first(self, schools: BlockingStore) -> None:
        rows = schools.runs(WEEK).rows
        assert [row.day for row in rows] == ["2026-11-23"] * 3 + ["2026-11-22"] * 3 + ["2026-11-21"] * 3
        assert [(row.runs, row.failed, row.files) for row in rows] == [(1, 1, 3)] * 3 + [(1, 0, 3)] * 6

    def test_speeds(self, schools: BlockingStore) -> None:
        rows = schools.speeds(WEEK).rows
        assert [row.median_mbit_s for row in rows] == [0.192] * 3 + [3.5] * 6
        assert rows[0].ranges == [SpeedRange(up_to_mbit_s=0.256, runs=1)]

    def test_activity_by_type_and_by_object(self, schools: BlockingStore) -> None:
        def found(**wanted: Any) -> list[tuple[str | None, str | None, str | None, int]]:
            rows = schools.activity(msgspec.structs.replace(WEEK, site="School 5"), **wanted).rows
            return [(row.day, row.type, row.object_id, row.events) for row in rows]

        assert found()[:3] == [
            ("2026-11-23", "note.taken", None, 1),
            ("2026-11-23", "video.watched", None, 1),
            ("2026-11-22", "note.taken", None, 1),
        ]
        assert len(found()) == 6
        assert [row[2] for row in found(group=DIMENSIONS)] == ["o-1", "o-2", "o-1", "o-1"]
        assert found(group=("type",)) == [(None, "note.taken", None, 3), (None, "video.watched", None, 3)]
        assert found(group=("day", "type"), type="video.watched")[:1] == [("2026-11-23", "video.watched", None, 1)]
        assert found(group=("object",)) == [(None, None, "o-1", 3), (None, None, "o-2", 1)]
        assert found(group=("day",), object_id="o-2") == [("2026-11-23", None, None, 1)]

    @pytest.mark.parametrize(
        ("wanted", "sites"),
        [
            ({}, {None, "School 5", "School 6"}),
            ({"site": "School 5"}, {"School 5"}),
            ({"sites": ("School 6",)}, {"School 6"}),
            ({"sites": ("School 6",), "site": "School 6"}, {"School 6"}),
            ({"sites": ("School 6",), "site": "School 5"}, set()),
            ({"sites": ()}, set()),
            ({"site": "elsewhere"}, set()),
            ({"first_day": TODAY - 99, "last_day": TODAY - 7}, {None}),
            ({"first_day": TODAY - 99, "last_day": TODAY - 10}, set()),
        ],
    )
    def test_sums_of_some_sites_and_days(
        self, schools: BlockingStore, wanted: dict[str, Any], sites: set[str | None]
    ) -> None:
        seen = msgspec.structs.replace(WEEK, **wanted)
        asked = [schools.runs, schools.speeds]
        if "first_day" not in wanted:
            asked += [schools.causes, schools.activity, partial(schools.activity, group=("site",))]
        assert [{row.site for row in ask(seen).rows} for ask in asked] == [sites] * len(asked)

    @pytest.mark.parametrize("site", [None, "School 5"])
    def test_pages_cover_all(self, schools: BlockingStore, site: str | None) -> None:
        wanted = msgspec.structs.replace(WEEK, site=site)
        for ask in (
            schools.causes,
            schools.runs,
            schools.speeds,
            schools.activity,
            partial(schools.activity, group=DIMENSIONS),
            partial(schools.activity, group=("type", "object")),
            partial(schools.activity, group=("day",)),
        ):
            for limit in (1, 2, 5):
                rows: list[object] = []
                cursor = None
                while cursor is not None or not rows:
                    page = ask(wanted, limit=limit, cursor=cursor)
                    assert len(page.rows) <= limit
                    rows += page.rows
                    cursor = page.next
                assert rows == ask(wanted, limit=1000).rows

    def test_foreign_cursor_is_refused(self, store: BlockingStore) -> None:
        for ask in (store.causes, store.runs, store.activity, partial(store.activity, group=("site",))):
            with pytest.raises(BadCursor):
                ask(WEEK, cursor="WyIiXQ")
