"""The server of the agent's Unix socket: lines in, lines out, all bounded.

Lines that arrive together are served together, so that a single commit records all their events. A connection has one
line served at a time; its next line waits for that answer.

Nothing a peer does can stop the others: a peer that does not read its answers is not read from; a line may be
LINE_BYTES long and take STALE_S to arrive, and all lines together hold HELD_BYTES; beyond PEERS connections, or
USER_PEERS of one user, the longest idle connection is closed, or the new one if none is idle. A recorder whose
connection is closed connects again, so none of this can lose or double an event. An error in one request is the answer
to that request.

What arrives another way (HTTP, the spool) is recorded by `LocalServer.record`, in the same commit as such lines.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pisync_agent.clock import SystemClock
from pisync_agent.errors import AgentError, InvalidEvent, StoreUnusable
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.service import protocol
from pisync_agent.service.decoding import Events, Message, decode_line, unexpected
from pisync_agent.service.listener import Listener
from pisync_common.limits import KIB, MIB
from pisync_common.models import Stamp
from pisync_common.unix_socket import LINE_BYTES

PEERS: Final = 256
USER_PEERS: Final = 192
HELD_BYTES: Final = 8 * MIB
STALE_S: Final = 30.0
CHUNK_BYTES: Final = 64 * KIB

# `json.dumps` with options makes an encoder for each call.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.user = _user(writer.get_extra_info("socket"))
        self.incoming = bytearray()
        self.serving_bytes = 0
        """The size of the line that is being served."""
        self.busy = False
        """Whether a line of it is being served."""
        writer.transport.set_write_buffer_limits(high=0)  # `drain` returns when everything was handed over

    @property
    def held(self) -> int:
        """Bytes of its lines."""
        return len(self.incoming) + self.serving_bytes

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
    """A message that waits for its answer; `peer` is None where it came another way."""

    def __init__(self, peer: Peer | None, message: Message, answer: "asyncio.Future[Mapping[str, Any]]") -> None:
        self._peer = peer
        self._answer = answer
        self.do, self.message, self.events, self.fault = message.do, message.values, message.events, message.fault

    def has_expired(self, boottime_ms: int) -> bool:
        """Return whether its sender has given up."""
        expires_ms = self.message.get("expires_ms")
        return type(expires_ms) is int and expires_ms <= boottime_ms

    def answer(self, message: Mapping[str, Any]) -> None:
        if not self._answer.done():
            self._answer.set_result(message)

    def show(self, message: Mapping[str, Any]) -> None:
        """Send progress, unless the peer has not read what was sent before."""
        if self._peer is not None and not self._peer.sending:
            self._peer.write(message)


Serve = Callable[[Sequence[Request]], None]
"""Answers each request, now or later."""


@dataclass(kw_only=True)
class LocalServer:
    """Serves the socket at `path` on the running event loop: `await start()`, then `close()`."""

    path: Path
    serve: Serve
    stamp: Callable[[], Stamp] = field(default_factory=lambda: SystemClock().stamp)
    """The moment of recording, for events that come without."""
    peers: int = PEERS
    user_peers: int = USER_PEERS
    line_bytes: int = LINE_BYTES
    held_bytes: int = HELD_BYTES
    _connected: dict[Peer, None] = field(default_factory=dict)
    """The peers, those that were served last at the end."""
    _requests: list[Request] = field(default_factory=list)
    _serving: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._listener = Listener(self.path)

    async def start(self) -> None:
        """Raises LockHeld, OSError."""
        # Not `start_unix_server`: from Python 3.13 on, it unlinks any socket when it closes, also systemd's.
        self._server = await asyncio.start_server(
            self._accept, sock=self._listener.open(), limit=CHUNK_BYTES, backlog=self.peers
        )

    def __len__(self) -> int:
        return len(self._connected)

    @property
    def held(self) -> int:
        """Bytes of all lines."""
        return sum(peer.held for peer in self._connected)

    async def record(self, events: Events) -> list[int | AgentError]:
        """Record events that came another way; return the seq of each, or its error. Raises what kept all out."""
        with self._unanswered():
            answer = await self._submit(None, Message(do=protocol.RECORD, events=events))
        return protocol.record_results(answer, len(events))

    def stop_listening(self) -> None:
        """Accept no new connections; existing connections go on. Harmless when repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._listener.remove()

    async def flushed(self) -> None:
        """Wait until every request is answered, and every answer has left this process."""
        while self._serving:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        """Close every connection; what was read and not yet served is dropped, and its senders see no answer."""
        self._closed = True
        self.stop_listening()
        for peer in list(self._connected):
            peer.drop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        if not self._has_place(peer.user):
            peer.drop()
            return
        self._connected[peer] = None
        try:
            while (line := await self._line(peer)) is not None:
                await self._answer(peer, line)
        except (OSError, asyncio.CancelledError):  # the peer has gone or is too slow, or the service ends
            return
        finally:
            self._connected.pop(peer, None)
            peer.drop()

    def _has_place(self, user: int) -> bool:
        """Return whether a user may have another connection, once an idle connection was closed if need be."""
        own = [peer for peer in self._connected if peer.user == user]
        if len(own) >= self.user_peers:
            return self._close_idle(own)
        return len(self._connected) < self.peers or self._close_idle(self._connected)

    def _close_idle(self, peers: Iterable[Peer]) -> bool:
        """Close the connection that has been idle longest; return whether there was one."""
        longest = next((peer for peer in peers if peer.idle), None)
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
        with self._unanswered():
            peer.busy, peer.serving_bytes = True, len(line)
            await peer.send(await self._submit(peer, decode_line(line, self.stamp)))
            peer.busy, peer.serving_bytes = False, 0
        self._connected[peer] = self._connected.pop(peer, None)

    def _submit(self, peer: Peer | None, message: Message) -> "asyncio.Future[Mapping[str, Any]]":
        """Serve a message together with those of all connections that are ready now."""
        loop = asyncio.get_running_loop()
        if not self._requests:
            loop.call_soon(self._serve_together)
        answer: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._requests.append(Request(peer, message, answer))
        return answer

    @contextlib.contextmanager
    def _unanswered(self) -> Iterator[None]:
        """Count a request as unanswered until its answer has left this process."""
        self._serving += 1
        try:
            yield
        finally:
            self._serving -= 1
            self._quiet.set()

    def _serve_together(self) -> None:
        requests, self._requests = self._requests, []
        if not self._closed:
            self.serve(requests)


