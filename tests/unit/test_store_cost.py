"""What a request costs is bounded by the request, not by what its device sent before: queries and rows are counted."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pisync_common.sqlite import Connection, Cursor
from pisync_receiver.domain.batches import CONFLICTS_KEPT, STREAMS_MAX
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.state import BOOTS_KEPT
from pisync_receiver.errors import TooManyStreams
from pisync_receiver.store.reading import DETAILS_SHOWN
from pisync_receiver.store.sqlite import store as module
from tests.conformance.costs import SIZES, CostConformance, Costs, alive, history
from tests.support.blocking import BlockingStore, send, stream_row, streams, sync
from tests.support.submissions import DAY, NOON, batch, event, stamp, sync_event


class Counting:
    """A connection that counts statements and fetched rows."""

    def __init__(self, inner: Connection, counted: list[int]) -> None:
        self._inner = inner
        self._counted = counted
        self.close = inner.close

    def execute(self, sql: str, parameters: Any = (), /) -> "Counted":
        self._counted[0] += 1
        if len(self._counted) > 3 and sql.startswith("BEGIN IMMEDIATE"):
            self._counted[3] += 1
        return Counted(self._inner.execute(sql, parameters), self._counted)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        rows = list(parameters)
        self._counted[0] += bool(rows)
        self._counted[1] += len(rows)
        return self._inner.executemany(sql, rows)


class Counted:
    def __init__(self, inner: Cursor, counted: list[int]) -> None:
        self._inner = inner
        self._counted = counted
        self.rowcount = inner.rowcount
        self.close = inner.close

    def fetchone(self) -> Any:
        return next(iter(self), None)

    def fetchall(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        for row in self._inner:
            self._counted[1] += 1
            yield row


@pytest.fixture
def counted() -> list[int]:
    """Statements, and rows fetched or written."""
    return [0, 0]


@pytest.fixture
def store(tmp_path: Path, counted: list[int]) -> Iterator[BlockingStore]:
    def connect(path: Path, *, readonly: bool) -> Counting:
        return Counting(module.connect(path, readonly=readonly), counted)

    async def opening() -> module.SqliteStore:
        return module.open_store(tmp_path / "receiver.db", create=True, connect=connect)

    opened = BlockingStore(opening)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Costs]]:
    found = {size: opened(tmp_path_factory.mktemp("costs") / "receiver.db", size) for size in SIZES}
    yield found
    for costs in found.values():
        costs.store.close()


def opened(path: Path, size: int) -> Costs:
    """Open a store with a history, whose database counts: its steps too, which do not depend on the machine."""
    counts = [0, 0, 0, 0]

    def step() -> None:
        counts[2] += 1

    def connect(path: Path, *, readonly: bool) -> Counting:
        inner = module.connect(path, readonly=readonly)
        inner.set_progress_handler(step, 100)
        return Counting(inner, counts)

    async def opening() -> module.SqliteStore:
        return module.open_store(path, create=True, connect=connect)

    store = BlockingStore(opening)
    history(store, size)
    return Costs(store, counts)


class TestCosts(CostConformance):
    pass


def test_conflicts_are_capped_and_counted(store: BlockingStore) -> None:
    send(store, batch([1]))
    for number in range(3):
        send(store, batch([event(1, note=f"{number}-{version}") for version in range(10)]))
    assert len(store.rejected("pibook-1", limit=100).rows) == CONFLICTS_KEPT
    assert stream_row(store).conflicts == 30
    assert store.device("pibook-1").conflicts == 30


def test_boots_are_capped(store: BlockingStore, tmp_path: Path) -> None:
    for number in range(50):
        send(store, batch([number + 1], sent=alive(number, NOON), received_ms=NOON + number * DAY))
    row = module.connect(tmp_path / "receiver.db", readonly=True)
    (boots,) = row.execute("SELECT boots FROM streams").fetchone()
    row.close()
    assert [boot for boot, *_ in json.loads(boots)] == [f"boot-{number}" for number in range(50 - BOOTS_KEPT, 50)]


def test_streams_are_capped(store: BlockingStore) -> None:
    for first in range(0, STREAMS_MAX, 500):
        store.write([batch([1], stream=f"s{number:05}") for number in range(first, first + 500)])
    outcome, other = store.write([batch([1], stream="more"), batch([2], stream="s00001")])
    assert isinstance(outcome, TooManyStreams)
    assert other.watermark == 2
    assert len(streams(store)) == STREAMS_MAX


def test_completeness_of_many_gaps_is_bounded(store: BlockingStore, counted: list[int]) -> None:
    for number in range(12):
        for first in range(1, 2400, 800):
            send(store, batch(range(first + 1, first + 800, 2), stream=f"s{number}"))
    counted[:] = [0, 0]
    found = store.completeness("pibook-1")
    assert sum(len(row.missing) for row in found.streams) == DETAILS_SHOWN
    assert [row.missing_count for row in found.streams] == [1200] * 12
    assert counted[0] == 6
    assert counted[1] <= DETAILS_SHOWN + 100


def test_page_of_a_device_is_one_query_for_any_number_of_streams(store: BlockingStore, counted: list[int]) -> None:
    store.write([batch([1], stream=f"s{number}") for number in range(200)])
    counted[:] = [0, 0]
    assert len(store.events(EventFilter(device_id="pibook-1"), limit=50).rows) == 50
    assert counted == [1, 51]


def test_repeated_sync_event_is_read_by_its_key(store: BlockingStore, counted: list[int]) -> None:
    for number in range(100):
        sync(store, sync_event(NOON + number, key=f"key-{number}"))
    counted[:] = [0, 0]
    sync(store, sync_event(NOON, key="key-50"))
    assert counted[1] <= 4


def test_first_event_of_a_boot_reads_none_of_another(tmp_path: Path) -> None:
    """Of what its stream holds already; on SQLite, a condition that never holds can still read every row."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def connect(path: Path, *, readonly: bool) -> Connection:
        inner = module.connect(path, readonly=readonly)
        inner.set_progress_handler(step, 10)
        return inner

    async def opening() -> module.SqliteStore:
        return module.open_store(tmp_path / "receiver.db", create=True, connect=connect)

    store = BlockingStore(opening)
    for first in range(1, 3001, 1000):
        send(store, batch(range(first, first + 1000)))
    found = []
    for sent in (batch([3001]), batch([event(3002, boot=("b", 5))], sent=stamp("b", 9))):
        steps = 0
        send(store, sent)
        found.append(steps)
    store.close()
    assert found[1] <= found[0] + 100, "tens of instructions"
