"""The schema's numbered migrations on PostgreSQL, applied by one program at a time however many start at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import migrations as migrations_of
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.migrations import Applied, Migration, load
from pisync_receiver.store.postgres.connection import Connection

FOLDER: Final = Path(__file__).with_name("migrations")

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('pisync migrate', 0))"
_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS migrations "
    "(number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_ms bigint NOT NULL)"
)
_TABLES: Final = (
    "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')"
)
_APPLIED: Final = "SELECT number, name, checksum FROM migrations ORDER BY number"
_INSERT: Final = "INSERT INTO migrations (number, name, checksum, applied_ms) VALUES (%s, %s, %s, %s)"


async def is_new(connection: Connection) -> bool:
    """Return whether the database has no tables."""
    return not await _rows(connection, _TABLES)


async def check(connection: Connection, url: PostgresUrl, migrations: Sequence[Migration] | None = None) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this program knows."""
    wanted = load(FOLDER) if migrations is None else migrations
    migrations_of.check(str(url), await _applied(connection, url), wanted)


async def migrate(
    connection: Connection,
    url: PostgresUrl,
    *,
    now_ms: int,
    migrations: Sequence[Migration] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[Migration]:
    """Apply what is pending in one transaction, calling `begin` first if something is; return it. Raises
    SchemaMismatch, changing nothing."""
    wanted = load(FOLDER) if migrations is None else migrations
    async with connection.transaction():
        await connection.execute(_LOCK)
        pending = migrations_of.pending(str(url), await _applied(connection, url), wanted)
        if pending:
            begin()
        await connection.execute(_CREATE)
        for migration in pending:
            await connection.execute(migration.sql.encode())
            await connection.execute(_INSERT, (migration.number, migration.name, migration.checksum, now_ms))
    return pending


async def _applied(connection: Connection, url: PostgresUrl) -> list[Applied]:
    """Return what was applied to this database. Raises StoreUnusable if it belongs to another program."""
    tables = [name for (name,) in await _rows(connection, _TABLES)]
    if tables and "migrations" not in tables:
        raise StoreUnusable(f"{url} is not a PiSync database; nothing was changed. Name another database.")
    found = await _rows(connection, _APPLIED) if tables else []
    return [(number, name, checksum) for number, name, checksum in found]


async def _rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query.encode())).fetchall()
