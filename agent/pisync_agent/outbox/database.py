"""The outbox's database: its schema, its named queries, typed columns."""

import json
import sqlite3
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import StoreUnusable
from pisync_common import sqlite
from pisync_common.errors import NotDurable
from pisync_common.queries import load_queries
from pisync_common.sqlite import Connection, statements, transaction

PAGE_BYTES: Final = 1024
"""Of a new file. A commit writes whole pages, and an event is a third of one: with SQLite's 4,096 bytes the log would
take half as many bytes again (10.0 kB of card for each event recorded alone, and 6.9 kB with these). A file that exists
keeps its own."""

_QUERIES: Final = Path(__file__).with_name("queries.sql")


def queries() -> Mapping[str, str]:
    """Return the outbox's SQL by name."""
    return load_queries(_QUERIES)


def make_durable(connection: Connection, path: Path) -> None:
    """Make commits survive a power cut; raise StoreUnusable where they would not. A new file gets its page size."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES:d}")  # before anything is written; later it changes nothing
    try:
        sqlite.make_durable(connection, path)
    except NotDurable as error:
        raise StoreUnusable(str(error)) from error


# Schema


@cache
def migrations() -> Mapping[int, str]:
    """Return SQL by version, from `migrations/0001_*.sql` on; read once."""
    files = sorted(Path(__file__).with_name("migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return {int(file.name[:4]): file.read_text("utf-8") for file in files}


def version(connection: Connection) -> int:
    """Return the schema version of a file; 0 if it is new."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_ours(connection: Connection, path: Path) -> None:
    """Raise StoreUnusable for an intact file that this version cannot use: newer, or another program's."""
    found, latest = version(connection), max(migrations())
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()}
    if tables and "pointers" not in tables:
        raise StoreUnusable(
            f"{path} is another program's database. Nothing was changed, and nothing was recorded in it. "
            "Move it away, or name another home."
        )
    if found > latest:
        raise StoreUnusable(
            f"{path} has schema version {found}, written by a newer PiSync; this version supports {latest}. "
            "Install the newer PiSync again; nothing was changed."
        )


def migrate(connection: Connection, path: Path) -> None:
    """Bring the file to the latest version, one transaction a step. Raises StoreUnusable if it is not ours."""
    check_ours(connection, path)
    for number in range(version(connection) + 1, max(migrations()) + 1):
        with transaction(connection):
            for statement in statements(migrations()[number]):
                connection.execute(statement)


def is_empty(connection: Connection) -> bool:
    """Return whether the file is new, without its row of pointers."""
    return connection.execute("SELECT 1 FROM pointers").fetchone() is None


# Typed columns: these raise BrokenOutbox for corrupt values, never a stray TypeError


class BrokenOutbox(sqlite3.DatabaseError):
    """The file contradicts itself: malformed, though SQLite did not notice."""

    def __init__(self, what: str) -> None:
        super().__init__(f"malformed outbox: {what}")


def integer(value: object) -> int:
    if type(value) is not int:
        raise BrokenOutbox(f"expected an integer, found {type(value).__name__}")
    return value


def text(value: object) -> str:
    if type(value) is not str:
        raise BrokenOutbox(f"expected a text, found {type(value).__name__}")
    return value


def real(value: object) -> float:
    if type(value) not in (int, float):
        raise BrokenOutbox(f"expected a number, found {type(value).__name__}")
    return float(value)  # type: ignore[arg-type]


def counts(value: object) -> dict[str, int]:
    """Return a JSON object of integers."""
    try:
        found: Any = json.loads(text(value))
    except (ValueError, RecursionError) as error:
        raise BrokenOutbox("counts are not JSON") from error
    if not isinstance(found, dict):
        raise BrokenOutbox("counts are not an object")
    return {name: integer(count) for name, count in found.items()}
