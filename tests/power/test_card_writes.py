"""How many bytes reach the card for an event: what it costs to store it durably, and to deliver it with others.

A card lasts for a number of writes. The least that a durable commit can write on ext4 is one block of 4,096 bytes; the
log of 1,024-byte pages takes about one and a half of these for an event recorded alone, and a commit that makes a file
longer takes three more for the file system's journal. Counted by the kernel on a real file system, so these tests do
not depend on the machine's speed; blocks that only a timer of the kernel would write (times of files, the index of the
log) are not in it.
"""

from collections.abc import Iterator
from typing import Final

import pytest

from pisync_agent.client import ReceiverClient
from pisync_agent.identity import Identity
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.service.sync_runner import SyncRunner
from pisync_agent.sync.run import Delivery
from tests.support.ext4 import Ext4Disk
from tests.support.outboxes import StillClock, event
from tests.unit.made_up_receiver import DEVICE, TOKEN, URL, MadeUpReceiver

WARM: Final = 300
"""Events after which the log is written over from its beginning."""

IDENTITY: Final = Identity(url=URL, device_id=DEVICE, token=TOKEN, insecure_http=True)


class Device:
    """An outbox on the disk, and what delivers from it to a receiver in memory."""

    def __init__(self, disk: Ext4Disk) -> None:
        self._disk = disk
        self.outbox = open_outbox(disk.path / "home")
        self.recorded = 0
        clock = StillClock()
        client = ReceiverClient(IDENTITY, clock=clock, transport=MadeUpReceiver().transport())
        delivery = Delivery(outbox=self.outbox, client=client, clock=clock, link=lambda: True)
        self._runner = SyncRunner(
            home=disk.path / "home",
            outbox=self.outbox,
            clock=clock,
            stopping=lambda: False,
            _identity=IDENTITY,
            _delivery=(IDENTITY, delivery),
        )

    def record(self, count: int, *, together: int = 1) -> None:
        for _ in range(count // together):
            self.outbox.append([event(self.recorded + number, size=60) for number in range(together)])
            self.recorded += together

    def deliver(self) -> int:
        """Make a sync run; return how many bytes it wrote to the disk."""
        before = self._disk.bytes_written()
        result = self._runner.run(probe=False, progress=lambda progress: None)
        assert result.failure is None
        assert result.waiting == 0
        return self._disk.bytes_written() - before

    def school_day(self, events: int, *, gathered: int, together: int = 1) -> float:
        """Record and deliver; return the bytes written for each event."""
        before = self._disk.bytes_written()
        for _ in range(events // gathered):
            self.record(gathered, together=together)
            self.deliver()
        return (self._disk.bytes_written() - before) / events


@pytest.fixture
def device(disk: Ext4Disk) -> Iterator[Device]:
    made = Device(disk)
    made.deliver()
    made.record(WARM)
    made.deliver()
    yield made
    made.outbox.close()


def test_an_event_recorded_alone_and_delivered_with_nine_others_writes_less_than_two_blocks(device: Device) -> None:
    """It was 13,000 bytes with pages of 4,096 and three commits a run; and 35,000 delivered alone."""
    assert 4096 <= device.school_day(200, gathered=10) < 7_600


def test_events_in_bursts_of_a_hundred_write_about_a_kilobyte_each(device: Device) -> None:
    assert device.school_day(2000, gathered=100, together=100) < 1_000


def test_commits_make_no_file_longer_from_the_second_on(disk: Ext4Disk) -> None:
    """Else each writes to the file system's journal too, three blocks more, until the log is written over."""
    device = Device(disk)
    device.record(2)
    before = disk.bytes_written()
    device.record(20)
    assert disk.bytes_written() - before < 20 * 2 * 4_096
    device.outbox.close()
