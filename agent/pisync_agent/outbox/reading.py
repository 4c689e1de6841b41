"""Opening an outbox only to read it, also where SQLite alone cannot: on a read-only card, or a full card.

To read a database with a log, SQLite makes files beside it. Where the folder takes none, a database without a log is
read as a file that does not change, and a database with a log is copied, with the log, to a folder that takes files.
A database is never read without its log: the newest events are in it.
"""

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox import database, files
from pisync_agent.outbox.faults import is_damage, refusal_to_write
from pisync_agent.outbox.recovery.log import WAL_HEADER
from pisync_agent.outbox.space import free_bytes
from pisync_common import sqlite
from pisync_common.sqlite import ERRORS, Connect, Connection

_COPIES: Final = 3
"""How often a copy is made again because the files changed meanwhile."""
_BUSY_MS: Final = 2000
"""How long reading waits for a lock: `status` is asked when something is wrong."""
_NO_INDEX: Final = ("SQLITE_READONLY", "SQLITE_CANTOPEN")
"""The index cannot be used as it is, or a writer that closed the outbox has just deleted it."""
_MEMORY: Final = "/dev/shm"  # noqa: S108 - a private folder is made in it


def look(path: Path, *, readonly: bool = True) -> Connection:
    """Open the database for reading; leave an index that a killed writer left, which says what its log must hold."""
    kept = files.companion(path, "-shm").exists()
    return sqlite.connect(path, readonly=readonly, keep_index=kept, pragmas=(f"busy_timeout = {_BUSY_MS}",))


def open_to_read(path: Path, connect: Connect, stack: ExitStack) -> Connection:
    """Return a connection in a transaction: one moment for all that is read. `stack` closes it.

    Raises StoreUnusable, OSError, or the connection's error.
    """
    try:
        return _begun(connect(path, readonly=True), path, stack)
    except ERRORS as error:
        if is_damage(error):
            raise
        if refusal_to_write(path.parent) is None:
            if not (getattr(error, "sqlite_errorname", "") or "").startswith(_NO_INDEX):
                raise
            with suppress(*ERRORS):
                return _begun(look(path), path, stack)
    for _ in range(_COPIES):
        before = _files(path)
        connection = _open_still(path, stack)
        if _files(path) == before:
            return connection
    raise StoreUnusable(f"{path} changed while it was copied to be read. Nothing is lost. Try again.")


def _begun(connection: Connection, path: Path, stack: ExitStack) -> Connection:
    stack.callback(connection.close)
    connection.execute("BEGIN")
    database.check_ours(connection, path)  # reads, so the moment begins here
    return connection


def _open_still(path: Path, stack: ExitStack) -> Connection:
    """Open a file whose folder takes no new file."""
    log = files.companion(path, "-wal")
    if not log.exists() or log.stat().st_size <= WAL_HEADER:
        return _begun(sqlite.connect(path, readonly=True, immutable=True), path, stack)
    import shutil  # these two are slow to load, and every command loads this module

    copy = _room_for(path, path.stat().st_size + log.stat().st_size, stack) / path.name
    shutil.copyfile(path, copy)
    shutil.copyfile(log, files.companion(copy, "-wal"))
    return _begun(sqlite.connect(copy, readonly=True), path, stack)


def _room_for(path: Path, size: int, stack: ExitStack) -> Path:
    """Return a new folder of this user alone with room for a copy of `size` bytes; `stack` deletes it."""
    import tempfile

    places = [os.environ.get("XDG_RUNTIME_DIR"), _MEMORY]
    with suppress(OSError):  # there may be no usual place
        places.insert(0, tempfile.gettempdir())
    for place in map(Path, filter(None, places)):
        with suppress(OSError):
            if free_bytes(place) > 2 * size:
                return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pisync-", dir=place)))
    raise StoreUnusable(
        f"{path} cannot be read: its folder takes no new file, and its log can be read only in a copy of "
        f"{size:,} bytes. Nothing is lost. Set TMPDIR to a folder with twice that room."
    )


def _files(path: Path) -> list[tuple[int, int, int] | None]:
    """Return which files database and log are, and when they changed."""
    found: list[tuple[int, int, int] | None] = []
    for file in (path, files.companion(path, "-wal")):
        try:
            now = file.stat()
            found.append((now.st_ino, now.st_size, now.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found
