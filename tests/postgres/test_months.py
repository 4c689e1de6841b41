"""An old month is exported and taken out as the guide says: no other table is rewritten, and nothing comes twice."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import errors

from pisync_receiver.store import EventFilter
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore, open_store
from tests.support.postgres import fresh_database, needs_postgres, run
from tests.support.stores.made import batch, counts, report, send, stored_seqs, stream_row, tell

pytestmark = needs_postgres

GUIDE: Final = Path(__file__).parents[2] / "docs/scaling.md"
NOVEMBER, DECEMBER, JANUARY = (
    round(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)
    for year, month in ((2025, 11), (2025, 12), (2026, 1))
)
BOUNDS: Final = f"FOR VALUES FROM ({NOVEMBER}) TO ({DECEMBER})"
DEVICES: Final = [f"pibook-{number}" for number in range(20)]
ARRIVED_IN_NOVEMBER: Final = sorted((device, seq) for device in DEVICES for seq in (1, 2, 3))


@pytest.fixture(scope="module")
def two_months() -> Iterator[str]:
    """Three events and a report of each device in November, two and one in December, at the very ends of the months."""
    with fresh_database() as fresh:
        with closing(open_store(PostgresUrl(conninfo=fresh), create=True)) as store:
            run(fresh, "SELECT make_months('2025-11-01Z', 2)")
            for device in DEVICES:
                for month, at, seqs in (
                    (NOVEMBER, NOVEMBER, [1, 2]),
                    (NOVEMBER, DECEMBER - 1, [3]),
                    (DECEMBER, DECEMBER, [4]),
                    (DECEMBER, JANUARY - 1, [5]),
                ):
                    send(store, batch(seqs, device=device, received_ms=at))
                    if at == month:
                        tell(store, report(month, device=device, failed=True, received_ms=at))
        yield fresh


@pytest.fixture
def url(two_months: str) -> Iterator[str]:
    with fresh_database(template=two_months) as copied:
        yield copied


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    with closing(open_store(PostgresUrl(conninfo=url))) as opened:
        yield opened


def guide() -> tuple[str, str]:
    """What the guide says to run: the export, and what takes the month out."""
    (block,) = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    export, detaching = block.split("\n\n")
    return export, detaching


def detach(url: str) -> None:
    run(url, guide()[1])


def attach(url: str) -> None:
    """The same block, with what the guide puts in the place of DETACH PARTITION."""
    assert BOUNDS in GUIDE.read_text()
    block, changed = re.subn(r"DETACH (PARTITION \w+%s_202511)", rf"ATTACH \1 {BOUNDS}", guide()[1])
    assert changed == 2
    run(url, block)


def leaves(url: str) -> dict[str, int]:
    """Every table that holds events or sync events, attached or not, and its file."""
    query = "SELECT relname, relfilenode FROM pg_class WHERE relname ~ '^(sync_)?events_[0-9]_' AND relkind = 'r'"
    return dict(run(url, query))


def detached(url: str) -> set[str]:
    """Those that are tables of their own."""
    query = "SELECT relname FROM pg_class WHERE relname ~ '^(sync_)?events_[0-9]_' AND relkind = 'r'"
    return {name for (name,) in run(url, f"{query} AND NOT relispartition")}


def november(url: str, table: str) -> int:
    """How many rows the month's eight parts hold."""
    return sum(run(url, f"SELECT count(*) FROM {table}_{part}_202511")[0][0] for part in range(8))


def test_a_month_is_exported_by_itself(url: str, store: PostgresStore) -> None:
    month = store.iterate_events(EventFilter(since_ms=NOVEMBER, until_ms=DECEMBER))
    assert sorted((row.device_id, row.seq) for row in month) == ARRIVED_IN_NOVEMBER
    with psycopg.connect(url) as connection, connection.cursor().copy(guide()[0].encode()) as copied:
        lines = [bytes(line).decode().split("\t") for line in copied]
    assert sorted((device, int(seq)) for device, _, seq, *_ in lines) == ARRIVED_IN_NOVEMBER


def test_the_export_reads_that_month_and_no_other(url: str) -> None:
    (query,) = re.findall(r"COPY \((.*)\) TO STDOUT", guide()[0])
    plan = "\n".join(line for (line,) in run(url, f"EXPLAIN {query}"))
    read = set(re.findall(r" on (events_\w+)", plan))
    assert read == {f"events_{part}_202511" for part in range(8)}


def test_taking_a_month_out_rewrites_nothing_and_the_rest_goes_on(url: str, store: PostgresStore) -> None:
    files = leaves(url)
    accounts = [(store.completeness(device), store.device(device)) for device in DEVICES]
    detach(url)
    assert leaves(url) == files
    assert detached(url) == {f"{table}_{part}_202511" for table in ("events", "sync_events") for part in range(8)}
    assert (november(url, "events"), november(url, "sync_events")) == (3 * len(DEVICES), len(DEVICES))
    assert [(store.completeness(device), store.device(device)) for device in DEVICES] == accounts
    left = sorted((row.device_id, row.seq) for row in store.iterate_events(EventFilter()))
    assert left == sorted((device, seq) for device in DEVICES for seq in (4, 5))
    for device in DEVICES:
        assert [row.at_ms for row in store.history(device).rows] == [DECEMBER]
        row = stream_row(store, device=device)
        assert (row.watermark, row.highest, row.stored, row.missing) == (5, 5, 5, ())


def test_while_somebody_reads_it_nothing_is_taken_out(url: str) -> None:
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM events_5_202511")
        with pytest.raises(errors.LockNotAvailable):
            detach(url)
    assert detached(url) == set()


def test_what_was_taken_out_is_a_duplicate_still_and_the_stream_goes_on(url: str, store: PostgresStore) -> None:
    detach(url)
    again = send(store, batch([1, 2, 3, 4], device=DEVICES[0], received_ms=JANUARY))
    assert counts(again) == (0, 4, [], 5)
    assert counts(send(store, batch([5, 6, 7], device=DEVICES[0], received_ms=JANUARY))) == (2, 1, [], 7)
    assert stored_seqs(store, device=DEVICES[0]) == [4, 5, 6, 7]
    assert november(url, "events") == 3 * len(DEVICES)
    found = store.device(DEVICES[0])
    assert found is not None
    assert (found.consecutive_failures, found.total_failures) == (2, 2)


def test_it_can_be_put_back(url: str, store: PostgresStore) -> None:
    files = leaves(url)
    detach(url)
    attach(url)
    assert (leaves(url), detached(url)) == (files, set())
    assert [stored_seqs(store, device=device) for device in DEVICES] == [[1, 2, 3, 4, 5]] * len(DEVICES)
    assert [len(store.history(device).rows) for device in DEVICES] == [2] * len(DEVICES)


def test_it_is_not_put_back_over_rows_of_that_month_that_came_since(url: str, store: PostgresStore) -> None:
    detach(url)
    send(store, batch([6], device=DEVICES[0], received_ms=NOVEMBER))
    with pytest.raises(errors.CheckViolation):
        attach(url)
    assert len(detached(url)) == 16
