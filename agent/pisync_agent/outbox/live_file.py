"""The outbox's file in use: opened, watched, salvaged when it turns out broken, replaced when its stream ends.

One writing connection behind one lock; one reading connection, for delivery, behind another.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pisync_agent.clock import Clock
from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox import database, files, pointers
from pisync_agent.outbox.database import BrokenOutbox
from pisync_agent.outbox.disk import DiskGuard, FreeBytes
from pisync_agent.outbox.faults import explained, is_damage
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.recovery import contents, salvage, swap
from pisync_common.sqlite import ERRORS, Connect, Connection, transaction

T = TypeVar("T")


class LiveFile:
    """See the module. Raises StoreUnusable or OutboxFull where the file cannot be used; no other error leaves it."""

    def __init__(
        self,
        home: Path,
        *,
        limits: OutboxLimits,
        clock: Clock,
        random_hex: Callable[[int], str],
        connect: Connect,
        free_bytes: FreeBytes,
    ) -> None:
        self.path = files.database(home)
        self.disk = DiskGuard(self.path, limits=limits, free_bytes=free_bytes)
        self.mutex = threading.RLock()
        self.stream = ""
        self._clock = clock
        self._random_hex = random_hex
        self._connect = connect
        self._reading = threading.Lock()
        self._reader: Connection | None = None
        self._writer: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._closed = False
        with self.mutex:
            try:
                self._open_or_salvage()
            except BaseException:
                self._close_writer()
                raise

    @property
    def connection(self) -> Connection:
        """The writing connection; for the holder of the mutex."""
        if self._writer is None:
            raise StoreUnusable(f"{self.path} is closed")
        return self._writer

    def guarded(self, action: Callable[[], T]) -> T:
        """Do it with the mutex held; if the file turns out broken, do it again on the file that follows."""
        with self.mutex:
            if self._writer is None and not self._closed:
                self._open_or_salvage()
            try:
                return action()
            except ERRORS as error:
                self._handle(error)
            try:
                return action()
            except ERRORS as error:
                raise explained(self.path, error) from error

    def write(self, action: Callable[[Connection], T]) -> T:
        """Commit everything `action` writes, or nothing. Within `guarded`."""
        connection = self.connection
        with transaction(connection):
            return action(connection)

    def read(self, stream: str | None, action: Callable[[Connection], T], default: T) -> T:
        """Return what `action` finds on the reading connection, beside the writing one.

        Returns `default` if `stream` has ended, or if the file turned out broken and was salvaged.
        """
        with self._reading:
            try:
                if stream is not None and stream != self.stream:
                    return default
                return action(self._read_connection())
            except ERRORS as error:
                self._close_reader()
                failed = error
        with self.mutex:
            self._handle(failed)
        return default

    def renew(self, reason: str, *, broken: bool, after: int = 0) -> None:
        """Replace the file by one with a new stream; `salvage` says what is transferred. Within `guarded`."""
        with self._reading:
            self._close_reader()
            with files.errors(self.path):
                target = self.disk.sparing(lambda: self._build(reason, broken=broken, after=after))
                swap.swap(self.path, target)
            # Closed after its file was renamed, so that SQLite leaves the file that was set aside as it is.
            self._close_writer()
            self._open()

    def is_current(self) -> bool:
        """Return whether the open file is still the one in place (another process may have swapped it)."""
        try:
            return files.identity(self.path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close the connections; harmless when they are closed."""
        with self._reading:
            self._close_reader()
        with self.mutex:
            self._closed = True
            self._close_writer()

    def _open_or_salvage(self) -> None:
        """Open the file; if it is broken, set it aside and open the file that follows."""
        with files.errors(self.path):
            files.tighten(self.path.parent)
            swap.finish_swap(self.path)
            found = salvage.hidden_damage(self.path)
        try:
            if found:
                raise BrokenOutbox(found)
            self._open()
        except ERRORS as error:
            self._handle(error)

    def _open(self) -> None:
        """Open the file. On failure close the connection, unless the file is broken: closing would change it."""
        try:
            self.disk.sparing(self._open_once)
        except BaseException as error:
            if not is_damage(error):
                self._close_writer()
            raise

    def _open_once(self) -> None:
        self._close_writer()
        self.disk.before_opening()
        files.touch(self.path)
        connection = self._writer = self._connect(self.path, readonly=False)
        database.make_durable(connection, self.path)
        database.migrate(connection, self.path)
        if database.is_empty(connection):
            with transaction(connection):
                salvage.begin_stream(connection, self._random_hex(8))
        salvage.check(connection, self.path)
        self.stream = pointers.load(connection).stream
        self.disk.opened(connection)
        self._identity = files.identity(self.path)

    def _build(self, reason: str, *, broken: bool, after: int) -> Path:
        return salvage.build(
            self.path,
            contents.read_file(self.path, after=after),
            broken=broken,
            reason=reason,
            stream=self._random_hex(8),
            key=self._random_hex(16),
            stamp=self._clock.stamp(),
            connect=self._connect,
        )

    def _read_connection(self) -> Connection:
        if self._reader is None:
            if self._writer is None:
                raise StoreUnusable(f"{self.path} is closed")
            self._reader = self._connect(self.path, readonly=True)
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            _close(self._reader)
            self._reader = None

    def _close_writer(self) -> None:
        if self._writer is not None:
            _close(self._writer)
            self._writer = None

    def _handle(self, error: Exception) -> None:
        """Salvage a broken file; raise what any other error means."""
        if not is_damage(error):
            raise explained(self.path, error) from error
        try:
            self.renew(str(error), broken=True)
        except ERRORS as again:
            raise explained(self.path, again) from again


def _close(connection: Connection) -> None:
    """Close a connection whose file may be broken or gone."""
    with contextlib.suppress(*ERRORS):
        connection.close()
