"""The schema's version, and the numbered migrations that bring a file up to it."""

import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox.connection import Connection, transaction


@cache
def migrations() -> Mapping[int, str]:
    """SQL by version, from `migrations/0001_*.sql` on; read once."""
    files = sorted(Path(__file__).with_name("migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return {int(file.name[:4]): file.read_text("utf-8") for file in files}


def latest() -> int:
    """The version this program writes."""
    return max(migrations())


def version(connection: Connection) -> int:
    """The version of a file; 0 if it is new."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: Connection, path: Path) -> None:
    """Bring the file to the latest version, each step one transaction.

    Raises StoreUnusable if the file was written by a newer program.
    """
    found = version(connection)
    if found > latest():
        raise StoreUnusable(
            f"{path} has version {found}, written by a newer PiSync; this one knows {latest()}. "
            "Install the newer PiSync again; nothing was changed."
        )
    for number in range(found + 1, latest() + 1):
        with transaction(connection):
            for statement in statements(migrations()[number]):
                connection.execute(statement)


def is_empty(connection: Connection) -> bool:
    """Whether the file is new: not even its row of pointers was ever written."""
    return connection.execute("SELECT 1 FROM state").fetchone() is None


def statements(script: str) -> Iterator[str]:
    """A script's single statements (triggers included)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if statement.strip():
        yield statement.strip()
