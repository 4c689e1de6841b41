"""Properties: the store against models so simple that they are clearly right."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisync_common.models import Receipt
from pisync_receiver.health import ALARM, Crossing
from pisync_receiver.store import DeviceRow, EventBatch, Store, StoredSyncEvent
from tests.support.stores.made import NOON, batch, event, invalid, report, send, stored, stored_seqs, stream_row

SHARED_STORE: Final = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors)
"""Examples share one store; each has a device of its own."""

T = TypeVar("T")

_names = (f"device-{number}" for number in itertools.count())

Told = tuple[int, bool, int | None]
"""A report: its time, whether it failed, its key's number."""

reports: Final = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.none() | st.integers(0, 5)), min_size=1, max_size=25
)

Item = tuple[int, str]
"""A seq, and which of its versions."""

VALID, INVALID, OTHER = "valid", "invalid", "other"
items: Final = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([VALID] * 6 + [INVALID, OTHER])), max_size=20)
batches: Final = st.lists(
    items | st.tuples(st.integers(1, 30), st.integers(1, 12)).map(lambda run: _run(*run)), min_size=1, max_size=12
)


@dataclass
class Model:
    """A stream as a set: what stands under each seq, and what was answered."""

    held: dict[int, str] = field(default_factory=dict)
    kept: set[Item] = field(default_factory=set)

    def take(self, sent: Iterable[Item]) -> tuple[int, int, list[Item]]:
        stored, duplicates, rejected = 0, 0, []
        for seq, kind in sorted(sent, key=lambda item: item[1] == INVALID):
            first = self.held.setdefault(seq, kind)
            fresh = (seq, kind) not in self.kept
            self.kept.add((seq, kind))
            if first != kind:
                rejected.append((seq, "conflict"))
            elif kind == INVALID:
                rejected.append((seq, "invalid_event"))
            elif fresh:
                stored += 1
            else:
                duplicates += 1
        return stored, duplicates, sorted(rejected)

    @property
    def watermark(self) -> int:
        return next(number for number in itertools.count() if number + 1 not in self.held)

    def missing(self) -> list[int]:
        return [seq for seq in range(1, max(self.held, default=0)) if seq not in self.held]


