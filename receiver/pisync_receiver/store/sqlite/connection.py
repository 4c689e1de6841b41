"""Connections to the database file: how they are opened, and what makes a commit durable.

A test may hand in connections of another make (a simulated power cut, a failing disk): they need only the methods
below, and to raise `sqlite3.Error`.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from pisync_receiver.errors import StoreUnusable

Error = sqlite3.Error
VERSION: Final = sqlite3.sqlite_version

BUSY_S: Final = 10.0
_CACHE: Final = "PRAGMA cache_size = -32768"  # 32 MiB, where the default of 2 MiB would reread the indexes from disk


class Cursor(Protocol):
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


class Connection(Protocol):
    def execute(self, sql: str, parameters: Any = ..., /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor: ...
    def close(self) -> None: ...


class Connect(Protocol):
    def __call__(self, path: Path, *, readonly: bool) -> Connection: ...


def connect(path: Path, *, readonly: bool) -> Connection:
    """Open (or, for writing, make) the database at `path`; statements commit by themselves unless one says BEGIN."""
    mode = "ro" if readonly else "rw"
    if not readonly:
        path.touch(mode=0o600)
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_S,
        cached_statements=256,
    )


def make_durable(connection: Connection, path: Path) -> None:
    """Set WAL + FULL and read both back; raise StoreUnusable if a commit would not survive a power cut."""
    journal = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]).lower()
    connection.execute("PRAGMA synchronous = FULL")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if journal != "wal" or synchronous != 2:
        raise StoreUnusable(
            f"{path}: commits would not survive a power cut (journal_mode {journal!r}, synchronous {synchronous!r}; "
            "needed are 'wal' and 2). Put the database on a local file system that supports shared memory maps."
        )
    connection.execute(_CACHE)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All of the block, durably, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(Error):  # SQLite may have rolled back already
            connection.execute("ROLLBACK")
        raise


@contextmanager
def unusable(path: Path, doing: str) -> Iterator[None]:
    """Turn the engine's errors inside the block into StoreUnusable."""
    try:
        yield
    except Error as error:
        raise StoreUnusable(f"{path} cannot be {doing}: {error}") from error


def statements(script: str) -> Iterator[str]:
    """A script's single statements (triggers included)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
