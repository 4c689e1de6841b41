"""PgBouncer in transaction mode may stand between receivers and PostgreSQL."""

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import SERVER, fresh_database, history_ids, needs_postgres, on_a_loop, opened, stored_seqs
from tests.support.submissions import NOON, batch, sync_event

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    """A database behind PgBouncer, which has fewer connections than its clients."""
    server = urlsplit(SERVER)
    host, user = server.hostname or "127.0.0.1", server.username or "postgres"
    with fresh_database() as direct, pgbouncer(host, server.port or 5432, user) as port:
        yield f"postgresql://{user}@127.0.0.1:{port}/{direct.rpartition('/')[2]}"


@on_a_loop
async def test_more_writers_than_connections(behind: str) -> None:
    async with opened(behind) as one, opened(behind) as other, opened(behind) as third:

        async def write(number: int) -> None:
            store = (one, other, third)[number % 3]
            device = f"pibook-{number}"
            for turn in range(20):
                seqs = range(turn * 10 + 1, turn * 10 + 11)
                await store.write([batch(seqs, device=device), sync_event(NOON + turn, device=device)])
                assert await store.completeness(device) is not None

        await asyncio.gather(*map(write, range(8)))
        for number in range(8):
            assert await stored_seqs(one, device=f"pibook-{number}") == list(range(1, 201))
            assert len(await history_ids(one, device=f"pibook-{number}")) == 20
