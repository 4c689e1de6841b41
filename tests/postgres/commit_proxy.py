"""A TCP proxy before PostgreSQL that breaks a connection at a commit: before it arrives, or after it was made; or keeps
the connection and passes nothing more."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final, Literal, Self

Fault = Literal["before", "after", "silent"]
_COMMIT: Final = b"COMMIT;\0"
"""As the store sends it."""


class CommitProxy:
    """In a `with` block. Each fault in `faults` breaks one connection, in their order."""

    def __init__(self, port: int) -> None:
        self.faults: list[Fault] = []
        self.broken = 0
        self.meanwhile: Callable[[], object] = lambda: None
        """Called before a fault shows."""
        self.hush = threading.Event()
        """While it is set, nothing comes from the server, and never again over a connection that it struck."""
        self._port = port
        self._breaking = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the server is away: so is this
                    client.close()
                    continue
                line = (client, server, threading.Event(), threading.Event())
                threading.Thread(target=self._up, args=line, daemon=True).start()
                threading.Thread(target=self._down, args=line, daemon=True).start()

    def _up(
        self, client: socket.socket, server: socket.socket, armed: threading.Event, silent: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.faults and _COMMIT in data:
                    fault = self.faults.pop(0)
                    self.broken += 1
                    if fault == "silent":
                        silent.set()
                        while client.recv(65536):
                            pass
                        break
                    if fault == "before":
                        with self._breaking:
                            self.meanwhile()
                        break
                    armed.set()
                server.sendall(data)
        if not armed.is_set():
            _shut(client, server)

    def _down(
        self, client: socket.socket, server: socket.socket, armed: threading.Event, silent: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if silent.is_set() or self.hush.is_set():
                    silent.set()
                    continue
                if armed.is_set():
                    self.meanwhile()
                    break
                client.sendall(data)
        if silent.is_set():
            return  # the client does not learn of the server's end
        with self._breaking:  # wait for `meanwhile`
            _shut(client, server)


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
