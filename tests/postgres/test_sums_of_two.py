"""Two receivers bring additions into the daily sums at the same time: each addition counts once."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from pisync_receiver.store.opening import open_store
from pisync_receiver.store.postgres import PostgresUrl
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.submissions import NOON, batch, sync_event

pytestmark = needs_postgres

BATCHES = 60


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def test_additions_count_once_when_two_bring_them_in(url: str) -> None:
    async def both() -> None:
        first, second = [await open_store(PostgresUrl(conninfo=url), create=True) for _ in range(2)]
        try:
            for number in range(BATCHES):
                store = (first, second)[number % 2]
                device = f"pibook-{number}"
                writing = store.write([batch([1, 2, 3], device=device), sync_event(NOON, device=device)])
                await asyncio.gather(writing, first.fold_sums(), second.fold_sums())
            await asyncio.gather(first.fold_sums(), second.fold_sums())
        finally:
            await first.aclose()
            await second.aclose()

    asyncio.run(both())

    with psycopg.connect(url, autocommit=True) as connection:
        count = "SELECT sum(count) FROM sums WHERE what = %s AND name = %s"
        assert connection.execute(count, ["run", "runs"]).fetchone() == (BATCHES,)
        assert connection.execute("SELECT sum(count) FROM sums WHERE what = 'type'").fetchone() == (3 * BATCHES,)
        assert connection.execute("SELECT count(*) FROM sum_additions").fetchone() == (0,)
