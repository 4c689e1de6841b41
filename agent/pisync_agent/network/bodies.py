"""A request's body as it is sent, and what is measured of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import httpx

from pisync_common.limits import KIB

_CHUNK_BYTES: Final = 16 * KIB

OnSent = Callable[[int], None]
"""Called with the bytes of each chunk sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """How much was sent in how much time: bodies of batches, from their first byte to the beginning of the answer.

    Less one round trip, in which the answer only travels. Time in which two were sent counts once.
    """

    bytes: int = 0
    seconds: float = 0.0

    def plus(self, size: int, seconds: float) -> "Transfer":
        return Transfer(bytes=self.bytes + size, seconds=self.seconds + max(0.0, seconds))

    def since(self, earlier: "Transfer") -> "Transfer":
        return Transfer(bytes=self.bytes - earlier.bytes, seconds=self.seconds - earlier.seconds)


def head_size(request: httpx.Request) -> int:
    """Return the bytes of a request's line and headers on the wire."""
    line = len(request.method) + 1 + len(request.url.raw_path) + len(" HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + 4 for name, value in request.headers.raw) + 2


class Body(Iterable[bytes]):
    """A body in chunks. A chunk is counted as sent when the next is asked for. `at_end` is called after the last."""

    def __init__(
        self, content: bytes, *, count: OnSent, at_end: Callable[[], None], monotonic: Callable[[], float]
    ) -> None:
        self.head = 0
        """Bytes sent before the body."""
        self.size = len(content)
        self.began = 0.0
        """When the first byte of the body was about to be sent."""
        self.complete = False
        self._content = content
        self._count = count
        self._at_end = at_end
        self._now = monotonic

    def __iter__(self) -> Iterator[bytes]:
        self._count(self.head)
        self.began = self._now()
        for at in range(0, len(self._content), _CHUNK_BYTES):
            chunk = self._content[at : at + _CHUNK_BYTES]
            yield chunk
            self._count(len(chunk))
        self.complete = True
        self._at_end()
