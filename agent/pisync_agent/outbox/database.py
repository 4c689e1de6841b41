"""The outbox's database: its schema, its named queries, typed columns, and what SQLite's errors mean."""

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
from pisync_common.sqlite import ERRORS, Connection, statements, transaction

_QUERIES: Final = Path(__file__).with_name("queries.sql")
_DAMAGED_NAMES: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_TOOBIG", "SQLITE_IOERR_SHORT_READ")
_DAMAGED_TEXTS: Final = (
    "malformed",
    "not a database",
    "corrupt",
    "too big",
    "could not decode to utf-8",
    "no such table",
    "no such column",
    "no such index",
    "unsupported file format",
)


def queries() -> Mapping[str, str]:
    """Return the outbox's SQL by name."""
    return load_queries(_QUERIES)


def make_durable(connection: Connection, path: Path) -> None:
    """Make commits survive a power cut; raise StoreUnusable where they would not."""
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


def migrate(connection: Connection, path: Path) -> None:
    """Bring the file to the latest version, one transaction a step.

    Raises StoreUnusable if the file was written by a newer program.
    """
    found, latest = version(connection), max(migrations())
    if found > latest:
        raise StoreUnusable(
            f"{path} has schema version {found}, written by a newer PiSync; this version supports {latest}. "
            "Install the newer PiSync again; nothing was changed."
        )
    for number in range(found + 1, latest + 1):
        with transaction(connection):
            for statement in statements(migrations()[number]):
                connection.execute(statement)


def is_empty(connection: Connection) -> bool:
    """Return whether the file is new, without its row of pointers."""
    return connection.execute("SELECT 1 FROM pointers").fetchone() is None


# Errors


def is_full(error: BaseException) -> bool:
    """Return whether there was no room: at the file's own cap, or on the disk."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.Error) and (
        name.startswith("SQLITE_FULL") or name == "SQLITE_IOERR_SHMSIZE" or "disk is full" in str(error).lower()
    )


def is_damage(error: BaseException) -> bool:
    """Return whether the file itself is broken, rather than a disk or a permission that fails for now."""
    if not isinstance(error, ERRORS):
        return False
    if isinstance(error, UnicodeDecodeError | sqlite3.IntegrityError | sqlite3.DataError):
        # Every key is looked up before it is inserted and every size is known: an intact file cannot cause these.
        return True
    name = getattr(error, "sqlite_errorname", "") or ""
    text = str(error).lower()
    return name.startswith(_DAMAGED_NAMES) or any(part in text for part in _DAMAGED_TEXTS)


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
