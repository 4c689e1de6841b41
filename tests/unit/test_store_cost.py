"""What a request costs is bounded by the request, not by what its device sent before: queries and rows are counted."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pisync_common.models import Stamp
from pisync_common.sqlite import Connection, Cursor
from pisync_receiver.domain.batches import CONFLICTS_KEPT, STREAMS_MAX
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.state import BOOTS_KEPT
from pisync_receiver.domain.submissions import Submission
from pisync_receiver.errors import TooManyStreams
from pisync_receiver.store.reading import DETAILS_SHOWN
from pisync_receiver.store.sqlite import store as module
from tests.support.blocking import BlockingStore, send, stream_row, streams, sync
from tests.support.submissions import DAY, NOON, batch, event, invalid, sync_event

UUIDS = [f"5c1e2f60-7a0b-4f8e-9d57-0a1b2c3d{number:04x}" for number in range(50)]


class Counting:
    """A connection that counts statements and fetched rows."""

    def __init__(self, inner: Connection, counted: list[int]) -> None:
        self._inner = inner
        self._counted = counted
        self.close = inner.close

    def execute(self, sql: str, parameters: Any = (), /) -> "Counted":
        self._counted[0] += 1
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


def alive(boot: int, at_ms: int) -> Stamp:
    return Stamp(at_ms=at_ms, boot_id=f"boot-{boot}", boottime_ms=5, clock_synced=True)


def cost_of(store: BlockingStore, counted: list[int], submission: Submission) -> tuple[int, ...]:
    counted[:] = [0, 0]
    (outcome,) = store.write([submission])
    assert not isinstance(outcome, Exception)
    return tuple(counted)


def history(store: BlockingStore, size: int) -> None:
    """A device with `size` boots, conflicts, gaps, rejections, streams, ids and failures before."""
    for number in range(size):
        send(store, batch([2 * number + 5], sent=alive(number, NOON), received_ms=NOON + number * DAY))
    for first in range(0, size, 500):
        conflicts = [event(5, note=f"version {number}") for number in range(first, min(size, first + 500))]
        send(store, batch([*conflicts, *[invalid(10**6 + first, body="x")]], received_ms=NOON + size * DAY))
    store.write([batch([1], stream=f"other-{number}", received_ms=NOON) for number in range(size)])
    ids = [event(10**7 + number, event_id=f"id-{number}") for number in range(size)]
    send(store, batch(ids, received_ms=NOON + size * DAY))
    failures = [sync_event(NOON + 10 + n, failed=True, received_ms=NOON + DAY) for n in range(size)]
    store.write(failures)


@pytest.mark.parametrize(
    "submission",
    [
        pytest.param(batch(range(2 * 10**7, 2 * 10**7 + 50), sent=alive(10**6, NOON), received_ms=10**13), id="new"),
        pytest.param(batch([5, 7, 9], received_ms=10**13), id="repeated"),
        pytest.param(batch([6, 8], received_ms=10**13), id="late"),
        pytest.param(batch([event(5, note="one more")], received_ms=10**13), id="conflict"),
        pytest.param(batch([invalid(6)], received_ms=10**13), id="invalid"),
        pytest.param(
            batch([event(3 * 10**7 + n, event_id=uuid) for n, uuid in enumerate(UUIDS)], received_ms=10**13), id="uuids"
        ),
        pytest.param(batch([event(1, origin=("stream-1", 5))], stream="new", received_ms=10**13), id="carried"),
        pytest.param(sync_event(NOON + 5, received_ms=10**13), id="late success"),
        pytest.param(sync_event(NOON + 5, failed=True, received_ms=10**13), id="late failure"),
        pytest.param(sync_event(NOON + 5, key="key", received_ms=10**13), id="with a key"),
    ],
)
def test_cost_does_not_depend_on_the_past(tmp_path: Path, submission: Submission) -> None:
    costs = []
    for size in (25, 1000):
        counts = [0, 0]

        def connect(path: Path, *, readonly: bool, counts: list[int] = counts) -> Counting:
            return Counting(module.connect(path, readonly=readonly), counts)

        async def opening(size: int = size, connect: Any = connect) -> module.SqliteStore:
            return module.open_store(tmp_path / f"{size}.db", create=True, connect=connect)

        store = BlockingStore(opening)
        history(store, size)
        costs.append(cost_of(store, counts, submission))
        store.close()
    (statements, rows), (more_statements, more_rows) = costs
    assert more_statements == statements
    assert more_rows <= rows + 110  # a receipt lists up to a hundred missing ranges


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
    few = cost_of(store, counted, sync_event(NOON, key="key-50"))
    assert few[1] <= 4
