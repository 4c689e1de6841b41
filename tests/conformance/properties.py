"""Properties of an engine: what it stores and answers is what the reference engine does, and every query can show it.

`MemoryStore` is checked against the rules, restated in the simplest words, in tests/unit/test_decide*.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import asdict

from pisync_common.limits import SEQ_MAX
from pisync_common.models import Stamp
from pisync_common.times import EARLIEST_MS, LATEST_MS
from pisync_receiver.domain import rows
from pisync_receiver.domain.fleet import DeviceFilter
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, Enroll, Enrolled, Submission, TokenCreate
from tests.conformance.tables import Tables, folded
from tests.support.blocking import BlockingStore, all_events, send, stored, sync, written
from tests.support.memory_store import MemoryStore
from tests.support.submissions import DAY, HOUR, MINUTE, NOON, batch, event, invalid, sync_event

SHARED_STORE: Final = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors)
"""Examples share one store; each has devices of its own."""

Recipe = Callable[[str], Submission]
"""From the prefix of an example's names to a submission."""

_numbers = itertools.count()


def example_prefix() -> str:
    """Return what the names of an example's devices begin with."""
    return f"x{next(_numbers)}"


devices: Final = st.sampled_from(["-a", "-a", "-b"])
streams: Final = st.sampled_from(["s1", "s1", "s2"])
seqs: Final = st.integers(1, 5) | st.integers(1, 25)
sites: Final = st.sampled_from(["Nakuru", "Kisumu"])
moments: Final = st.integers(0, 300).map(lambda minute: NOON + minute * MINUTE)
stamps: Final = st.none() | st.builds(
    Stamp,
    at_ms=moments,
    boot_id=st.sampled_from(["boot-1", "boot-2"]),
    boottime_ms=st.integers(0, 2 * HOUR),
    clock_synced=st.booleans(),
)
event_fields: Final = st.fixed_dictionaries(
    {"seq": seqs},
    optional={
        "note": st.sampled_from(["x", "y"]),
        "event_id": st.sampled_from(["quiz", "5c1e2f60-7a0b-4f8e-9d57-"]),
        "origin": st.tuples(streams, st.integers(1, 5)),
        "occurred_ms": moments,
        "recorded_ms": moments,
        "boot_id": st.sampled_from(["boot-1", "boot-2"]),
        "boottime_ms": st.integers(0, 2 * HOUR),
        "clock_synced": st.booleans(),
        "learner_home": sites,
    },
)


def _event(prefix: str, fields: dict[str, Any]) -> Any:
    if fields.get("event_id", "").endswith("-"):  # a UUID counts for all devices, of other examples too
        fields = fields | {"event_id": f"{fields['event_id']}{int(prefix[1:]):012x}"}
    return event(**fields)


def _batch(device: str, events: list[dict[str, Any]], bad: list[int], **fields: Any) -> Recipe:
    def build(prefix: str) -> Submission:
        made = [_event(prefix, each) for each in events]
        return batch([*made, *[invalid(seq) for seq in bad]], device=prefix + device, **fields)

    return build


batches: Final = st.builds(
    _batch,
    devices,
    st.lists(event_fields, max_size=8) | st.integers(1, 18).map(lambda first: [{"seq": first + n} for n in range(6)]),
    st.lists(seqs, max_size=2),
    stream=streams,
    sent=stamps,
    received_ms=moments,
)
minutes: Final = st.integers(0, 8).map(lambda minute: NOON + minute * MINUTE)
sync_events: Final = st.builds(
    lambda device, at_ms, **fields: lambda prefix: sync_event(at_ms, device=prefix + device, **fields),
    devices,
    minutes | st.sampled_from([5, NOON + 75 * 365 * DAY]),
    failed=st.booleans(),
    key=st.none() | st.sampled_from(["k1", "k2"]),
    errors=st.none() | st.just({"dns": 1}),
    received_ms=moments,
    internet_speed=st.sampled_from([0, 2, 2.5]),
)
streak_events: Final = st.builds(
    lambda at_ms, failed: lambda prefix: sync_event(at_ms, device=f"{prefix}-a", failed=failed),
    minutes.map(lambda at_ms: at_ms - HOUR),
    st.sampled_from([True, True, False]),
)
changes: Final = st.builds(
    lambda device, **fields: lambda prefix: DeviceChange(device_id=prefix + device, **fields),
    devices,
    at_ms=moments,
    site=st.none() | sites,
    site_since_ms=st.none() | moments,
    label=st.none() | st.just("front row"),
    retire=st.sampled_from([None, None, True, False]),
)
codes: Final = st.builds(
    lambda code, device, **fields: (
        lambda prefix: CodeCreate(
            code_hash=prefix + code, device_id=device and prefix + device, expires_ms=NOON + DAY, **fields
        )
    ),
    st.sampled_from(["c1", "c2"]),
    st.none() | devices,
    at_ms=moments,
    uses=st.integers(1, 2),
    site=st.none() | sites,
)
enrollments: Final = st.builds(
    lambda code, device, token, at_ms: (
        lambda prefix: Enroll(
            code_hash=prefix + code,
            device_id=device and prefix + device,
            fallback_device_id=prefix + "-c",
            token_hash=prefix + token,
            at_ms=at_ms,
        )
    ),
    st.sampled_from(["c1", "c2"]),
    st.none() | devices,
    st.sampled_from(["t1", "t2", "t3"]),
    moments,
)
tokens: Final = st.builds(
    lambda device, token, at_ms: (
        lambda prefix: TokenCreate(scope="device", token_hash=prefix + token, device_id=prefix + device, at_ms=at_ms)
    ),
    devices,
    st.sampled_from(["t4", "t5"]),
    moments,
)
recipes: Final = st.one_of(batches, batches, batches, sync_events, sync_events, codes, enrollments, tokens, changes)
groups: Final = st.lists(recipes, min_size=3, max_size=10) | st.lists(streak_events, min_size=2, max_size=6)
"""Anything, or one device's failures and successes in any order."""
text: Final = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)

