"""A server that answers as told, byte for byte: for what no decent server would say."""

import contextlib
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from pisync_common.problems import CONTENT_TYPE
from pisync_common.wire import NONCE_HEADER

Talk = Callable[["Peer"], None]
NONCE: Final = b"0123456789abcdef"
"""Stands for a request's nonce in an answer made by `http`."""


class Peer:
    """One connection, from the server's side."""

    def __init__(self, connection: socket.socket, server: "RawServer") -> None:
        self._connection = connection
        self._server = server
        self._unread = b""
        self._nonce = NONCE

    def request(self) -> bytes | None:
        """The next whole request, head and body; None where the other side has closed."""
        while b"\r\n\r\n" not in self._unread:
            if not self._more():
                return None
        head, _, rest = self._unread.partition(b"\r\n\r\n")
        fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        self._nonce = next((value.strip() for name, _, value in fields if name == b"pisync-nonce"), NONCE)
        length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
        while len(rest) < length:
            self._unread = rest
            if not self._more():
                return None
            rest = self._unread
        self._unread = rest[length:]
        self._server.requests.append(head + b"\r\n\r\n" + rest[:length])
        return self._server.requests[-1]

    def send(self, data: bytes) -> None:
        self._connection.sendall(self.echoing(data))

    def echoing(self, data: bytes) -> bytes:
        """Return the bytes of an answer with the nonce of the last request, where `http` left room for it."""
        return data.replace(NONCE, self._nonce)

    def wait(self) -> None:
        """Until the server is closed: say nothing."""
        self._server.closing.wait()

    def join(self, port: int) -> None:
        """Pass on what comes, both ways, to another port of this machine until either side closes."""
        with socket.create_connection(("127.0.0.1", port)) as other:
            ends = {self._connection: other, other: self._connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    if not (data := end.recv(65536)):
                        return
                    ends[end].sendall(data)

    def reset(self) -> None:
        """Break the connection off, so that the other side sees a reset."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._connection.close()

    def _more(self) -> bool:
        data = self._connection.recv(65536)
        self._unread += data
        return bool(data)


class RawServer:
    """Talks as `talk` does, on every connection; in a `with` block."""

    def __init__(self, talk: Talk, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = 0
        """Connections that are closed on this side."""
        self.closing = threading.Event()
        self._talk = talk
        self._tls = tls
        self._listener = socket.create_server((host, 0))
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._tls is None:
                self._talk(Peer(connection, self))
            else:
                with self._tls.wrap_socket(connection, server_side=True) as secure:
                    self._talk(Peer(secure, self))
        self.ended += 1


def answering(*answers: bytes) -> Talk:
    """Each request of a connection gets the next answer, the last one again and again."""

    def talk(peer: Peer) -> None:
        left = list(answers)
        while peer.request() is not None:
            peer.send(left.pop(0) if len(left) > 1 else left[0])

    return talk


def http(
    status: int, body: bytes | str | dict[str, Any] = b"", *, kind: str = "application/json", **more: str
) -> bytes:
    """Return an answer as bytes; `retry_after="7"` becomes a header. JSON is the receiver's own, so it has a nonce."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": kind, "Content-Length": str(len(raw))}
    if kind in ("application/json", CONTENT_TYPE):
        fields[NONCE_HEADER] = NONCE.decode()
    fields |= {name.replace("_", "-").title(): value for name, value in more.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Made Up\r\n{head}\r\n".encode() + raw
