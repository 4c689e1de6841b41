"""PostgreSQL: opening a database and bringing its schema up."""

import logging
from collections.abc import Callable

from pisync_common.times import now_ms
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import schema
from pisync_receiver.store.postgres.connection import check_durable, check_statistics, connect, unusable
from pisync_receiver.store.postgres.store import PostgresStore

__all__ = ["PostgresStore", "PostgresUrl", "migrate", "open_store"]

log = logging.getLogger(__name__)


async def open_store(url: PostgresUrl, *, create: bool = False, now_ms: Callable[[], int] = now_ms) -> PostgresStore:
    """Open the database. `create` makes the schema in an empty one.

    Raises SchemaMismatch for a schema that is not this program's, StoreUnusable if it cannot be reached or a commit
    would not survive a power cut.
    """
    with unusable(url, "open"):
        async with connect(url) as connection:
            await check_durable(connection, url)
            if create and await schema.is_new(connection):
                await schema.migrate(connection, url, now_ms=now_ms())
            await schema.check(connection, url)
            await check_statistics(connection, url)
            log.info("opened %s with PostgreSQL %s", url, connection.info.server_version)
    store = PostgresStore(url)
    await store.open()
    return store


async def migrate(
    url: PostgresUrl, *, now_ms: Callable[[], int] = now_ms, begin: Callable[[], None] = lambda: None
) -> list[str]:
    """Bring the schema up, making it in an empty database; return what was applied. Safe to repeat, and at once.

    Raises SchemaMismatch for a database of a newer program or another build, changing nothing.
    """
    with unusable(url, "migrate"):
        async with connect(url) as connection:
            applied = await schema.migrate(connection, url, now_ms=now_ms(), begin=begin)
    return [f"{migration.number:04d}_{migration.name}" for migration in applied]
