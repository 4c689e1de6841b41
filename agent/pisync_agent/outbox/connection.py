"""The connection to the outbox's file: how it is opened, and what its errors mean.

A test may hand in connections of another make (a simulated power cut, a failing disk): they need only the
methods below, and to raise `sqlite3.Error`.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from pisync_agent.errors import StoreUnusable

Error: Final = (sqlite3.Error, UnicodeDecodeError)
"""What a connection raises; the second when SQLite's message quotes a broken file."""

BUSY_S: Final = 10.0
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


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


class Connection(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor: ...
    def close(self) -> None: ...


class Connect(Protocol):
    def __call__(self, path: Path, *, readonly: bool) -> Connection: ...


def connect(path: Path, *, readonly: bool) -> Connection:
    """Open (or make) the database at `path`; statements commit by themselves unless a transaction is begun."""
    mode = "ro" if readonly else "rwc"
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_S,
    )
    # A fault in an upgraded library, not in the file, must not run code that the file names.
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def make_durable(connection: Connection, path: Path) -> None:
    """Set WAL + FULL and read both back; raise StoreUnusable if a commit would not survive a power cut."""
    journal = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]).lower()
    connection.execute("PRAGMA synchronous = FULL")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if journal != "wal" or synchronous != 2:
        raise StoreUnusable(
            f"{path}: commits would not survive a power cut (journal_mode {journal!r}, synchronous {synchronous!r}; "
            "needed are 'wal' and 2). Put the outbox on a local file system that supports shared memory maps."
        )


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All of the block, durably, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        rollback(connection)
        raise


def rollback(connection: Connection) -> None:
    """End the transaction, if SQLite has not done so already."""
    try:
        connection.execute("ROLLBACK")
    except Error:  # no transaction is active
        return


def is_full(error: BaseException) -> bool:
    """Whether there was no room: at the file's own cap, or on the disk."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.Error) and (
        name.startswith("SQLITE_FULL") or name == "SQLITE_IOERR_SHMSIZE" or "disk is full" in str(error).lower()
    )


def is_damage(error: BaseException) -> bool:
    """Whether the file itself is broken, as against a disk or a permission that fails for now."""
    if not isinstance(error, Error):
        return False
    if isinstance(error, UnicodeDecodeError | sqlite3.IntegrityError | sqlite3.DataError):
        # Every key is looked up before it is inserted and every size is known: these cannot happen in a sound file.
        return True
    name = getattr(error, "sqlite_errorname", "") or ""
    text = str(error).lower()
    return name.startswith(_DAMAGED_NAMES) or any(part in text for part in _DAMAGED_TEXTS)
