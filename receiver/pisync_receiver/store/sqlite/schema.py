"""The schema's numbered migrations on SQLite."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pisync_common.sqlite import Connection, statements, transaction
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import migrations as migrations_of
from pisync_receiver.store.migrations import Applied, Migration, load

FOLDER: Final = Path(__file__).with_name("migrations")

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS migrations "
    "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_ms INTEGER NOT NULL) STRICT"
)
_TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
_APPLIED: Final = "SELECT number, name, checksum FROM migrations ORDER BY number"
_INSERT: Final = "INSERT INTO migrations (number, name, checksum, applied_ms) VALUES (?, ?, ?, ?)"


@cache
def known() -> tuple[Migration, ...]:
    """Return the migrations of this program."""
    return load(FOLDER)


def is_new(connection: Connection) -> bool:
    """Return whether nothing was ever made in this database."""
    return not connection.execute(_TABLES).fetchall()


def check(connection: Connection, path: Path, migrations: Sequence[Migration] | None = None) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this program knows."""
    wanted = known() if migrations is None else migrations
    migrations_of.check(str(path), _applied(connection, path), wanted)


def migrate(
    connection: Connection,
    path: Path,
    *,
    now_ms: int,
    migrations: Sequence[Migration] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[Migration]:
    """Bring the schema up in one transaction, calling `begin` first if there is something to do; return what was
    applied. Raises SchemaMismatch, changing nothing."""
    wanted = known() if migrations is None else migrations
    with transaction(connection):
        pending = migrations_of.pending(str(path), _applied(connection, path), wanted)
        if pending:
            begin()
        connection.execute(_CREATE)
        for migration in pending:
            for statement in statements(migration.sql):
                connection.execute(statement)
            connection.execute(_INSERT, (migration.number, migration.name, migration.checksum, now_ms))
    return pending


def _applied(connection: Connection, path: Path) -> list[Applied]:
    """Return what was applied to this database. Raises StoreUnusable for a database of another program."""
    tables = {name for (name,) in connection.execute(_TABLES)}
    if tables and "migrations" not in tables:
        raise StoreUnusable(f"{path} is not a PiSync database; nothing was changed. Name another file.")
    return connection.execute(_APPLIED).fetchall() if tables else []
