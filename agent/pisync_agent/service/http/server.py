"""The connections of HTTP: each with a deadline, all within bounds, so that no client can stop the others.

A request has REQUEST_S to arrive, from the answer before it on, so an idle connection ends after that time, too. Its
head may have HEAD_BYTES, its body BODY_BYTES, and all bodies together HELD_BYTES. Beyond CONNECTIONS, the oldest that
still sends its request, or sends nothing, is closed for a new one. The body of a refused request is read and dropped,
so that its client gets the answer.
"""

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import h11

from pisync_agent.service.http.api import Api
from pisync_agent.service.http.messages import Answer, Head, problem
from pisync_common.limits import BODY_BYTES, KIB, MIB

HOST: Final = "127.0.0.1"
CONNECTIONS: Final = 64
HEAD_BYTES: Final = 16 * KIB
HELD_BYTES: Final = 8 * MIB
REQUEST_S: Final = 30.0
LINGER_S: Final = 2.0
"""How long a client may send on after an answer that closes its connection: closing at once could take it away."""
CHUNK_BYTES: Final = 64 * KIB

TOO_LARGE: Final = problem(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_large",
    f"a body may have {BODY_BYTES:,} bytes; send fewer events at once",
    Connection="close",
)
BUSY: Final = problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many large requests at once", Retry_After="1")


class Connection:
    """One connection, a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self.body = bytearray()
        self.answering = False
        """Whether its request has arrived and is being answered."""

    async def receive_head(self) -> Head | None:
        """Return the next request's head; None when the client has closed. Raises h11.RemoteProtocolError."""
        event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        path = event.target.decode("latin-1").partition("?")[0]
        return Head(method=event.method.decode("ascii"), path=path, headers=headers)

    async def receive_chunk(self) -> bytes:
        """Return the next piece of the body; nothing at its end. Raises h11.RemoteProtocolError."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def send(self, answer: Answer) -> None:
        body = answer.body
        headers = {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", **answer.headers,
        }  # fmt: skip
        if answer.content is None:
            del headers["Content-Type"], headers["Content-Length"]
        self._send(h11.Response(status_code=answer.status, headers=list(headers.items())))
        self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        await self._writer.drain()

    @property
    def can_answer(self) -> bool:
        """Whether an answer may be sent now."""
        return self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def start_next(self) -> bool:
        """Prepare for the next request; return False if the connection has to end."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def finish(self) -> None:
        """Close it once the client has read the answer, or has sent long enough."""
        self._writer.write_eof()
        async with asyncio.timeout(LINGER_S):
            while await self._reader.read(CHUNK_BYTES):
                pass

    def drop(self) -> None:
        """Close it at once."""
        self._writer.transport.abort()

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(CHUNK_BYTES))
        return event

    def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")


@dataclass(kw_only=True)
class HttpServer:
    """Serves `api` on loopback, on the running event loop: `await start()`, then `close()`."""

    api: Api
    port: int
    connections: int = CONNECTIONS
    request_s: float = REQUEST_S
    body_bytes: int = BODY_BYTES
    held_bytes: int = HELD_BYTES
    _open: dict[Connection, None] = field(default_factory=dict)
    """The connections, those whose request began last at the end."""
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError where the port is taken."""
        self._server = await asyncio.start_server(
            self._accept, HOST, self.port, limit=CHUNK_BYTES, backlog=self.connections
        )

    def close(self) -> None:
        """Close every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._open):
            connection.drop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        if not self._has_place():
            connection.drop()
            return
        self._open[connection] = None
        try:
            while await self._serve(connection):
                self._open[connection] = self._open.pop(connection)
            connection.answering = False  # answered: its place is for the next
            await connection.finish()
        except (OSError, h11.ProtocolError, KeyError, asyncio.CancelledError):  # gone, too slow, or closed meanwhile
            return
        finally:
            self._open.pop(connection, None)
            connection.drop()

    def _has_place(self) -> bool:
        """Return whether there may be another connection, once the oldest was closed if need be."""
        if len(self._open) < self.connections:
            return True
        oldest = next((each for each in self._open if not each.answering), None)
        if oldest is None:
            return False
        del self._open[oldest]
        oldest.drop()
        return True

    async def _serve(self, connection: Connection) -> bool:
        """Answer one request; return whether the connection can have another. Raises OSError, h11.ProtocolError."""
        connection.body.clear()
        connection.answering = False
        try:
            async with asyncio.timeout(self.request_s):
                head = await connection.receive_head()
                answer = None if head is None else await self._receive_body(connection, head)
        except h11.RemoteProtocolError as error:
            if connection.can_answer:
                await connection.send(problem(error.error_status_hint, "bad_request", f"not HTTP/1.1: {error}"))
            return False
        if head is None:
            return False
        connection.answering = True
        if answer is None:
            answer = await self.api.answer(head, bytes(connection.body))
        async with asyncio.timeout(self.request_s):
            await connection.send(answer.with_headers(self.api.access.headers(head)))
        return connection.start_next()

    async def _receive_body(self, connection: Connection, head: Head) -> Answer | None:
        """Receive the body; return the answer to a request that is refused."""
        refused = self.api.refusal(head)
        received = 0
        while chunk := await connection.receive_chunk():
            received += len(chunk)
            if received > self.body_bytes:
                return TOO_LARGE
            if sum(len(each.body) for each in self._open) + len(chunk) > self.held_bytes:
                refused = refused or BUSY
            if refused is None:
                connection.body += chunk
            else:
                connection.body.clear()
        return refused
