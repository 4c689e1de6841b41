"""The two kinds of database, for whoever has an address and does not care which it is.

SQLite has one writer: the receiver that serves, or the command that takes its lock while none does. PostgreSQL has as
many as come, so a command writes by itself. Its driver is imported only where its address is used.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pisync_receiver import control
from pisync_receiver.administration import alone
from pisync_receiver.config import Paths
from pisync_receiver.errors import ReceiverError
from pisync_receiver.store import Reader, Store, sqlite
from pisync_receiver.store.address import Address, PostgresUrl


def open_store(place: Address, *, create: bool = False) -> Store:
    """Open for writing. On SQLite the caller holds the writer's lock.

    Raises StoreUnusable, SchemaMismatch.
    """
    if isinstance(place, PostgresUrl):
        from pisync_receiver.store import postgres

        return postgres.open_store(place, create=create)
    return sqlite.open_store(place, create=create)


@contextmanager
def open_reader(place: Address) -> Iterator[Reader]:
    """Open for queries alone, whoever is writing. Raises StoreUnusable, SchemaMismatch."""
    reader: Reader
    if isinstance(place, PostgresUrl):
        from pisync_receiver.store import postgres

        reader = postgres.open_reader(place)
    else:
        reader = sqlite.open_reader(place)
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def writing(place: Address, holder: str) -> Iterator[None]:
    """What must be held while a store is open for writing: on SQLite the writer's lock. Raises LockHeld."""
    if isinstance(place, PostgresUrl):
        yield
        return
    with control.writer_lock(Paths(database=place), holder):
        yield


def migrate(place: Address) -> list[str]:
    """Bring the schema up; what was applied. Raises SchemaMismatch, StoreUnusable, LockHeld, changing nothing."""
    with writing(place, "pisync-receiver migrate"):
        if isinstance(place, PostgresUrl):
            from pisync_receiver.store import postgres

            return postgres.migrate(place)
        return sqlite.migrate(place)


def administer(place: Address, message: Mapping[str, Any]) -> dict[str, Any]:
    """Have an admin's message done (see `administration`). Raises PiSyncError."""
    do = alone(lambda: open_store(place, create=True))
    if isinstance(place, PostgresUrl):
        return control.done(do, message)
    return control.administer(Paths(database=place), message, alone=do)


def backup(place: Address, file: Path) -> None:
    """Write a consistent copy. Raises StoreUnusable, and ReceiverError where the database has its own way."""
    if isinstance(place, PostgresUrl):
        raise ReceiverError(
            f"{place} is backed up by PostgreSQL's own programs: pg_dump for a copy, or continuous archiving "
            "(docs/scaling.md)"
        )
    sqlite.backup(place, file)


def identity(place: Address) -> str:
    """What tells this database from any other, whatever it is called. Raises StoreUnusable."""
    if isinstance(place, PostgresUrl):
        from pisync_receiver.store import postgres

        return postgres.identity(place)
    return str(place)


def exists(place: Address) -> bool:
    """Whether there is something to open, as far as can be told without opening it."""
    return isinstance(place, PostgresUrl) or place.is_file()
