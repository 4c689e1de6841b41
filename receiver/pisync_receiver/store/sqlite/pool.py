"""Read-only connections, shared by threads: each query borrows one."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.sqlite.connection import Connect, Connection, Error, unusable

SIZE: Final = 4
"""Connections open at most; a query waits while all are lent."""


class Readers:
    """Opens connections as they are needed, `SIZE` at most."""

    def __init__(self, path: Path, connect: Connect, size: int = SIZE) -> None:
        self._path = path
        self._connect = connect
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._places = threading.Semaphore(size)
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """A connection for the length of the block, during which the engine's errors become StoreUnusable."""
        if self._closed:
            raise StoreUnusable(f"{self._path} was closed")
        with self._places, unusable(self._path, "read"):
            connection = self._take()
            try:
                yield connection
            except Error:
                _close(connection)  # whatever is wrong, the next query gets a fresh one
                raise
            except BaseException:
                self._give_back(connection)
                raise
            self._give_back(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """The same, and everything read in the block is of one moment."""
        with self.lend() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def close(self) -> None:
        """Close those that are free now, and each lent one when it comes back."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                _close(self._free.get_nowait())

    def _take(self) -> Connection:
        with suppress(queue.Empty):
            return self._free.get_nowait()
        return self._connect(self._path, readonly=True)

    def _give_back(self, connection: Connection) -> None:
        self._free.put(connection)
        if self._closed:
            self.close()


def _close(connection: Connection) -> None:
    with suppress(Error):
        connection.close()
