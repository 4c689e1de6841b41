"""The listening end of the agent's socket: connections that come and go, lines in, lines out, all bounded.

One line of a peer is worked on at a time; its next one waits for that answer. Nothing a peer does can stop the
others: sockets never block; a peer that does not read its answers is not read from; what a peer has sent ahead may be
LINE_BYTES long, a line may take STALE_S to come, and all that waits together holds HELD_BYTES; beyond PEERS
connections the one that has been idle longest is closed. A recorder whose connection is closed connects again, so none
of this can lose or double an event.
"""

import contextlib
import json
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pisync_agent import local
from pisync_common import unix_socket
from pisync_common.limits import KIB, MIB

PEERS: Final = 256
LINE_BYTES: Final = 16 * MIB
HELD_BYTES: Final = 24 * MIB
STALE_S: Final = 30.0
RECEIVE_BYTES: Final = 256 * KIB

# `json.dumps` with options makes an encoder for each call.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Peer:
    """One connection."""

    __slots__ = ("active_at", "blocked", "busy", "incoming", "outgoing", "scanned", "socket", "waits_since")

    def __init__(self, connected: socket.socket, now: float) -> None:
        self.socket = connected
        self.incoming = bytearray()
        self.scanned = 0
        self.outgoing = bytearray()
        self.busy = False
        """A line of it was taken and is not answered yet."""
        self.blocked = False
        """It does not read: we write when it does, and read nothing from it meanwhile."""
        self.active_at = now
        self.waits_since: float | None = None
        """Since when a line, or the sending of an answer, is unfinished."""

    @property
    def idle(self) -> bool:
        return not (self.busy or self.incoming or self.outgoing)


class LocalServer:
    """Serves the socket from one thread; every selector key's data is a function of the mask."""

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        *,
        monotonic: Callable[[], float],
        peers: int = PEERS,
        line_bytes: int = LINE_BYTES,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._path = path
        self._selector = selector
        self._monotonic = monotonic
        self._limit = peers
        self._line_bytes = line_bytes
        self._held_bytes = held_bytes
        self._held = 0
        self._peers: dict[socket.socket, Peer] = {}
        self._room = memoryview(bytearray(RECEIVE_BYTES))  # one for all: making one each time costs more than reading
        self._lines: list[tuple[Peer, bytes]] = []
        # The agent's group may record; who may enter the folder is for its owner to say.
        self._listener: socket.socket | None = unix_socket.listen(path, mode=0o660)
        self._listener.setblocking(False)
        self._accepting = False
        self._accept_more()

    def __len__(self) -> int:
        return len(self._peers)

    def take(self) -> Sequence[tuple[Peer, bytes]]:
        """Lines to be answered, one at most of each peer."""
        lines, self._lines = self._lines, []
        return lines

    def answer(self, peer: Peer, message: Mapping[str, Any]) -> None:
        """Send the answer to the line taken from a peer; nothing happens if it has gone."""
        if peer.socket in self._peers:
            peer.busy = False
            self._send(peer, message)
            self._next_line(peer)

    def tell(self, peer: Peer, message: Mapping[str, Any]) -> None:
        """Send something that may as well be left out: it is, while the peer has not read what came before."""
        if peer.socket in self._peers and not peer.outgoing:
            self._send(peer, message)

    def connected(self, peer: Peer) -> bool:
        return peer.socket in self._peers

    def sweep(self) -> None:
        """Close connections that have been in the middle of something for too long."""
        limit = self._monotonic() - STALE_S
        for peer in list(self._peers.values()):
            if peer.waits_since is not None and peer.waits_since < limit:
                self._drop(peer)

    def stop_listening(self) -> None:
        """No new connections; those there are go on. Harmless twice."""
        if self._listener is not None:
            self._accept_no_more()
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    @property
    def sending(self) -> bool:
        """Whether answers have not yet left."""
        return any(peer.outgoing for peer in self._peers.values())

    def close(self) -> None:
        self.stop_listening()
        for peer in list(self._peers.values()):
            self._drop(peer)

    # Connections

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            connected, _address = self._listener.accept()
        except OSError:  # it has gone already, or descriptors are short: the backlog holds
            return
        connected.setblocking(False)
        peer = Peer(connected, self._monotonic())
        self._peers[connected] = peer
        self._selector.register(connected, READ, lambda mask: self._ready(peer, mask))
        if len(self._peers) > self._limit:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that was idle longest; where none is idle, take no more for now."""
        idle = [peer for peer in list(self._peers.values())[: self._limit] if peer.idle]
        if idle:
            self._drop(min(idle, key=lambda peer: peer.active_at))
        else:
            self._accept_no_more()

    def _accept_more(self) -> None:
        if self._listener is not None and not self._accepting:
            self._selector.register(self._listener, READ, self._accept)
            self._accepting = True

    def _accept_no_more(self) -> None:
        if self._listener is not None and self._accepting:
            self._selector.unregister(self._listener)
            self._accepting = False

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.socket, None) is None:
            return
        self._held -= len(peer.incoming)
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._accept_more()

    # Lines in

    def _ready(self, peer: Peer, mask: int) -> None:
        if mask & WRITE:
            self._flush(peer)
        elif mask & READ:
            self._receive(peer)

    def _receive(self, peer: Peer) -> None:
        try:
            number = peer.socket.recv_into(self._room)
        except BlockingIOError:
            return
        except OSError:
            number = 0
        if not number:
            self._drop(peer)
            return
        received = bytes(self._room[:number])
        peer.active_at = self._monotonic()
        if not (peer.incoming or peer.busy) and received.find(b"\n") == len(received) - 1:
            self._take(peer, received[:-1])
            return
        peer.incoming += received
        self._held += len(received)
        self._next_line(peer)
        self._bound(peer)

    def _next_line(self, peer: Peer) -> None:
        if not self.connected(peer):
            return
        if not peer.busy and peer.incoming:
            end = peer.incoming.find(b"\n", peer.scanned)
            peer.scanned = len(peer.incoming) if end < 0 else 0
            if end >= 0:
                self._take(peer, bytes(peer.incoming[:end]))
                del peer.incoming[: end + 1]
                self._held -= end + 1
        self._mark(peer)

    def _take(self, peer: Peer, line: bytes) -> None:
        peer.busy = True
        self._lines.append((peer, line))

    def _bound(self, peer: Peer) -> None:
        if len(peer.incoming) > self._line_bytes:
            self._send(peer, local.error_answer(local.BadMessage("the message is too long")))
            self._drop(peer)
        elif self._held > self._held_bytes:
            self._drop(max(self._peers.values(), key=lambda each: len(each.incoming)))

    def _mark(self, peer: Peer) -> None:
        unfinished = bool(peer.outgoing or (peer.incoming and not peer.busy))
        if not unfinished:
            peer.waits_since = None
        elif peer.waits_since is None:
            peer.waits_since = self._monotonic()

    # Lines out

    def _send(self, peer: Peer, message: Mapping[str, Any]) -> None:
        peer.outgoing += _ENCODER.encode(message).encode() + b"\n"
        if not peer.blocked:
            self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        try:
            sent = peer.socket.send(peer.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return
        if sent == len(peer.outgoing):
            peer.outgoing = bytearray()
        else:
            del peer.outgoing[:sent]
        self._mark(peer)
        if peer.blocked != bool(peer.outgoing):
            peer.blocked = bool(peer.outgoing)
            key = self._selector.get_key(peer.socket)
            self._selector.modify(peer.socket, WRITE if peer.blocked else READ, key.data)
