"""What stands between a device and its receiver: a real HTTP server that answers in its place, or passes a request on.

with Gateway(receiver.port) as gateway:
    ...                                                  # the device uses gateway.url
    gateway.answer = lambda path, size: http(502, PAGE, kind="text/html")
    gateway.answer = passing                             # as if it were not there
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.support.raw_server import Peer, RawServer

DEADLINE_S: Final = 60.0

Decide = Callable[[str, int], bytes | None]
"""From a request's path and the size of its body to the answer; None passes it on."""


def passing(path: str, size: int) -> bytes | None:
    """Everything reaches the receiver."""
    return None


@dataclass(frozen=True)
class Seen:
    """A request: where it went, when it came and when its answer was about to go (monotonic seconds)."""

    path: str
    came: float
    answered: float


class Gateway:
    """Plain HTTP before the receiver at `port` of this machine. `answer` may be changed at any time."""

    def __init__(self, port: int) -> None:
        self.answer: Decide = passing
        self.seen: list[Seen] = []
        """Every request, whoever answered it; it is here before its answer goes."""
        self._port = port
        self._server = RawServer(self._talk)

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def _talk(self, peer: Peer) -> None:
        while (request := peer.request()) is not None:
            came = time.monotonic()
            head, _, body = request.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            answer = self.answer(path, len(body))
            answer = self._passed_on(head, body) if answer is None else answer
            self.seen.append(Seen(path, came, time.monotonic()))
            peer.send(answer)

    def _passed_on(self, head: bytes, body: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE_S) as receiver:
            receiver.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            while data := receiver.recv(65536):
                answer += data
        return answer
