"""The service stops soon, whatever the receiver does with what is in flight."""

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pisync_agent.identity as identities
from pisync_agent.identity import Identity
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.sync.batches import LONG_S, SLOW_S
from tests.support.outboxes import events
from tests.support.processes import AgentProcess, wait_until
from tests.support.raw_server import Peer, RawServer, http

STOPPED_S = 15.0
"""Far more than a stop takes, and far less than a request in flight may take."""


class SlowReceiver:
    """Takes its time for each batch, until two are in flight at once; those it never answers."""

    def __init__(self) -> None:
        self.both = threading.Event()
        self._unanswered: set[Peer] = set()
        self._watermark = 0

    def talk(self, peer: Peer) -> None:
        while (request := peer.request()) is not None:
            self._unanswered.add(peer)
            if len(self._unanswered) > 1:
                self.both.set()
            if self.both.wait((SLOW_S + LONG_S) / 2):
                peer.wait()
            peer.send(http(200, self._receipt(json.loads(gzip.decompress(request.partition(b"\r\n\r\n")[2])))))
            self._unanswered.discard(peer)

    def _receipt(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._watermark = batch["events"][-1]["seq"]
        return {
            "device_id": batch["device_id"],
            "stream": batch["stream"],
            "stored": len(batch["events"]),
            "duplicates": 0,
            "rejected": [],
            "watermark": self._watermark,
            "server_time": "2026-11-23T10:00:00.000Z",
        }


def test_a_stop_does_not_wait_for_two_batches_that_are_never_answered(tmp_path: Path) -> None:
    receiver = SlowReceiver()
    with RawServer(receiver.talk) as server, AgentProcess(tmp_path / "device") as agent:
        identities.save(agent.home, Identity(url=server.url, device_id="pibook-1", token="psd_x"))
        outbox = open_outbox(agent.home)
        for first in range(1, 3000, 500):
            outbox.append(events(500, first=first))
        outbox.close()
        agent.start("--stop-timeout", "500ms")
        wait_until(receiver.both.is_set, "two batches are in flight")
        began = time.monotonic()

        assert agent.stop() == 0
        assert time.monotonic() - began < STOPPED_S
        assert "still in flight" in agent.log()
        assert agent.status()["waiting"] > 0
