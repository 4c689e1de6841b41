"""However many programs bring one database up at once, its schema is made once."""

import asyncio

import pytest

from pisync_receiver.errors import SchemaMismatch, StoreUnusable
from pisync_receiver.store.migrations import load
from pisync_receiver.store.postgres import PostgresUrl, migrate, open_store, schema
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop, run, send
from tests.support.submissions import batch

pytestmark = needs_postgres

AT_ONCE = 4


@pytest.mark.parametrize("at_once", [1, AT_ONCE])
@on_a_loop
async def test_schema_is_made_once(at_once: int) -> None:
    with fresh_database() as url:
        address = PostgresUrl(conninfo=url)
        applied = await asyncio.gather(*(migrate(address) for _ in range(at_once)))
        every = [f"{migration.number:04d}_{migration.name}" for migration in load(schema.FOLDER)]
        assert sorted(applied) == [[]] * (at_once - 1) + [every]
        assert await migrate(address) == []
        store = await open_store(address)
        try:
            assert (await send(store, batch([1]))).stored == 1
        finally:
            await store.aclose()


@on_a_loop
async def test_database_without_a_schema_is_refused_unless_it_is_created() -> None:
    with fresh_database() as url:
        address = PostgresUrl(conninfo=url)
        with pytest.raises(SchemaMismatch, match="pisync-receiver migrate"):
            await open_store(address)
        await (await open_store(address, create=True)).aclose()
        await (await open_store(address)).aclose()


@on_a_loop
async def test_database_of_another_program_is_refused() -> None:
    with fresh_database() as url:
        run(url, "CREATE TABLE invoices (id bigint)")
        for attempt in (open_store(PostgresUrl(conninfo=url), create=True), migrate(PostgresUrl(conninfo=url))):
            with pytest.raises(StoreUnusable, match="not a PiSync database"):
                await attempt
        assert run(url, "SELECT relname FROM pg_class WHERE relname = 'migrations'") == []


@on_a_loop
async def test_database_that_commits_without_flushing_is_refused() -> None:
    with fresh_database() as url:
        run(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off")
        with pytest.raises(StoreUnusable, match="would not survive a power cut"):
            await open_store(PostgresUrl(conninfo=url), create=True)
