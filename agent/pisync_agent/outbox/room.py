"""The room an open outbox has, and how its work is done when there is little (see `space`)."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pisync_agent.outbox import files, space
from pisync_agent.outbox.connection import Connection, Error, is_full
from pisync_agent.outbox.models import OutboxLimits

T = TypeVar("T")


class Room:
    """Belongs to one outbox, whatever connection it has at the moment. Not thread-safe."""

    def __init__(self, path: Path, *, limits: OutboxLimits, free_bytes: space.FreeBytes) -> None:
        self._path = path
        self._limits = limits
        self._free_bytes = free_bytes
        self._reserve = space.Reserve(files.reserve(path.parent))
        self._connection: Connection | None = None
        self._capped_pages = 0
        self._page_size = 0
        self.quarter = 0
        """A quarter of the reserve, in bytes: what one piece of bookkeeping may change."""

    @property
    def most(self) -> int:
        """How many bytes the file may have."""
        return min(self._limits.max_bytes, self._capped_pages * self._page_size)

    def before_opening(self) -> None:
        """Raises OutboxFull if there is no room to open a database, the reserve included."""
        self._connection = None
        with files.errors(self._path):
            if space.free_bytes(self._path.parent) < space.OPENING_BYTES:
                self._reserve.spend()
            if space.free_bytes(self._path.parent) < space.OPENING_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self, connection: Connection) -> None:
        """From now on this connection's file is bounded, and a reserve is kept beside it."""
        self._connection = connection
        self.measure()
        self.write_back()
        self._reserve.make()

    def measure(self) -> None:
        """Set the file's cap by what is free now."""
        assert self._connection is not None
        with files.errors(self._path):
            whole = self._reserve.whole()
            free = self._free_bytes(self._path.parent)
        self.quarter = whole // 4
        self._page_size = space.page_size(self._connection)
        self._capped_pages = space.page_cap(self._connection, self._limits, free)
        space.set_page_cap(self._connection, self._capped_pages)
        space.set_checkpoint(self._connection, whole)

    def check(self, needed: int) -> None:
        """Raises NoRoom (a full disk) if, after `needed` bytes more, the reserve might not hold what still has to be
        written back: then delivery could not make room any more."""
        if needed > self.quarter and space.free_bytes(self._path.parent) < 2 * needed:
            raise space.NoRoom
        if self._growth() > 2 * self.quarter:
            self.write_back()
            if self._growth() > 2 * self.quarter:
                raise space.NoRoom

    def recover(self) -> None:
        """Write back what has to be, on the reserve if need be. For when delivered events can be deleted next."""
        if self._growth() > self.quarter:
            self._reserve.spend()
        self.write_back()
        self._reserve.make()

    def maintained(self, action: Callable[[], T]) -> T:
        """Do bookkeeping that must succeed on a full disk too: beyond the cap if need be, then on the reserve."""
        try:
            return action()
        except Error as error:
            if not is_full(error) or self._connection is None:
                raise
        space.set_page_cap(self._connection, self._capped_pages + space.SPARE_PAGES)
        try:
            return self.sparing(action)
        finally:
            space.set_page_cap(self._connection, self._capped_pages)
            self._reserve.make()

    def sparing(self, action: Callable[[], T]) -> T:
        """Do it; if the disk is full, give up the reserve and do it again."""
        try:
            return action()
        except Error as error:
            if not is_full(error):
                raise
        self._reserve.spend()
        self.write_back()
        return action()

    def write_back(self) -> None:
        """Move what has been committed from the log into the file, so that the log begins from its start again."""
        if self._connection is not None:
            with contextlib.suppress(*Error):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _growth(self) -> int:
        assert self._connection is not None
        with files.errors(self._path):
            return space.growth(self._connection, self._path)
