"""SQLite as both sides use it: opening a file, durable commits, transactions.

Code that takes a `Connect` accepts connections of another make (a test's simulated power cut or failing disk); they
need only the methods of `Connection`, and raise `sqlite3.Error`. Each side maps ERRORS to its own exceptions.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from pisync_common.errors import NotDurable

ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""What a connection raises; UnicodeDecodeError when SQLite's message quotes a broken file."""

VERSION: Final = sqlite3.sqlite_version

BUSY_S: Final = 10.0
"""How long a statement waits for another process's lock."""


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
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


def connect(
    path: Path,
    *,
    readonly: bool,
    private: bool = False,
    immutable: bool = False,
    keep_index: bool = False,
    pragmas: Sequence[str] = (),
) -> sqlite3.Connection:
    """Open the database at `path` in autocommit mode, creating it unless `readonly`.

    A new `private` file is readable by its owner only. `immutable` reads the file alone, without its log and without
    locks: the caller knows that there is no log and that no process writes. `keep_index` leaves an existing index
    (`-shm`) as it is. `pragmas` are run in order, such as `cache_size = -32768`.
    """
    options = f"mode={'ro' if readonly else 'rwc'}" + "&immutable=1" * immutable + "&readonly_shm=1" * keep_index
    if private and not readonly:
        path.touch(mode=0o600)
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_S,
        cached_statements=256,
    )
    try:
        # A damaged or hostile schema must not run functions while it is read.
        for pragma in ("trusted_schema = OFF", *pragmas):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def make_durable(connection: Connection, path: Path) -> None:
    """Set WAL + FULL and read both back; raise NotDurable if a commit would not survive a power cut."""
    journal = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]).lower()
    connection.execute("PRAGMA synchronous = FULL")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if journal != "wal" or synchronous != 2:
        raise NotDurable(
            f"{path}: commits would not survive a power cut (journal_mode {journal!r}, synchronous {synchronous!r}; "
            "'wal' and 2 are required). Put the file on a local file system that supports shared memory maps."
        )


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Commit everything the block writes, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        rollback(connection)
        raise


def rollback(connection: Connection) -> None:
    """Roll back, unless SQLite has done so already."""
    with suppress(*ERRORS):
        connection.execute("ROLLBACK")


def statements(script: str) -> Iterator[str]:
    """Split a script into its statements (triggers included)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if statement.strip():
        yield statement.strip()
