"""What a handler returns: a status, headers, and bytes that are ready to be sent, or a stream of them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.types import Send

from pisync_receiver.body import Disconnected

JSON: Final = "application/json"

Headers = tuple[tuple[bytes, bytes], ...]

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Answer:
    """A whole body. Not a dataclass: one is made for every request."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, *, status: int, body: bytes, content_type: str = JSON, headers: Headers = ()) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers

    async def send(self, send: Send, extra: Headers, *, with_body: bool) -> None:
        head: list[tuple[bytes, bytes]] = [
            (b"content-type", self.content_type.encode()),
            (b"content-length", b"%d" % len(self.body)),
            *extra,
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body if with_body else b""})


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A body of unknown length, sent a chunk at a time as fast as the caller reads it.

    `send` raises Disconnected when the caller has gone, so that nothing more is made for it.
    """

    chunks: AsyncGenerator[bytes, None]
    gone: Callable[[], Awaitable[None]]
    """Returns when the caller has gone away."""
    content_type: str
    headers: Headers = ()
    status: int = 200

    async def send(self, send: Send, extra: Headers, *, with_body: bool) -> None:
        head = [(b"content-type", self.content_type.encode()), *extra, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        if with_body:
            await self._send_chunks(send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_chunks(self, send: Send) -> None:
        gone = asyncio.ensure_future(self.gone())
        try:
            async for chunk in self.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if gone.done():
                    raise Disconnected
        finally:
            gone.cancel()
            await self.chunks.aclose()


@dataclass(frozen=True, kw_only=True)
class NotModified:
    """304: the caller has the answer already. Without a body, and without what describes one."""

    headers: Headers
    status: int = 304

    async def send(self, send: Send, extra: Headers, *, with_body: bool) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": [*extra, *self.headers]})
        await send({"type": "http.response.body", "body": b""})


Reply = Answer | Stream | NotModified


def json_answer(value: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """`value` (a Struct, dataclass or builtin) as JSON."""
    return Answer(status=status, body=_encode(value), headers=headers)
