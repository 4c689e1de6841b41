"""`pisync-receiver copy`: move an embedded receiver to PostgreSQL, with everything it knows.

The SQLite file is only read, under its writer's lock. PostgreSQL gets every table in one transaction, which commits
when all rows, read back, have the same number and checksum: an interrupted copy has changed nothing and can be started
again, and a finished copy is recognised.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from pisync_common.sqlite import Connection
from pisync_receiver.errors import ReceiverError
from pisync_receiver.store import opening
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.sqlite import schema
from pisync_receiver.store.sqlite.file import check_log
from pisync_receiver.store.sqlite.store import connect, unusable

Row = tuple[Any, ...]

TABLES: Final = {
    "devices": "device_id",
    "streams": "device_id, stream",
    "gaps": "device_id, stream, first",
    "events": "device_id, stream, seq",
    "event_keys": "device_id, key",
    "carried": "device_id, stream, seq",
    "rejected": "device_id, stream, seq, content",
    "arrivals": "hour",
    "sync_events": "device_id, id",
    "tokens": "id",
    "enrollments": "id",
    "sites": "site",
    "sums": "what, day, site, name, object",
    "sum_additions": "id",
    "watched": "device_id",
    "transitions": "id",
    "notices": "id",
    "notes": "id",
    "audit": "id",
    "erased": "learner",
    "secrets": "name",
}
"""Every table with data, and its key; both engines sort by it alike (text by its UTF-8 bytes)."""
_BOOLEANS: Final = {"clock_synced"}


class CopyRefused(ReceiverError):
    """Nothing was copied."""

    code = "copy_refused"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """Rows by table, and whether an earlier copy had brought them."""

    rows: dict[str, int]
    before: bool


class Checksum:
    """The number of a table's rows and a hash of them, in the order of their key."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = blake2b(digest_size=16)

    def add(self, row: Row) -> None:
        self.count += 1
        self._hash.update(repr([bytes(value) if isinstance(value, memoryview) else value for value in row]).encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checksum) and (self.count, self._hash.digest()) == (other.count, other._hash.digest())

    __hash__ = None  # type: ignore[assignment]


class Source:
    """One moment of a database file. Rows come one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def columns(self, table: str) -> list[str]:
        return [name for _, name, *_ in self._connection.execute(f"PRAGMA table_info({table})").fetchall()]

    def rows(self, table: str, checksum: Checksum) -> Iterator[Row]:
        """Read a table in the order of its key, as PostgreSQL will store it, and add every row to `checksum`."""
        columns = self.columns(table)
        booleans = [name in _BOOLEANS for name in columns]
        query = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {TABLES[table]}"  # noqa: S608 - names of our own
        for values in self._connection.execute(query):
            row = tuple(_stored(value, boolean) for value, boolean in zip(values, booleans, strict=True))
            checksum.add(row)
            yield row

    def last_event(self) -> int:
        """The last id that an event was given."""
        query = "SELECT max(last_id) FROM arrivals"
        return int(self._connection.execute(query).fetchone()[0] or 0)

    def last_ids(self) -> dict[str, int]:
        """The last ids given, by table; rows with them may be deleted."""
        return dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())


async def copy(
    source: Path, target: PostgresUrl, *, now_ms: Callable[[], int], progress: Callable[[str], None]
) -> Copied:
    """Copy everything, or find that it was copied before. `progress` is called with a line for each table.

    Raises CopyRefused if the target has data of its own or reads back differently, LockHeld while a receiver serves the
    source, StoreUnusable; then nothing was changed.
    """
    from pisync_receiver.store.postgres.copy import open_target

    with opening.writing(source, "pisync-receiver copy"), _source(source) as given:
        async with open_target(target, now_ms=now_ms()) as taken:
            before = not await taken.is_empty(TABLES)
            sent = {table: Checksum() for table in TABLES}
            for table, checksum in sent.items():
                rows = given.rows(table, checksum)
                if before:
                    deque(rows, maxlen=0)
                else:
                    progress(f"copying {table}")
                    await taken.fill(table, given.columns(table), rows)
            for table, checksum in sent.items():
                progress(f"comparing {table}: {checksum.count:,} rows")
                found = Checksum()
                async for row in taken.rows(table, given.columns(table), TABLES[table]):
                    found.add(row)
                if found != checksum:
                    raise CopyRefused(_refusal(target, table, checksum.count, found.count, before=before))
            if not before:
                await taken.set_counters(given.last_event(), given.last_ids())
    return Copied(rows={table: checksum.count for table, checksum in sent.items()}, before=before)


@contextmanager
def _source(path: Path) -> Iterator[Source]:
    """The database at `path`, inside the block. Raises StoreUnusable, SchemaMismatch."""
    check_log(path)
    with unusable(path, "read"):
        connection = connect(path, readonly=True)
        try:
            schema.check(connection, path)
            connection.execute("BEGIN")
            yield Source(connection)
        finally:
            connection.close()


def _stored(value: object, boolean: bool) -> object:
    if boolean:
        return bool(value)
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _refusal(target: PostgresUrl, table: str, sent: int, found: int, *, before: bool) -> str:
    if before:
        return (
            f"{target} has data of its own ({table}: {found:,} rows there, {sent:,} here, or other rows), so nothing "
            "was changed. A receiver may have served it since it was copied; otherwise name an empty database"
        )
    return (
        f"{table}, read back, is not what was copied; nothing was stored in {target}. Check the disks of both "
        "machines, then try again"
    )
