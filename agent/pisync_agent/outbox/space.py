"""Room on the disk: how large the outbox may grow, and a small reserve that lets delivery go on when nothing is left.

With a full disk SQLite can delete nothing, because a deletion is written first; so a full queue could never drain.
Three things prevent that. The file's size is capped well below what is free, and the cap is lifted a little for
delivery's own bookkeeping. Should others fill the disk, `outbox.reserve` (a file of nothing) is given up when that
bookkeeping meets a full disk, and made again when there is room. And the log is written back to the file often enough
that the reserve holds by how much the file has to grow for it.
"""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pisync_agent.outbox.connection import Connection
from pisync_agent.outbox.models import OutboxLimits
from pisync_common.limits import KIB

FreeBytes = Callable[[Path], int]

RESERVE_BYTES: Final = 1024 * KIB
LEAST_RESERVE: Final = 16 * KIB
LEAST_PAGES: Final = 16
OPENING_BYTES: Final = 64 * KIB
"""Free before the file is opened: where SQLite's shared memory finds no room, the process is killed (SIGBUS)."""
SPARE_PAGES: Final = 64
"""What bookkeeping may use beyond the cap."""


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write beside the outbox."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def page_size(connection: Connection) -> int:
    return _number(connection, "PRAGMA page_size")


def page_cap(connection: Connection, limits: OutboxLimits, free: int) -> int:
    """How many pages the file may have: `max_bytes`, and half at most of what would be free without it.

    So the cap stays where it is while the file grows; and it is never below what the file has already.
    """
    size, pages = page_size(connection), _number(connection, "PRAGMA page_count")
    wanted = min(limits.max_bytes // size, (pages + free // size) // 2)
    return max(wanted, pages, LEAST_PAGES)


def set_page_cap(connection: Connection, pages: int) -> None:
    """From now on the file may not grow beyond `pages`."""
    connection.execute(f"PRAGMA max_page_count = {pages:d}")  # a pragma takes no parameters


def set_checkpoint(connection: Connection, reserve: int) -> None:
    """Write the log back when it has grown to a quarter of `reserve` bytes."""
    pages = max(4, reserve // 4 // page_size(connection))
    connection.execute(f"PRAGMA wal_autocheckpoint = {pages:d}").fetchone()


def bytes_used(connection: Connection) -> int:
    """Bytes of the file that hold something."""
    pages = _number(connection, "PRAGMA page_count") - _number(connection, "PRAGMA freelist_count")
    return pages * page_size(connection)


class NoRoom(sqlite3.OperationalError):
    """As if SQLite had found the disk full: what is about to be written could not be written back."""

    def __init__(self) -> None:
        super().__init__("database or disk is full")


def growth(connection: Connection, path: Path) -> int:
    """By how many bytes the file still has to grow for what stands in the log. Raises OSError."""
    pages = _number(connection, "PRAGMA page_count")
    return max(0, pages * page_size(connection) - path.stat().st_size)


class Reserve:
    """A preallocated file, given up when there is no other room left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def whole(self) -> int:
        """Its size in bytes where there is room enough: at most 1/64 of the disk. Raises OSError."""
        disk = os.statvfs(self._path.parent)
        return max(LEAST_RESERVE, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 64))

    def make(self) -> bool:
        """Have the reserve, or half of what is free where that is less; whether there is any."""
        try:
            present = self._path.stat().st_size if self._path.exists() else 0
            size = min(self.whole(), present + free_bytes(self._path.parent) // 2)
            if size > present:
                self._allocate(size)
            return size >= LEAST_RESERVE
        except OSError:
            return False

    def spend(self) -> bool:
        """Give the room back; whether there was any to give."""
        try:
            self._path.unlink()
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)
        return True

    def _allocate(self, size: int) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)


def _number(connection: Connection, pragma: str) -> int:
    return int(connection.execute(pragma).fetchone()[0])
