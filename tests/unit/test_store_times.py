"""Best times over several batches: what the store remembers of boots and neighbours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_common.models import Stamp
from pisync_receiver.store import IncomingEvent
from pisync_receiver.store.sqlite import SqliteStore, open_store
from tests.support.stores.made import NOON, batch, event, send, stored

MINUTE = 60_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path / "receiver.db", create=True)
    yield opened
    opened.close()


def found(store: SqliteStore) -> dict[int, tuple[int, str]]:
    """Minutes after noon and quality, by seq."""
    return {row.seq: ((row.best_ms - NOON) // MINUTE, row.quality) for row in stored(store)}


def at(seq: int, minute: int, *, synced: bool = False) -> IncomingEvent:
    return event(seq, occurred_ms=NOON + minute * MINUTE, clock_synced=synced)


def test_a_boot_is_remembered_from_one_batch_to_the_next(store: SqliteStore) -> None:
    sent = Stamp(at_ms=0, boot_id="a", boottime_ms=10 * MINUTE, clock_synced=False)
    send(store, batch([event(1, boot_id="a", boottime_ms=MINUTE)], sent=sent, received_ms=NOON + 10 * MINUTE))
    later = Stamp(at_ms=0, boot_id="b", boottime_ms=MINUTE, clock_synced=False)
    left_over = event(2, boot_id="a", boottime_ms=20 * MINUTE, occurred_ms=5)
    send(store, batch([left_over], sent=later, received_ms=NOON + 60 * MINUTE))
    assert found(store) == {1: (1, "corrected"), 2: (20, "corrected")}


def test_the_event_before_a_batch_bounds_it(store: SqliteStore) -> None:
    send(store, batch([at(1, 30, synced=True)]))
    send(store, batch([at(2, -500), at(3, -499)]))
    assert found(store) == {1: (30, "synced"), 2: (30, "estimated"), 3: (31, "estimated")}


def test_a_batch_that_fills_a_gap_lies_between_its_neighbours(store: SqliteStore) -> None:
    send(store, batch([at(1, 10, synced=True), at(4, 20, synced=True)]))
    send(store, batch([at(2, -500), at(3, 500)]))
    assert found(store)[2] == (10, "estimated")
    assert found(store)[3] == (20, "estimated")


def test_each_run_of_a_batch_has_its_own_neighbours(store: SqliteStore) -> None:
    send(store, batch([at(2, 10, synced=True), at(4, 20, synced=True)]))
    send(store, batch([at(1, 40), at(3, 40), at(5, 40)]))
    assert {seq: minute for seq, (minute, _) in found(store).items()} == {1: 10, 2: 10, 3: 20, 4: 20, 5: 40}
