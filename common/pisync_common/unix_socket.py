"""Unix sockets by path, however long the path: the connection to the one process that writes.

A socket address holds 107 bytes; a longer path is reached through a descriptor of its folder.
Messages are JSON, one a line.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LINE_BYTES = 16 * 1024 * 1024
"""The longest message either side reads."""


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

    Raises OSError without a server (FileNotFoundError, ConnectionRefusedError) or when the peer disconnects.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            with address(path) as name:
                self._socket.connect(name)
            self._lines = self._socket.makefile("rb")
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: Mapping[str, Any]) -> None:
        self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        line = self._lines.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the other side closed the connection before it answered")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ConnectionResetError(f"not a message: {line[:80]!r}")
        return answer

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.send(message)
        return self.receive()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
