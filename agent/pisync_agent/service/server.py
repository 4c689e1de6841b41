"""The server of the agent's Unix socket: lines in, lines out, all bounded.

Lines that arrive together are served together, so that a single commit records all their events. A connection has one
line served at a time; its next line waits for that answer.

Nothing a peer does can stop the others: a peer that does not read its answers is not read from; a line may be
LINE_BYTES long and take STALE_S to arrive, and all unfinished lines together hold HELD_BYTES; beyond PEERS connections
the longest idle connection is closed, or the new one if none is idle. A recorder whose connection is closed
connects again, so none of this can lose or double an event.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import AgentError, InvalidEvent, StoreUnusable
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.service import protocol
from pisync_common import unix_socket
from pisync_common.limits import KIB, MIB

log = logging.getLogger(__name__)

PEERS: Final = 256
LINE_BYTES: Final = 16 * MIB
HELD_BYTES: Final = 24 * MIB
STALE_S: Final = 30.0
CHUNK_BYTES: Final = 64 * KIB

# `json.dumps` with options makes an encoder for each call.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.incoming = bytearray()
        self.busy = False
        """Whether a line of it is being served."""
        writer.transport.set_write_buffer_limits(high=0)  # `drain` returns when everything was handed over

    @property
    def idle(self) -> bool:
        return not (self.busy or self.incoming or self.sending)

    @property
    def sending(self) -> bool:
        """Whether something could not be sent yet, because the peer does not read."""
        return self._writer.transport.get_write_buffer_size() > 0

    async def receive(self) -> bool:
        """Add what has arrived to `incoming`; return False if the connection is closed."""
        if self._writer.is_closing():
            return False
        chunk = await self._reader.read(CHUNK_BYTES)
        self.incoming += chunk
        return bool(chunk)

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send an answer, and return when it has left this process."""
        self.write(message)
        if self.sending:
            async with asyncio.timeout(STALE_S):
                await self._writer.drain()

    def write(self, message: Mapping[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(_ENCODER.encode(message).encode() + b"\n")

    def drop(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


class Request:
    """A line that waits for its answer. `events` is set for a record only; some of them may be invalid."""

    def __init__(self, peer: Peer, line: bytes, answer: "asyncio.Future[Mapping[str, Any]]") -> None:
        self._peer = peer
        self._answer = answer
        self.do, self.message, self.events = _parse(line)

    def answer(self, message: Mapping[str, Any]) -> None:
        if not self._answer.done():
            self._answer.set_result(message)

    def show(self, message: Mapping[str, Any]) -> None:
        """Send progress, unless the peer has not read what was sent before."""
        if not self._peer.sending:
            self._peer.write(message)


Serve = Callable[[Sequence[Request]], None]
"""Answers each request, now or later."""


@dataclass(kw_only=True)
class LocalServer:
    """Serves the socket at `path` on the running event loop: `await start()`, then `close()`."""

    path: Path
    serve: Serve
    peers: int = PEERS
    line_bytes: int = LINE_BYTES
    held_bytes: int = HELD_BYTES
    _connected: dict[Peer, None] = field(default_factory=dict)
    """The peers, those that were served last at the end."""
    _requests: list[Request] = field(default_factory=list)
    _serving: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        # The agent's group may record; the owner of the folder decides who may enter it.
        listener = unix_socket.listen(self.path, mode=0o660)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=CHUNK_BYTES, backlog=self.peers
        )

    def __len__(self) -> int:
        return len(self._connected)

    @property
    def held(self) -> int:
        """Bytes of unfinished lines."""
        return sum(len(peer.incoming) for peer in self._connected)

    def stop_listening(self) -> None:
        """Accept no new connections; existing connections go on. Harmless when repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    async def flushed(self) -> None:
        """Wait until every request is answered, and every answer has left this process."""
        while self._serving:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        self.stop_listening()
        for peer in list(self._connected):
            peer.drop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        if len(self._connected) >= self.peers and not self._close_idle():
            peer.drop()
            return
        self._connected[peer] = None
        try:
            while (line := await self._line(peer)) is not None:
                self._serving += 1
                try:
                    await self._answer(peer, line)
                finally:
                    self._serving -= 1
                    self._quiet.set()
        except (OSError, asyncio.CancelledError):  # the peer has gone or is too slow, or the service ends
            return
        finally:
            self._connected.pop(peer, None)
            peer.drop()

    def _close_idle(self) -> bool:
        """Close the connection that has been idle longest; return whether there was one."""
        longest = next((peer for peer in self._connected if peer.idle), None)
        if longest is None:
            return False
        del self._connected[longest]
        longest.drop()
        return True

    async def _line(self, peer: Peer) -> bytes | None:
        """Return the next line of a peer; None when it has closed the connection. Raises OSError."""
        if not peer.incoming and not await peer.receive():
            return None
        scanned = 0
        async with asyncio.timeout(STALE_S):
            while (end := peer.incoming.find(b"\n", scanned)) < 0:
                scanned = len(peer.incoming)
                self._bound(peer)
                if not await peer.receive():
                    return None
        line = bytes(peer.incoming[:end])
        del peer.incoming[: end + 1]
        return line

    def _bound(self, peer: Peer) -> None:
        if len(peer.incoming) > self.line_bytes:
            peer.write(protocol.error_answer(protocol.BadMessage("the message is too long")))
            raise ConnectionResetError("a line without an end")
        if self.held > self.held_bytes:
            largest = max(self._connected, key=lambda each: len(each.incoming))
            largest.incoming.clear()
            largest.drop()

    async def _answer(self, peer: Peer, line: bytes) -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        if not self._requests:
            # After the lines of all connections that are ready now.
            loop.call_soon(self._serve_together)
        self._requests.append(Request(peer, line, answer))
        peer.busy = True
        await peer.send(await answer)
        peer.busy = False
        self._connected[peer] = self._connected.pop(peer, None)

    def _serve_together(self) -> None:
        requests, self._requests = self._requests, []
        self.serve(requests)


# Requests

Events = Sequence[NewEvent | InvalidEvent]


def record(outbox: Outbox, requests: Sequence[Request]) -> None:
    """Record the events of all requests in one commit, and answer each."""
    new = [event for request in requests for event in request.events or () if isinstance(event, NewEvent)]
    try:
        results = iter(outbox.append(new) if new else [])
    except AgentError as error:
        failed: AgentError | None = error
    except Exception as error:
        log.exception("recording failed")
        failed = None if len(requests) > 1 else _unexpected(error)
    else:
        for request in requests:
            request.answer(_record_answer(request.events or (), results))
        return
    for request in requests:
        if failed is not None:
            request.answer(protocol.error_answer(failed))
        else:
            # Perhaps one event caused it: it must neither end the service nor fail its neighbours.
            record(outbox, [request])


def _unexpected(error: Exception) -> StoreUnusable:
    return StoreUnusable(f"the service failed to record this ({type(error).__name__}); see its log")


def _record_answer(events: Events, results: Iterator[int | AgentError]) -> dict[str, object]:
    return protocol.record_answer([event if isinstance(event, InvalidEvent) else next(results) for event in events])


def _parse(line: bytes) -> tuple[str, Mapping[str, Any], Events | None]:
    """Return what a line asks for, its message, and the events of a record; an unreadable line asks for nothing."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return "", {}, None
    if not isinstance(message, dict):
        return "", {}, None
    events = message.get("events")
    if message.get("do") == protocol.RECORD and isinstance(events, list):
        return protocol.RECORD, {}, [_event(fields) for fields in events]
    return str(message.get("do")), message, None


def _event(fields: object) -> NewEvent | InvalidEvent:
    if not isinstance(fields, dict):
        return InvalidEvent("an event is a JSON object")
    try:
        return NewEvent.from_fields(fields)
    except InvalidEvent as error:
        return error
