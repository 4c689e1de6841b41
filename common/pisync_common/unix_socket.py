"""Unix sockets by path, however long the path: the connection to the one process that writes.

A socket address holds 107 bytes; a longer path is reached through a descriptor of its folder.
Messages are JSON, one a line.
"""

import fcntl
import json
import os
import socket
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pisync_common.limits import KIB, MIB

LINE_BYTES: Final = 2 * MIB
"""The longest message either side reads."""

_CHUNK_BYTES: Final = 64 * KIB
_CONNECT_RETRY_S: Final = 0.01


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield an address for `path` that fits `sockaddr_un`, valid inside the block."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_served(path: Path) -> bool:
    """Return whether a process listens at `path`."""
    try:
        LineClient(path, timeout=0.0).close()
    except TimeoutError:  # its queue of new connections is full
        return True
    except OSError:
        return False
    return True


def listen(path: Path, *, mode: int) -> socket.socket:
    """Return a listening socket at `path`, with `mode` as its permissions.

    The caller holds the writer's lock, so a socket at `path` was left by a process that is gone.
    """
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o777 & ~mode)
        try:
            with address(path) as name:
                server.bind(name)
        finally:
            os.umask(mask)
        server.listen(128)
    except BaseException:
        server.close()
        raise
    return server


class LineClient:
    """A connection that sends one JSON object a line and reads one back.

    Connecting, sending and receiving each take at most `timeout` seconds; None: no limit. Raises OSError without a
    server (FileNotFoundError, ConnectionRefusedError), when the peer disconnects or sends no message, and TimeoutError,
    after which the connection is of no further use.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: Mapping[str, Any], *, timeout: float | None = None) -> None:
        """Send a message; after a TimeoutError its line has no end, so the peer ignores it."""
        self._limit(self._until(timeout))
        self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self, *, timeout: float | None = None) -> dict[str, Any]:
        line, until = self._line(), self._until(timeout)
        while line is None:
            self._limit(until)
            chunk = self._socket.recv(_CHUNK_BYTES)
            if not chunk or len(self._received) > LINE_BYTES:
                raise ConnectionResetError("the other side closed the connection before it answered")
            self._received += chunk
            line = self._line(len(self._received) - len(chunk))
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ConnectionResetError(f"not a message: {line[:80]!r}")
        return answer

    def ask(self, message: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        self.send(message, timeout=timeout)
        return self.receive(timeout=timeout)

    def has_unread(self) -> bool:
        """Return whether the peer has not yet read everything that was sent."""
        unread = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(unread, sys.byteorder) > 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, path: Path) -> None:
        """Connect; wait while the server's queue of new connections is full, which no timeout of a socket covers."""
        until = self._until(None)
        self._socket.setblocking(False)
        with address(path) as name:
            while True:
                try:
                    return self._socket.connect(name)
                except BlockingIOError as error:
                    if until is not None and time.monotonic() >= until:
                        raise TimeoutError("the server accepts no connection") from error
                time.sleep(_CONNECT_RETRY_S)

    def _until(self, timeout: float | None) -> float | None:
        timeout = self._timeout if timeout is None else timeout
        return None if timeout is None else time.monotonic() + timeout

    def _limit(self, until: float | None) -> None:
        """Let the next operation end at `until`. Raises TimeoutError if that has passed."""
        seconds = None if until is None else until - time.monotonic()
        if seconds is not None and seconds <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(seconds)

    def _line(self, start: int = 0) -> bytes | None:
        """Return the first line received, looking for its end from `start`; None if it has no end yet."""
        end = self._received.find(b"\n", start)
        if end < 0:
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line
