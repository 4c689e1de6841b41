"""The engine of an address: SQLite for a file, PostgreSQL for a URL. Its driver is imported only where it is used.

A SQLite file has one writing process, which holds the writer's lock; a PostgreSQL database has any number.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pisync_common.errors import LockHeld
from pisync_common.single_writer import WriterLock
from pisync_receiver.errors import ReceiverError
from pisync_receiver.store import Store
from pisync_receiver.store.address import Address, PostgresUrl
from pisync_receiver.store.sqlite import store as sqlite
from pisync_receiver.store.sqlite.backup import backup as back_up_file


async def open_store(place: Address, *, create: bool = False) -> Store:
    """Open for writing; on SQLite the caller holds the writer's lock (`writing`). `create` makes a missing database.

    Raises StoreUnusable, SchemaMismatch.
    """
    if isinstance(place, PostgresUrl):
        from pisync_receiver.store import postgres

        return await postgres.open_store(place, create=create)
    return sqlite.open_store(place, create=create)


async def migrate(place: Address, *, begin: Callable[[], None] = lambda: None) -> list[str]:
    """Bring the schema up, calling `begin` first if there is something to do; return what was applied. Raises
    SchemaMismatch, StoreUnusable, LockHeld, changing nothing."""
    with writing(place, "pisync-receiver migrate"):
        if isinstance(place, PostgresUrl):
            from pisync_receiver.store import postgres

            return await postgres.migrate(place, begin=begin)
        return sqlite.migrate(place, begin=begin)


@contextmanager
def writing(place: Address, holder: str) -> Iterator[None]:
    """Hold what a process needs in order to write: on SQLite the writer's lock. Raises LockHeld, naming its holder."""
    if isinstance(place, PostgresUrl):
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = WriterLock(place.with_name(f"{place.name}.lock"))
    try:
        lock.acquire(wait=False)
    except LockHeld as error:
        raise LockHeld(
            f"{place} is in use by {_holder(lock.path)}; nothing was changed; stop it first, or name another database"
        ) from error
    try:
        lock.path.write_text(f"{holder} (process {os.getpid()})\n")
        yield
    finally:
        lock.release()


def exists(place: Address) -> bool:
    """Return whether there is something to open, as far as can be seen without opening it."""
    return isinstance(place, PostgresUrl) or place.is_file()


def backup(place: Address, file: Path) -> None:
    """Write a consistent copy. Raises StoreUnusable, and ReceiverError for PostgreSQL, which has its own programs."""
    if isinstance(place, PostgresUrl):
        raise ReceiverError(
            f"{place} is backed up by PostgreSQL's own programs: pg_dump for a copy, or continuous archiving "
            "(docs/scaling.md)"
        )
    back_up_file(place, file)


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if name := lock.read_text().strip():
            return name
    return "another process"
