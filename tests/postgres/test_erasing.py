"""Erasing while groups are written: whichever began first, nothing of the learner is stored in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from pisync_receiver.domain.erasure import id_hash, learner_hash
from pisync_receiver.domain.submissions import Actor
from pisync_receiver.erasing import Eraser
from pisync_receiver.store.postgres import PostgresStore
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop, opened, send
from tests.support.submissions import NOON, batch, event

pytestmark = needs_postgres

HOME = "Nakuru"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@asynccontextmanager
async def database() -> AsyncIterator[tuple[str, PostgresStore, Eraser, psycopg.AsyncConnection]]:
    """Its address, a store that knows of an erased learner, its eraser, and a connection past the store."""
    with fresh_database() as url:
        async with opened(url) as store, await psycopg.AsyncConnection.connect(url) as connection:
            eraser = Eraser(store, None, now_ms=lambda: NOON)
            await eraser.erase("another", HOME, None, Actor(name="ann"))
            yield url, store, eraser, connection


async def until_a_lock_is_awaited(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while (await (await connection.execute(WAITING)).fetchone()) == (0,):  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.01)


@on_a_loop
async def test_erasing_waits_for_a_group_that_began_before() -> None:
    async with database() as (url, store, eraser, connection):
        await send(store, batch([event(1, learner_home=HOME)]))
        await connection.execute("SELECT hold_erasures()")  # as a group does at its beginning
        erasing = asyncio.create_task(eraser.erase("s-17", HOME, None, Actor(name="ann")))
        await until_a_lock_is_awaited(url)
        copied = "id + 1, device_id, stream, seq + 1, type, site, learner_home, learner_id, object_id, event_id, "
        copied += "occurred_at, recorded_at, boot_id, boottime_ms, clock_synced, data, received_ms, best_ms, quality"
        await connection.execute(f"INSERT INTO events SELECT {copied}, content FROM events".encode())
        await connection.commit()
        assert (await erasing).events == 2
        assert (await store.timeline("s-17")).rows == []


@on_a_loop
async def test_group_that_waited_for_an_erasure_stores_nothing_of_the_learner() -> None:
    async with database() as (url, store, _, connection):
        (key,) = await store.erasure_keys()
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('pisync erasure', 0))")
        writing = asyncio.create_task(send(store, batch([event(1, learner_home=HOME), event(2)])))
        await until_a_lock_is_awaited(url)
        await connection.execute(
            "INSERT INTO erased VALUES (%s, %s, 'r', 0, NULL, 0, 0)",
            (learner_hash(key, HOME, "s-17"), id_hash(key, "s-17")),
        )
        await connection.commit()
        assert (await writing).stored == 2
        assert [row.seq for row in (await store.timeline("s-17")).rows] == [2]


@on_a_loop
async def test_group_after_an_erasure_sends_no_more_exchanges_than_before() -> None:
    with fresh_database() as url:
        async with opened(url) as store:
            exchanges, exchange = [0], store._exchange

            async def counted(connection: Any, statements: Any) -> Any:
                exchanges[0] += 1
                return await exchange(connection, statements)

            async def cost(seq: int) -> int:
                exchanges[0] = 0
                await send(store, batch([event(seq, learner_home=HOME)]))
                return exchanges[0]

            await cost(1)
            store._exchange = counted  # type: ignore[method-assign]
            before = await cost(2)
            await Eraser(store, None, now_ms=lambda: NOON).erase("another", HOME, None, Actor(name="ann"))
            first, later = await cost(3), await cost(4)
            assert (first, later) == (before + 1, before)
