"""The least that can stand for the service towards a recorder: it serves the socket, and dies when told.

    python -m tests.integration.tiny_service HOME [--die-after-commit N] [--die-before-commit N]

It prints `ready` when it listens. To die is SIGKILL, at the N-th message, between commit and answer or before.
"""

import argparse
import json
import os
import selectors
import signal
import socket
from pathlib import Path

from pisync_agent.errors import AgentError
from pisync_agent.outbox import files
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.service import protocol
from pisync_common import unix_socket
from pisync_common.single_writer import WriterLock


class TinyService:
    """Records the requests of all connections in one commit, as the service does."""

    def __init__(self, home: Path, *, die_before: int, die_after: int) -> None:
        self._die_before, self._die_after = die_before, die_after
        self._messages = 0
        self._lock = WriterLock(files.lock(home))
        self._lock.acquire(wait=True)
        self._outbox: Outbox = open_outbox(home)
        self._selector = selectors.DefaultSelector()
        self._listener = unix_socket.listen(files.socket(home), mode=0o600)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._buffers: dict[socket.socket, bytearray] = {}

    def run(self) -> None:
        while True:
            asked = []
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    asked += [(key.fileobj, line) for line in self._lines(key.fileobj)]
            if asked:
                self._answer(asked)

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        self._buffers[peer] = bytearray()
        self._selector.register(peer, selectors.EVENT_READ)

    def _lines(self, peer: socket.socket) -> list[bytes]:
        received = peer.recv(1 << 18)
        if not received:
            self._selector.unregister(peer)
            peer.close()
            del self._buffers[peer]
            return []
        buffer = self._buffers[peer]
        buffer += received
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        return lines

    def _answer(self, asked: list[tuple[socket.socket, bytes]]) -> None:
        groups = [[NewEvent.from_fields(fields) for fields in json.loads(line)["events"]] for _, line in asked]
        self._die(self._die_before, len(asked))
        try:
            results = iter(self._outbox.append([event for group in groups for event in group]))
            answers = [protocol.record_answer([next(results) for _ in group]) for group in groups]
        except AgentError as error:
            answers = [protocol.error_answer(error) for _ in groups]
        self._die(self._die_after, len(asked))
        self._messages += len(asked)
        for (peer, _), answer in zip(asked, answers, strict=True):
            peer.sendall(json.dumps(answer).encode() + b"\n")

    def _die(self, at: int, more: int) -> None:
        if at and self._messages + more >= at:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--die-before-commit", type=int, default=0)
    parser.add_argument("--die-after-commit", type=int, default=0)
    given = parser.parse_args()
    service = TinyService(given.home, die_before=given.die_before_commit, die_after=given.die_after_commit)
    print("ready", flush=True)
    service.run()


if __name__ == "__main__":
    main()
