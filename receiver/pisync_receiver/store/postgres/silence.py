"""The end of waiting for a server that keeps the connection and says nothing.

A disk that hangs, a machine that is stopped or a proxy that is stuck: TCP is answered, so none of its time-outs ends
the wait, and the server's own are its own. Shutting the line down does: whoever waits finds the connection lost.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from psycopg import OperationalError
from psycopg.pq.abc import PGconn


class Line(Protocol):
    """A connection."""

    @property
    def pgconn(self) -> PGconn: ...


def cut(line: Line) -> None:
    """Shut it down, whoever waits for it. From any thread."""
    with suppress(OSError, OperationalError), socket.socket(fileno=os.dup(line.pgconn.socket)) as end:
        end.shutdown(socket.SHUT_RDWR)


class Watchdog:
    """Cuts the lines of threads that have waited for too long. Its own thread begins when somebody waits, and ends when
    it finds that nobody does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[object, tuple[Line, float]] = {}
        self._changing = threading.Lock()
        self._looking = False

    @contextmanager
    def over(self, line: Line) -> Iterator[None]:
        """Cut `line` when the block takes longer than `seconds`, or up to a quarter more."""
        ticket = object()
        with self._changing:
            self._since[ticket] = (line, time.monotonic())
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="pisync-watchdog", daemon=True).start()
        try:
            yield
        finally:
            with self._changing:
                del self._since[ticket]

    def _look(self) -> None:
        while True:
            time.sleep(self._seconds / 4)
            with self._changing:
                if not self._since:
                    self._looking = False
                    return
                for line, since in self._since.values():
                    if time.monotonic() - since > self._seconds:
                        cut(line)
