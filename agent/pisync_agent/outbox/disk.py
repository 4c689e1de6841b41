"""Disk space: how large the outbox may grow, and a small reserve that lets delivery go on when the disk is full.

On a full disk SQLite cannot delete anything, because a deletion is first written to the log; so a full queue could
never drain. Three measures prevent that. The file's size is capped well below the free space, and the cap is raised a
little for delivery's own bookkeeping. If other programs fill the disk, `outbox.reserve` (a file without content) is
given up when that bookkeeping meets a full disk, and made again when there is room. And the log is written back to the
file often enough that the reserve holds what the file still has to grow by.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from pisync_agent.outbox import files
from pisync_agent.outbox.faults import is_full_for
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.recovery.log import FRAME_HEADER, WAL_HEADER
from pisync_agent.outbox.space import free_bytes, total_bytes
from pisync_common.limits import KIB
from pisync_common.sqlite import ERRORS, Connection

T = TypeVar("T")
FreeBytes = Callable[[Path], int]

RESERVE_BYTES: Final = 1024 * KIB
LEAST_RESERVE: Final = 16 * KIB
LEAST_BYTES: Final = 64 * KIB
"""The least size of a file's cap: an empty outbox fits."""
OPENING_BYTES: Final = 64 * KIB
"""Free space needed to open the file: without room for SQLite's shared memory the process is killed (SIGBUS)."""
MOST_PAGES: Final = 2**30
"""The most pages a database may have, in every version of SQLite."""
SPARE_BYTES: Final = 256 * KIB
"""How far bookkeeping may go beyond the cap."""
LOG_SHARE: Final = 16
"""The log is kept at its full size where it takes less than this share of the free bytes (one in 16)."""


