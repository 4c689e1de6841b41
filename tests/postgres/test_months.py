"""An old month is exported and taken out as the guide says: no other table is rewritten, and nothing comes twice."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from pisync_receiver.store import EventFilter
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore, open_store
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.stores.made import batch, report, send, stored_seqs, stream_row, tell

pytestmark = needs_postgres

GUIDE: Final = Path(__file__).parents[2] / "docs/scaling.md"
NOVEMBER, DECEMBER, JANUARY = (
    round(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)
    for year, month in ((2025, 11), (2025, 12), (2026, 1))
)
DEVICES: Final = [f"pibook-{number}" for number in range(20)]


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as fresh:
        open_store(PostgresUrl(conninfo=fresh), create=True).close()
        with psycopg.connect(fresh) as connection:
            connection.execute("SELECT make_months('2025-11-01Z', 2)")
        yield fresh


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    """Three events and a report of each device in November, two and one in December."""
    with closing(open_store(PostgresUrl(conninfo=url))) as opened:
        for device in DEVICES:
            for month, seqs in ((NOVEMBER, [1, 2, 3]), (DECEMBER, [4, 5])):
                send(opened, batch(seqs, device=device, received_ms=month + 1))
                tell(opened, report(month, device=device, failed=True, received_ms=month + 1))
        yield opened


def leaves(url: str) -> dict[str, int]:
    """Every table that holds events or sync events, and its file."""
    query = "SELECT relname, relfilenode FROM pg_class WHERE relname ~ '^(sync_)?events_[0-9]_' AND relkind = 'r'"
    with psycopg.connect(url) as connection:
        return dict(connection.execute(query).fetchall())


def run(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def detach(url: str) -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert "202511" in block
    run(url, block)


def test_a_month_is_exported_by_itself(store: PostgresStore) -> None:
    month = store.iterate_events(EventFilter(since_ms=NOVEMBER, until_ms=DECEMBER))
    assert sorted((row.device_id, row.seq) for row in month) == sorted(
        (device, seq) for device in DEVICES for seq in (1, 2, 3)
    )


def test_taking_a_month_out_rewrites_nothing_and_the_rest_goes_on(url: str, store: PostgresStore) -> None:
    files = leaves(url)
    detach(url)
    assert leaves(url) == files
    assert run(url, "SELECT count(*) FROM events") == [(2 * len(DEVICES),)]
    held = sum(run(url, f"SELECT count(*) FROM events_{part}_202511")[0][0] for part in range(8))
    assert held == 3 * len(DEVICES)
    for device in DEVICES:
        assert stored_seqs(store, device=device) == [4, 5]
        assert [row.at_ms for row in store.history(device).rows] == [DECEMBER]
        row = stream_row(store, device=device)
        assert (row.watermark, row.highest, row.stored, row.missing) == (5, 5, 5, ())


def test_what_was_taken_out_is_a_duplicate_still_and_the_stream_goes_on(url: str, store: PostgresStore) -> None:
    detach(url)
    again = send(store, batch([1, 2, 3, 4], device=DEVICES[0], received_ms=JANUARY))
    assert (again.stored, again.duplicates, again.watermark) == (0, 4, 5)
    more = send(store, batch([6], device=DEVICES[0], received_ms=JANUARY))
    assert (more.stored, more.watermark) == (1, 6)
    found = store.device(DEVICES[0])
    assert found is not None
    assert (found.consecutive_failures, found.total_failures) == (2, 2)


def test_it_can_be_put_back(url: str, store: PostgresStore) -> None:
    detach(url)
    for part in range(8):
        bounds = f"FOR VALUES FROM ({NOVEMBER}) TO ({DECEMBER})"
        run(url, f"ALTER TABLE events_{part} ATTACH PARTITION events_{part}_202511 {bounds}")
    assert [stored_seqs(store, device=device) for device in DEVICES] == [[1, 2, 3, 4, 5]] * len(DEVICES)
