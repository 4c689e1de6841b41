"""A database of an earlier schema is brought up with everything in it, and goes on."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from pisync_receiver.errors import SchemaMismatch
from pisync_receiver.store import EventFilter
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.migrations import load
from pisync_receiver.store.postgres import connection, migrate, open_store, schema
from pisync_receiver.store.postgres.transactions import Database
from tests.support.postgres import fresh_database, needs_postgres, run
from tests.support.stores.made import NOON, batch, counts, event, report, send, stored_seqs, stream_row, tell

pytestmark = needs_postgres

DATA: Final = Path(__file__).with_name("data")
DEVICES: Final = [f"pibook-{number}" for number in range(4)]
RELEASED: Final = {
    "0001_initial": "ed32d58526e4eb052f643799143495cd0b1990bf276c463caa1cae2f2d3de1c5",
    "0002_parts_elsewhere": "aa28a90848492d34c45606199689057642e3ddf4a2e8338c361035d4517b6a7a",
    "0003_marks": "f303b90752720af54da67fa537b0791b2ee4ed52c5491c64816a756f67ae08f1",
}
"""Migrations that databases out there have applied. A change to one of them breaks every one of those databases: write
a new migration instead. (These may change until the first release.)"""


@pytest.fixture
def old() -> Iterator[str]:
    """What a receiver of schema 1 stored."""
    with fresh_database() as url:
        with connection.connect(PostgresUrl(conninfo=url)) as opened:
            schema.migrate(opened, PostgresUrl(conninfo=url), now_ms=1, migrations=load(schema.FOLDER)[:1])
        run(url, (DATA / "schema-1.sql").read_text())
        yield url


def files(url: str) -> dict[str, int]:
    """Every table and index that has rows of its own, and the file it is in."""
    query = "SELECT relname, relfilenode FROM pg_class WHERE relname ~ '_[0-7](_|$)' AND relkind IN ('r', 'i')"
    return dict(run(url, query))


def test_released_migrations_stay_as_they_are() -> None:
    assert {f"{one.number:04d}_{one.name}": one.checksum for one in load(schema.FOLDER)} == RELEASED


def test_a_worker_wants_it_brought_up_first(old: str) -> None:
    async def check() -> None:
        database = Database(PostgresUrl(conninfo=old))
        try:
            await database.check()
        finally:
            await database.close()

    with pytest.raises(SchemaMismatch, match="Run: pisync-receiver migrate"):
        asyncio.run(check())
    migrate(PostgresUrl(conninfo=old))
    asyncio.run(check())


def test_nothing_is_rewritten_and_every_part_has_its_key(old: str) -> None:
    before = files(old)
    assert migrate(PostgresUrl(conninfo=old)) == [name for name in RELEASED if name > "0002"]
    assert files(old) == before
    keyed = (
        "SELECT count(*) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE i.indisprimary AND i.indisvalid"
    )
    assert run(old, f"{keyed} AND t.relname ~ '^[a-z_]+_[0-7]$'") == [(80,)]


def test_everything_is_there_and_goes_on(old: str) -> None:
    migrate(PostgresUrl(conninfo=old))
    with closing(open_store(PostgresUrl(conninfo=old))) as store:
        assert [row.id for row in store.iterate_events(EventFilter())] == list(range(1, 25))
        for number, device in enumerate(DEVICES):
            assert stored_seqs(store, device=device) == [1, 2, 3, 5, 9]
            row = stream_row(store, device=device)
            assert (row.watermark, row.highest, row.carried, row.missing) == (5, 9, 1, ((6, 6), (8, 8)))
            assert [one.code for one in store.rejected(device).rows] == ["invalid_event", "conflict"]
            assert len(store.history(device).rows) == number + 1
        again = send(store, batch([1, 4, event(9, note="term paper"), 6, 8, 10], device=DEVICES[1]))
        assert counts(again) == (3, 3, [], 10)
        assert [row.id for row in store.iterate_events(EventFilter(), after=24)] == [25, 26, 27]
        told = tell(store, report(NOON, device=DEVICES[1], failed=True, key="k-0"))
        assert (told.id, len(store.history(DEVICES[1]).rows)) == (2, 2)
        assert tell(store, report(NOON + 9, device=DEVICES[1], failed=True)).id > 10
        assert send(store, batch([1], device="pibook-new", stream="new")).watermark == 1