def _user(peer: socket.socket) -> int:
    """Return the user at the other end of a connection."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


# Requests

EXPIRED: Final = "the service read this after its sender had given up: nothing was recorded. Record it again."


Note = Callable[[AgentError | None], None]
"""Called after a commit, with the error that made it fail."""


def record(
    outbox: Outbox, requests: Sequence[Request], *, boottime_ms: int = 0, note: Note = lambda error: None
) -> None:
    """Record the events of all requests in one commit, and answer each; refuse what has expired at `boottime_ms`."""
    in_time = []
    for request in requests:
        if request.has_expired(boottime_ms):
            request.answer(protocol.error_answer(StoreUnusable(EXPIRED)))
        else:
            in_time.append(request)
    _record(outbox, in_time, note)


def _record(outbox: Outbox, requests: Sequence[Request], note: Note) -> None:
    new = [event for request in requests for event in request.events or () if isinstance(event, NewEvent)]
    try:
        results = iter(outbox.append(new) if new else [])
    except AgentError as error:
        note(error)
        for request in requests:
            request.answer(protocol.error_answer(error))
    except Exception as error:
        if len(requests) == 1:
            requests[0].answer(protocol.error_answer(unexpected(error)))
            return
        for request in requests:
            # Perhaps one event caused it: it must neither end the service nor fail its neighbours.
            _record(outbox, [request], note)
    else:
        if new:
            note(None)
        for request in requests:
            request.answer(_record_answer(request.events or (), results))


def _record_answer(events: Events, results: Iterator[int | AgentError]) -> dict[str, object]:
    return protocol.record_answer([event if isinstance(event, InvalidEvent) else next(results) for event in events])
