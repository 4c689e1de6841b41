"""The store on SQLite: one file, one writing connection, a few read-only ones.

`open_store` is for the process that holds the writer's lock; `open_reader` and `backup` for any, at any time.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pisync_common.times import now_ms
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.queries import queries
from pisync_receiver.store.sqlite import schema
from pisync_receiver.store.sqlite.backing_up import backup
from pisync_receiver.store.sqlite.connection import (
    VERSION,
    Connect,
    Connection,
    Error,
    connect,
    make_durable,
    transaction,
    unusable,
)
from pisync_receiver.store.sqlite.reading import SqliteReader
from pisync_receiver.store.sqlite.tables import SqliteTables
from pisync_receiver.store.types import Outcome, Submission
from pisync_receiver.store.writing import write_group

__all__ = ["SqliteReader", "SqliteStore", "backup", "connect", "migrate", "open_reader", "open_store"]

log = logging.getLogger(__name__)


class SqliteStore(SqliteReader):
    """The one writer of a database file, and its queries. `store.Store` says what each call means."""

    def __init__(self, path: Path, connection: Connection, connect: Connect) -> None:
        super().__init__(path, connect)
        self._connection = connection
        self._writing = threading.Lock()
        self._closed = False

    def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        with self._writing:
            try:
                return self._write_group(submissions)
            except Exception as error:
                if len(submissions) == 1:
                    return [self._failure(error)]
            # One of them, or the disk, made it fail: each by itself, so that it spoils no other.
            return [self._write_alone(submission) for submission in submissions]

    def connections(self) -> Mapping[str, tuple[int, int]]:
        return {}

    def ready(self) -> None:
        with self._writing, unusable(self.path, "written"), transaction(self._connection):
            self._connection.execute(queries("sqlite", "intake")["beat"])

    def close(self) -> None:
        super().close()
        with self._writing:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _write_group(self, submissions: Sequence[Submission]) -> list[Outcome]:
        with transaction(self._connection):
            tables = SqliteTables(self._connection)
            outcomes = write_group(tables, submissions)
            tables.finish()
        return outcomes

    def _write_alone(self, submission: Submission) -> Outcome:
        try:
            return self._write_group([submission])[0]
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Exception:
        if not isinstance(error, Error):
            return error
        failure = StoreUnusable(f"{self.path} cannot be written: {error}")
        failure.__cause__ = error
        return failure


def open_store(
    path: Path, *, create: bool = False, connect: Connect = connect, now_ms: Callable[[], int] = now_ms
) -> SqliteStore:
    """Open the database for writing; the caller holds the writer's lock. `create` makes it if there is none.

    Raises SchemaMismatch for a schema that is not this program's, StoreUnusable if it cannot be opened or a commit
    would not survive a power cut.
    """
    if not create:
        _must_exist(path)
    connection = _open(path, connect)
    try:
        with unusable(path, "opened"):
            if create and schema.is_new(connection):
                schema.migrate(connection, path, now_ms=now_ms())
            schema.check(connection, path)
    except BaseException:
        connection.close()
        raise
    log.info("opened %s with SQLite %s", path, VERSION)
    return SqliteStore(path, connection, connect)


def open_reader(path: Path, *, connect: Connect = connect) -> SqliteReader:
    """Open the database for queries alone, whether or not it is being written. Raises as `open_store`."""
    _must_exist(path)
    with unusable(path, "opened"):
        connection = connect(path, readonly=True)
        try:
            schema.check(connection, path)
        finally:
            connection.close()
    return SqliteReader(path, connect)


def migrate(path: Path, *, connect: Connect = connect, now_ms: Callable[[], int] = now_ms) -> list[str]:
    """Bring the schema up, making the database if there is none; return what was applied. Safe to repeat.

    Raises SchemaMismatch for a database of a newer program or another build, changing nothing.
    """
    connection = _open(path, connect)
    try:
        with unusable(path, "migrated"):
            applied = schema.migrate(connection, path, now_ms=now_ms())
            return [f"{migration.number:04d}_{migration.name}" for migration in applied]
    finally:
        connection.close()


def _open(path: Path, connect: Connect) -> Connection:
    with unusable(path, "opened"):
        _make_folder(path)
        connection = connect(path, readonly=False)
        try:
            make_durable(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreUnusable(f"{path.parent} cannot be made: {error.strerror}") from error


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise StoreUnusable(f"there is no database {path}; `pisync-receiver serve` makes one")