class PropertyConformance:
    @settings(max_examples=120, suppress_health_check=SHARED_STORE)
    @given(told=reports, groups=st.integers(1, 5))
    def test_the_streak_is_what_counting_anew_gives(self, store: Store, told: list[Told], groups: int) -> None:
        device = next(_names)
        first_of_key: dict[int | None, Told] = {}
        records: list[Told] = []
        crossings: list[Crossing] = []
        streak = 0
        for group in _split(told, groups):
            submissions = [
                report(NOON + at, device=device, failed=failed, key=None if key is None else f"{device}-{key}")
                for at, failed, key in group
            ]
            for one, outcome in zip(group, store.write(submissions), strict=True):
                assert isinstance(outcome, StoredSyncEvent)
                if one[2] is None or one[2] not in first_of_key:
                    first_of_key[one[2]] = one
                    records.append(one)
                    before, streak = streak, _streak(records)
                    assert outcome.consecutive_failures == streak
                    assert outcome.crossing == _crossing(before, streak)
                    if outcome.crossing is not None:
                        crossings.append(outcome.crossing)
                else:
                    assert outcome.crossing is None
        assert crossings == [("failing", "recovered")[number % 2] for number in range(len(crossings))]
        row = store.device(device)
        assert row is not None
        _check_health(row, records)
        assert [(found.at_ms - NOON, found.total_errors > 0) for found in reversed(store.history(device).rows)] == [
            (at, failed) for at, failed, _ in sorted(records, key=lambda one: one[0])
        ]
        failing = [found for found in store.failures(limit=10_000).rows if found.device_id == device]
        assert bool(failing) is (streak >= 3)

    @settings(max_examples=120, suppress_health_check=SHARED_STORE)
    @given(sent=batches, groups=st.integers(1, 4))
    def test_receipts_and_completeness_are_those_of_a_set(
        self, store: Store, sent: list[list[Item]], groups: int
    ) -> None:
        device = next(_names)
        model = Model()
        for group in _split(sent, groups):
            receipts = store.write([_batch(device, one) for one in group])
            for one, receipt in zip(group, receipts, strict=True):
                assert isinstance(receipt, Receipt)
                rejected = sorted((row.seq, row.code) for row in receipt.rejected)
                assert (receipt.stored, receipt.duplicates, rejected) == model.take(one)
                assert receipt.watermark == model.watermark
                assert _spread(receipt.missing) == model.missing()
        if model.held:
            self._check_stream(store, device, model)

    def _check_stream(self, store: Store, device: str, model: Model) -> None:
        row = stream_row(store, device=device)
        held = model.held
        assert (row.watermark, row.highest, row.missing_count) == (model.watermark, max(held), len(model.missing()))
        assert _spread(row.missing) == model.missing()
        assert row.rejected == sum(kind == INVALID for kind in held.values())
        assert row.conflicts == len(model.kept) - len(held)
        assert stored_seqs(store, device=device) == sorted(seq for seq, kind in held.items() if kind != INVALID)
        kept = [(found.seq, found.code) for found in store.rejected(device, limit=1000).rows]
        assert sorted(kept) == sorted(
            [(seq, "invalid_event") for seq, kind in held.items() if kind == INVALID]
            + [(seq, "conflict") for seq, kind in model.kept if held[seq] != kind]
        )

    @settings(max_examples=100, suppress_health_check=SHARED_STORE)
    @given(
        sent=st.lists(
            st.tuples(st.sampled_from(["first", "a", "b", "c"]), st.integers(1, 12), st.integers(1, 6)),
            min_size=1,
            max_size=30,
        )
    )
    def test_an_event_carried_anywhere_in_any_order_is_stored_once(
        self, store: Store, sent: list[tuple[str, int, int]]
    ) -> None:
        """Each of six events was recorded as ("first", its number); copies of it turn up in other streams."""
        device = next(_names)
        event_at: dict[tuple[str, int], int] = {}
        said: set[int] = set()
        for stream, wanted, number in sent:
            seq = number if stream == "first" else wanted
            if event_at.setdefault((stream, seq), number) != number:
                continue  # that place belongs to another event, and this device is no clone
            origin = None if stream == "first" else ("first", number)
            one = event(seq, origin=origin, note=f"{number}", occurred_ms=NOON + number)
            receipt = send(store, batch([one], device=device, stream=stream))
            assert receipt.rejected == ()
            assert receipt.stored == (number not in said)
            said.add(number)
        notes = [row.data for row in stored(store, device=device)]
        assert sorted(notes) == sorted(event(1, note=f"{number}").data for number in said)  # type: ignore[type-var]


def _run(first: int, length: int) -> list[Item]:
    return [(seq, VALID) for seq in range(first, first + length)]


def _split(whole: Sequence[T], parts: int) -> list[Sequence[T]]:
    size = -(-len(whole) // parts)
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def _spread(ranges: Iterable[tuple[int, int]]) -> list[int]:
    return [seq for first, last in ranges for seq in range(first, last + 1)]


def _batch(device: str, sent: Sequence[Item]) -> EventBatch:
    """`other` is a second version of the valid event of that seq."""
    events = [event(seq, note=None if kind == VALID else "other") for seq, kind in sent if kind != INVALID]
    return batch(events, device=device, bad=[invalid(seq) for seq, kind in sent if kind == INVALID])


def _streak(records: Iterable[Told]) -> int:
    """The rule, word for word."""
    newest_success = max((at for at, failed, _ in records if not failed), default=-1)
    return sum(failed and at > newest_success for at, failed, _ in records)


def _crossing(before: int, after: int) -> Crossing | None:
    if (before >= ALARM) == (after >= ALARM):
        return None
    return "failing" if after >= ALARM else "recovered"


def _check_health(row: DeviceRow, records: Sequence[Told]) -> None:
    successes = [at for at, failed, _ in records if not failed]
    failures = [at for at, failed, _ in records if failed]
    streak = [at for at in failures if at > max(successes, default=-1)]
    assert row.consecutive_failures == len(streak)
    assert row.total_failures == len(failures)
    assert row.failing_since_ms == (NOON + min(streak) if streak else None)
    assert row.last_sync_ms == NOON + max(successes + failures)
    assert row.last_success_ms == (NOON + max(successes) if successes else None)