TABLES: Final[tuple[tuple[str, type[Struct], str], ...]] = (
    ("devices", rows.Device, "device_id"),
    ("streams", rows.Stream, "device_id, stream"),
    ("events", rows.StoredEvent, "id"),
    ("event_keys", rows.EventKey, "device_id, key"),
    ("carried", rows.Carried, "device_id, stream, seq"),
    ("rejected", rows.Rejected, "device_id, stream, seq, content"),
    ("gaps", rows.Gap, "device_id, stream, first"),
    ("sync_events", rows.StoredSyncEvent, "id"),
    ("tokens", rows.Token, "id"),
)


class PropertyConformance:
    @settings(max_examples=80, deadline=None, suppress_health_check=SHARED_STORE)
    @given(groups=st.lists(groups, min_size=3, max_size=8))
    def test_engine_equals_the_reference(
        self, store: BlockingStore, tables: Tables, groups: list[list[Recipe]]
    ) -> None:
        """Outcomes and rows are those of the reference engine, whatever arrives and however it is grouped."""
        prefix, reference, before = example_prefix(), MemoryStore(), folded(store, tables)
        for group in groups:
            submissions = [recipe(prefix) for recipe in group]
            assert _without_ids(store.write(submissions)) == _without_ids(reference.run(*submissions))
        for table, kind, order in TABLES:
            found = tables.select(kind.__struct_fields__, table, f"{prefix}-", order=order)
            assert _columns(found) == _columns(map(asdict, reference.rows(table))), table
        added = {key: count - before.get(key, 0) for key, count in folded(store, tables).items()}
        assert {key: count for key, count in added.items() if count} == {
            key: count for key, count in reference.sums.items() if count
        }

    @settings(max_examples=30, deadline=None, suppress_health_check=SHARED_STORE)
    @given(
        at_ms=st.integers(EARLIEST_MS, LATEST_MS) | st.sampled_from([EARLIEST_MS, LATEST_MS]),
        number=st.integers(0, SEQ_MAX),
        speed=st.integers(0, 10**9) | st.floats(0, 1e9, allow_nan=False),
        data=st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5)),
        synced=st.booleans(),
    )
    def test_accepted_submission_can_be_shown(
        self, store: BlockingStore, at_ms: int, number: int, speed: float, data: dict[str, object], synced: bool
    ) -> None:
        device = f"x{next(_numbers)}"
        boot: dict[str, Any] = {"boot_id": "b", "boottime_ms": number}
        sent = Stamp(at_ms=at_ms, boot_id="b", boottime_ms=number, clock_synced=synced)
        claimed = event(max(number, 1), occurred_ms=at_ms, clock_synced=synced, data=json.dumps(data), **boot)
        send(store, batch([claimed], device=device, sent=sent))
        send(store, batch([event(max(number, 1), note="x"), invalid(1, body=json.dumps(data))], device=device))
        totals: dict[str, Any] = {"total_files_synced": number, "total_errors": number, "internet_speed": speed}
        sync(store, sync_event(at_ms, device=device, errors={"dns": number}, **totals))
        shown = [
            store.device(device),
            store.devices(limit=10_000).rows,
            store.history(device).rows,
            store.completeness(device),
            store.rejected(device).rows,
            store.failures(min_failures=1, limit=10_000).rows,
            store.failures(min_failures=1, limit=10_000, mode="total", since_ms=NOON).rows,
            store.events(EventFilter(device_id=device)).rows,
            stored(store, device=device),
            store.fleet(),
        ]
        assert len(msgspec.json.encode(shown)) > 1000

    @settings(max_examples=30, deadline=None, suppress_health_check=SHARED_STORE)
    @given(text=text)
    def test_accepted_text_comes_back(self, store: BlockingStore, text: str) -> None:
        device = f"x{next(_numbers)}"
        sent = event(1, learner_id=text, object_id=text, event_id=text, learner_home=text, note=text)
        send(store, batch([sent], device=device))
        written(store, DeviceChange(device_id=device, at_ms=NOON, site=text, label=text))
        (row,) = stored(store, device=device)
        assert (row.learner_id, row.object_id, row.event_id, row.learner_home) == (text,) * 4
        assert text in {found.learner_id for found in all_events(store, EventFilter(learner_id=text))}
        found = store.device(device)
        assert (found.site, found.label) == (text, text)
        assert device in [row.device_id for row in store.devices(DeviceFilter(site=text), limit=1000).rows]


def _without_ids(outcomes: Sequence[object]) -> list[object]:
    """Outcomes without the numbers that a database gives."""
    plain: list[object] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            plain.append((type(outcome), str(outcome)))
        elif isinstance(outcome, Enrolled):
            ending = sorted(token.token_hash for token in outcome.ending)
            plain.append((outcome.device_id, _columns([asdict(outcome.token)]), ending))
        elif isinstance(outcome, rows.Token | rows.StoredSyncEvent | rows.EnrollmentCode | rows.Device):
            plain.append(_columns([asdict(outcome)]))
        else:
            plain.append(outcome)
    return plain


def _columns(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what differs between engines: ids, and the key that PostgreSQL gives a sync event without one."""
    plain = [{name: value for name, value in row.items() if name not in ("id", "code_id")} for row in found]
    for row in plain:
        if str(row.get("idempotency_key")).startswith("~"):
            row["idempotency_key"] = None
    return plain