def bytes_used(connection: Connection) -> int:
    """Return the bytes of the file that hold content."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


class NoRoom(sqlite3.OperationalError):
    """As if SQLite had found the disk full: the log could not be written back to the file later."""

    def __init__(self) -> None:
        super().__init__("database or disk is full")


class DiskGuard:
    """Bounds one outbox, whatever connection it has at the moment, and keeps its reserve. Not thread-safe."""

    def __init__(self, path: Path, *, limits: OutboxLimits, free_bytes: FreeBytes) -> None:
        self._path = path
        self._limits = limits
        self._free_bytes = free_bytes
        self._reserve = Reserve(files.reserve(path.parent))
        self._connection: Connection | None = None
        self._capped_pages = 0
        self._page_size = 0
        self._log_kept = False
        self.quarter = 0
        """A quarter of the reserve, in bytes: what one piece of bookkeeping may change."""

    @property
    def most(self) -> int:
        """How many bytes the file may have."""
        return min(self._limits.max_bytes, self._capped_pages * self._page_size)

    def before_opening(self) -> None:
        """Raises OutboxFull if there is no room to open a database, even without the reserve."""
        self._connection = None
        with files.errors(self._path):
            if free_bytes(self._path.parent) < OPENING_BYTES:
                self._reserve.spend()
            if free_bytes(self._path.parent) < OPENING_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self, connection: Connection) -> None:
        """Bound this connection's file from now on, and keep a reserve beside it."""
        self._connection = connection
        self._log_kept = False
        self.measure()
        self.write_back()
        self._reserve.make()

    def measure(self) -> None:
        """Set the file's cap and checkpoint size from the space that is free now."""
        connection = self._connection
        assert connection is not None
        with files.errors(self._path):
            whole = self._reserve.whole()
            free = self._free_bytes(self._path.parent)
        self.quarter = whole // 4
        self._page_size = _pragma(connection, "page_size")
        pages = _pragma(connection, "page_count")
        # Half of what would be free without the file, so that the cap stays as it is while the file grows.
        wanted = min(self._limits.max_bytes // self._page_size, (pages + free // self._page_size) // 2, MOST_PAGES)
        self._capped_pages = max(wanted, pages, LEAST_BYTES // self._page_size)
        self._cap(self._capped_pages)
        connection.execute(f"PRAGMA wal_autocheckpoint = {self._log_frames():d}").fetchone()

    def check(self, needed: int) -> None:
        """Raise NoRoom if the reserve might not hold what must be written back after `needed` bytes more.

        Otherwise a full disk would keep delivery from making room.
        """
        self._keep_log()
        if needed > self.quarter and free_bytes(self._path.parent) < 2 * needed:
            raise NoRoom
        if self._growth() > 2 * self.quarter:
            self.write_back()
            if self._growth() > 2 * self.quarter:
                raise NoRoom

    def recover(self) -> None:
        """Write the log back, on the reserve if need be, before delivered events are deleted."""
        if self._growth() > self.quarter:
            self._reserve.spend()
        self.write_back()
        self._reserve.make()

    def maintained(self, action: Callable[[], T]) -> T:
        """Do bookkeeping that must succeed on a full disk too: beyond the cap if need be, then on the reserve."""
        try:
            return action()
        except ERRORS as error:
            if not self.is_full(error) or self._connection is None:
                raise
        self._cap(self._capped_pages + SPARE_BYTES // self._page_size)
        try:
            return self.sparing(action)
        finally:
            self._cap(self._capped_pages)
            self._reserve.make()

    def sparing(self, action: Callable[[], T]) -> T:
        """Do it; if the disk is full, give up the reserve and do it again."""
        try:
            return action()
        except ERRORS as error:
            if not self.is_full(error):
                raise
        self._reserve.spend()
        self.write_back()
        return action()

    def is_full(self, error: BaseException) -> bool:
        """Return whether there was no room for the file, its log or its index."""
        return is_full_for(error, self._path.parent)

    def write_back(self) -> None:
        """Move committed pages from the log into the file, so that the log starts over."""
        if self._connection is not None:
            with contextlib.suppress(*ERRORS):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _log_frames(self) -> int:
        """Return how many pages the log holds before it is written back."""
        return max(4, self.quarter // self._page_size)

    def _keep_log(self) -> None:
        """Bring the log, once it has begun, to the size it will have: a commit then changes no file's size.

        A commit that makes the log longer also writes 12 KiB to a file system's journal. SQLite does not mind bytes
        behind its last frame, and PiSync's own reader takes zeros for the end.
        """
        if self._log_kept:
            return
        log = files.companion(self._path, "-wal")
        wanted = WAL_HEADER + self._log_frames() * (FRAME_HEADER + self._page_size)
        with contextlib.suppress(OSError):
            size = log.stat().st_size
            if size <= WAL_HEADER:
                return
            if size < wanted < self._free_bytes(self._path.parent) // LOG_SHARE:
                files.lengthen(log, wanted)
        self._log_kept = True

    def _cap(self, pages: int) -> None:
        """Keep the file from growing beyond `pages`."""
        assert self._connection is not None
        self._connection.execute(f"PRAGMA max_page_count = {pages:d}")  # a pragma takes no parameters

    def _growth(self) -> int:
        """Return by how many bytes the file still has to grow for what is in the log."""
        assert self._connection is not None
        with files.errors(self._path):
            size = _pragma(self._connection, "page_count") * _pragma(self._connection, "page_size")
            return max(0, size - self._path.stat().st_size)


class Reserve:
    """A preallocated file, given up when there is no other room left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def whole(self) -> int:
        """Return its full size in bytes: at most 1/64 of the disk. Raises OSError."""
        return max(LEAST_RESERVE, min(RESERVE_BYTES, total_bytes(self._path.parent) // 64))

    def make(self) -> bool:
        """Make the reserve, or half of what is free where that is less; return whether there is a reserve."""
        try:
            present = self._path.stat().st_size if self._path.exists() else 0
            size = min(self.whole(), present + free_bytes(self._path.parent) // 2)
            if size > present:
                self._allocate(size)
            return size >= LEAST_RESERVE
        except OSError:
            return False

    def spend(self) -> bool:
        """Give the room back; return whether there was any to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def _allocate(self, size: int) -> None:
        fd = files.create(self._path)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
