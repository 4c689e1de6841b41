"""The schema's numbered migrations on PostgreSQL, applied by one program at a time however many start at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
_INSERT: Final = "INSERT INTO migrations (number, name, checksum, applied_ms) VALUES ($1, $2, $3, $4)"


def is_new(connection: Connection) -> bool:
    """Whether nothing was ever made in this database."""
    return not connection.execute(_TABLES).fetchall()


def check(connection: Connection, url: PostgresUrl, migrations: Sequence[Migration] | None = None) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this program knows."""
    wanted = load(FOLDER) if migrations is None else migrations
    migrations_of.check(str(url), _applied(connection, url), wanted)


def migrate(
    connection: Connection, url: PostgresUrl, *, now_ms: int, migrations: Sequence[Migration] | None = None
) -> list[Migration]:
    """Bring the schema up in one transaction; return what was applied. Raises SchemaMismatch, changing nothing."""
    wanted = load(FOLDER) if migrations is None else migrations
    with connection.transaction():
        connection.execute(_LOCK)
        pending = migrations_of.pending(str(url), _applied(connection, url), wanted)
        connection.execute(_CREATE)
        for migration in pending:
            connection.execute(migration.sql)
            connection.execute(_INSERT, (migration.number, migration.name, migration.checksum, now_ms))
    return pending


def _applied(connection: Connection, url: PostgresUrl) -> list[Applied]:
    """What this database says was applied to it. Raises StoreUnusable for one that is none of ours."""
    tables = {name for (name,) in connection.execute(_TABLES)}
    if tables and "migrations" not in tables:
        raise StoreUnusable(f"{url} is a database of something else; nothing was changed. Name another database.")
    return connection.execute(_APPLIED).fetchall() if tables else []
