"""Several receivers on one PostgreSQL write one chain."""

import asyncio

from pisync_receiver.domain.audit import Chain, audited
from pisync_receiver.domain.submissions import Actor, AuditNote
from pisync_receiver.store.audit import audit_statement
from tests.support.postgres import fresh_database, needs_postgres, opened
from tests.support.submissions import NOON

pytestmark = needs_postgres


def test_two_receivers_write_one_chain() -> None:
    async def scene(url: str) -> None:
        async with opened(url) as one, opened(url) as other:

            async def write(number: int) -> None:
                store, by = (one, other)[number % 2], Actor(name=f"n{number}")
                if number % 3:
                    await store.write([AuditNote(by=by, act="a.b", at_ms=NOON)])
                else:
                    entry = audited(by, "c.d", None, NOON)
                    await store.act([], lambda rows: [audit_statement(entry)])

            await asyncio.gather(*map(write, range(40)))
            chain = Chain()
            page = await one.audit(oldest_first=True, limit=100)
            assert [chain.add(row) for row in page.rows] == [None] * 40
            assert len({row.actor for row in page.rows}) == 40

    with fresh_database() as url:
        asyncio.run(scene(url))
