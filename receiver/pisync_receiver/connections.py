"""Connections that cannot be held open for nothing: uvicorn's fast protocol with what it leaves unbounded.

A request's head must be complete within `HEAD_SECONDS` and `HEAD_BYTES`, who reads nothing of an answer for
`STALL_SECONDS` is cut off, and at most so many connections are served; the rest are answered 503 with a Retry-After.
(A body is bounded by `body`, an idle connection by the keep-alive.)
"""

import asyncio
import random
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pisync_common.limits import KIB
from pisync_receiver.errors import Overloaded
from pisync_receiver.problems import answer_to

HEAD_SECONDS: Final = 30.0
HEAD_BYTES: Final = 64 * KIB
STALL_SECONDS: Final = 60.0
BUSY_SECONDS: Final = 30
"""The shortest a caller is asked to stay away when there are too many connections; jitter comes on top."""

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


async def busy(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of a connection too many."""
    after = BUSY_SECONDS + random.randrange(BUSY_SECONDS)  # noqa: S311 - it spreads callers, it keeps no secret
    error = Overloaded("too many connections; nothing was stored; try again later", retry_after=after)
    await answer_to(error).send(send, ((b"connection", b"close"),), with_body=scope["method"] != "HEAD")


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `max_connections` is set on the subclass that `bounded` makes."""

    max_connections = 4096

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.app: ASGIApp = busy
        self._start_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_stall()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is not None:  # still in a head after everything that came was read
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def _watch_stall(self) -> None:
        """Look again later whether the caller has read anything; what it does not read is kept in memory."""
        unread = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._look_at_stall, unread)

    def _look_at_stall(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._watch_stall()
        else:
            self.transport.abort()

    def _end_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _start_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)
            self._head_bytes = 0

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded(max_connections: int) -> type[BoundedProtocol]:
    """The protocol for a server that holds at most `max_connections`."""
    return type("BoundedProtocol", (BoundedProtocol,), {"max_connections": max_connections})
