"""Slow, lossy and interrupted links, in network namespaces, between a real agent and a real receiver.

What counts is bytes, so that a busy machine changes nothing: a window in which the link is up ends after some bytes.
`PISYNC_TEST_LINKS=full` measures the figures of docs/design.md, which takes some minutes.
"""

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.client import AGENT
from pisync_agent.clock import SystemClock
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service import protocol
from pisync_agent.sync.batches import MOST_BYTES, Packer
from pisync_common.limits import BATCH_EVENTS
from pisync_common.models import Stamp
from tests.support.network import Link
from tests.support.processes import AgentProcess, ReceiverProcess, wait_until

FULL = os.environ.get("PISYNC_TEST_LINKS") == "full"
SETTINGS = ("--retry-base", "0.5s", "--retry-cap", "2s")


@dataclass(frozen=True, kw_only=True)
class Field:
    """A device at the end of a link, and its receiver."""

    link: Link
    agent: AgentProcess
    receiver: ReceiverProcess

    def record(self, count: int) -> int:
        """Fill the outbox, before the service starts; return the bytes of the largest batches that hold it all."""
        chance, clock = random.Random(5), SystemClock()
        outbox = open_outbox(self.agent.home, clock=clock)
        for first in range(0, count, 100):
            outbox.append([_event(chance, clock.stamp(), number) for number in range(first, first + 100)])
        packer = Packer(outbox, device_id="pibook-1", stream=outbox.stream, agent=AGENT)
        after, payload = 0, 0
        while batch := packer.pack(after, max_events=BATCH_EVENTS, max_bytes=MOST_BYTES):
            after = batch.last
            payload += len(batch.sealed(clock.stamp()))
        outbox.close()
        return payload

    @property
    def waiting(self) -> int:
        with OutboxReader(self.agent.home) as reader:
            return reader.state().waiting

    @property
    def syncing(self) -> bool:
        live = protocol.live_status(self.agent.socket)
        assert live is not None
        return bool(live["running"])

    @property
    def clients(self) -> list[str]:
        """The addresses from which batches came."""
        lines = [json.loads(line) for line in self.receiver.log().splitlines() if line.startswith("{")]
        return [line["client"] for line in lines if line.get("route") == "/api/events"]


def _event(chance: random.Random, stamp: Stamp, number: int) -> NewEvent:
    later = 1000 * number + chance.randrange(900)
    return NewEvent.create(
        "video.watched",
        learner_id=f"s-{chance.randrange(400)}",
        object_id=f"math/g{chance.randrange(9)}/ch{chance.randrange(20):02}/v{chance.randrange(30):02}",
        data={"seconds_watched": chance.randrange(900), "progress": round(chance.random(), 2)},
        stamp=replace(stamp, at_ms=stamp.at_ms + later, boottime_ms=stamp.boottime_ms + later),
    )


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    with (
        Link() as link,
        ReceiverProcess(tmp_path / "receiver", "--host", link.receiver) as receiver,
        link.agent(tmp_path / "device", *SETTINGS) as agent,
    ):
        agent.enroll(receiver.url, receiver.enrollment_code(), "--insecure-http", device_id="pibook-1")
        yield Field(link=link, agent=agent, receiver=receiver)


def test_a_slow_link_is_used_without_waste(field: Field) -> None:
    count = 50_000 if FULL else 3_000
    payload = field.record(count)
    field.link.shape("256kbit")
    field.agent.start("--sync-delay", "1h")
    before, began = sum(field.link.packets()), time.monotonic()
    ends: list[float] = []

    def note(progress: Mapping[str, Any]) -> None:
        if progress["seconds_left"] and progress["events"] >= count / 4:
            ends.append(time.monotonic() - began + progress["seconds_left"])

    result = protocol.sync(field.agent.socket, note)

    assert result is not None
    assert (result["delivered"], result["duplicates"], result["waiting"]) == (count, 0, 0)
    assert sum(field.link.packets()) - before <= 1.3 * payload
    if FULL:
        used = result["bytes_sent"] / result["seconds"] / (256_000 / 8)
        print(f"{used:.0%} of the line in {result['seconds']} s")
        assert used >= 0.85
        print(f"expected to end after {min(ends):.0f} to {max(ends):.0f} s")
        assert 0.8 * result["seconds"] <= min(ends) <= max(ends) <= 1.2 * result["seconds"]


@pytest.mark.skipif(not FULL, reason="the short form cannot show the property; PISYNC_TEST_LINKS=full measures it")
def test_a_link_that_comes_and_goes_wastes_little(field: Field) -> None:
    """At 56 kbit/s with 5% loss; the full windows are those of 20 s in 2 minutes.

    In little, where one request is half of the payload, an interruption in its last second weighs more (measured: 1.4
    to 2.0): that form only shows that what got through is not sent again.
    """
    count, window, most = (10_000, 135_000, 1.3) if FULL else (1_500, 22_000, 2.5)
    payload = field.record(count)
    field.link.shape("56kbit")
    field.link.lose(5)
    field.agent.start()
    windows = [sum(field.link.packets())]
    while field.waiting:
        before = sum(field.link.packets())
        wait_until(
            lambda before=before: sum(field.link.packets()) - before > window or not field.waiting,  # type: ignore[misc]
            "the window is over",
        )
        windows.append(sum(field.link.packets()))
        field.link.down()
        wait_until(lambda: not field.syncing, "the run has ended")
        field.link.up()

    assert field.agent.status()["dead"] == 0
    print(f"payload {payload}; bytes at the end of each window {windows}: {(windows[-1] - windows[0]) / payload:.2f}")
    assert windows[-1] - windows[0] <= most * payload, windows


def test_a_connection_of_another_network_is_not_used(field: Field) -> None:
    field.agent.start()
    field.agent.record()
    field.agent.json("sync")
    field.link.move()
    field.agent.record()

    result = field.agent.json("sync")

    assert (result["delivered"], result["waiting"]) == (1, 0)
    wait_until(lambda: len(set(field.clients)) == 2, "the receiver's log has both addresses")
