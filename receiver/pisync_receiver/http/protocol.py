"""uvicorn's fast protocol, with a single write an answer, and bounds on what a connection may hold when no gateway
stands in front.

A request is HTTP/1.0 or 1.1, its target begins with `/`, and 1.1 names one host; anything else is answered 400. Its
head must be complete within `HEAD_SECONDS`, `HEAD_BYTES` and `HEADERS` (trailers included), a caller that reads nothing
of an answer for `STALL_SECONDS` is cut off, so is a caller that sends over `PIPELINED` requests ahead of its answers,
and at most `max_connections` are served: a new connection replaces an idle connection, which its device opens again
for its next delivery; the rest are answered 503 with a Retry-After. (A body is bounded by `body`, an idle connection by
the keep-alive.)
"""

import asyncio
from itertools import islice
from typing import Any, Final

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pisync_common.limits import KIB

HEAD_SECONDS: Final = 30.0
HEAD_BYTES: Final = 64 * KIB
HEADERS: Final = 128
"""Most headers of a request: 15,000 empty headers fit into `HEAD_BYTES` and take half a MiB."""
STALL_SECONDS: Final = 60.0
PIPELINED: Final = 64
TOO_MANY: Final = 64
"""How many connections over the limit are kept until they are answered 503; more are cut off at once."""

LOOKED_AT: Final = 64
"""How many connections are looked at for an idle one: what a caller can cause has to be bounded."""

_HOSTS: Final = {"1.0": (0, 1), "1.1": (1,)}
"""How many Host headers a version's requests may have."""
_HEAD_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 "
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _OneWrite:
    """A transport that holds an answer's head until its body comes: uvicorn writes them apart, and a second system
    call takes a sixth of a small request."""

    __slots__ = ("_transport", "held", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self.held:
            data, self.held = self.held + data, b""
        elif data.endswith(_HEAD_END) and not data.startswith(_CONTINUE):
            self.held = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that no body follows, as after HEAD."""
        data, self.held = self.held, b""
        self._transport.write(data)

    def close(self) -> None:
        if self.held:
            self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `bounded` sets the class attributes."""

    max_connections = 4096
    busy: ASGIApp
    """Answers on a connection too many."""

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
        self.transport: Any = _OneWrite(transport)
        over = len(self.connections) - self.max_connections
        if over > 0 and not self._close_idle():
            self.app: ASGIApp = self.busy
        if over > TOO_MANY:
            transport.abort()
            return
        self._start_head()

    def _close_idle(self) -> bool:
        """Close a connection that waits for another request of its caller; return whether there was one."""
        for other in islice(self.connections, LOOKED_AT):
            assert isinstance(other, BoundedProtocol)
            if other.timeout_keep_alive_task is not None and not other.transport.is_closing():
                other.timeout_keep_alive_handler()
                return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Refuse a target that gateways read in several ways: as a URL, with a fragment, or with another host."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        allowed = _HOSTS.get(self.parser.get_http_version(), ())
        readable = hosts in allowed and self.url.startswith(b"/") and b"#" not in self.url
        if not readable or len(self.headers) > HEADERS:
            raise ValueError("not a request for this server")  # the parser stops, and uvicorn answers 400
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read as a request."""
        if self._may_answer():
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _may_answer(self) -> bool:
        """Whether an error sent now would be read as the answer to the request being received, and to no other."""
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and cycle.scope is not self.scope):
            return True
        return cycle.scope is self.scope and not cycle.response_started and not self.pipeline

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head_bytes -= 2 * len(body)  # once for the body itself, once to allow for the frames of small chunks

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self.cycle is None or self.cycle.scope is not self.scope:  # the newest head is not complete
            self._start_head()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        too_large = self._head_bytes > HEAD_BYTES or (self.headers is not None and len(self.headers) > HEADERS)
        if too_large and not self.transport.is_closing():
            if self._may_answer():
                self.transport.write(_TOO_LARGE)
            self.transport.close()
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()

    def on_response_complete(self) -> None:
        if self.transport.held:
            self.transport.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def _watch_stall(self) -> None:
        """Check later whether the caller has read anything; what it does not read is kept in memory."""
        unread = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._check_stall, unread)

    def _check_stall(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._watch_stall()
        else:
            self.transport.abort()

    def _start_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)


def bounded(max_connections: int, busy: ASGIApp) -> type[BoundedProtocol]:
    """Return the protocol of a server that serves at most `max_connections`; `busy` answers on the rest."""
    attributes = {"max_connections": max_connections, "busy": staticmethod(busy)}
    return type("BoundedProtocol", (BoundedProtocol,), attributes)
