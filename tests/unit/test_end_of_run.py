"""What a sync run leaves to be stored is stored in one commit; a crash before it makes events travel again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.client import ReceiverClient
from pisync_agent.identity import Identity
from pisync_agent.outbox.models import LAST_RUN, OutboxLimits, OutboxState
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service.sync_runner import SyncRunner
from pisync_agent.sync.progress import SyncResult
from pisync_agent.sync.run import Delivery
from tests.support.outboxes import StillClock, event, events, opened, receipt
from tests.unit.made_up_receiver import DEVICE, TOKEN, URL, MadeUpReceiver

IDENTITY = Identity(url=URL, device_id=DEVICE, token=TOKEN, insecure_http=True)


class Device:
    def __init__(self, home: Path) -> None:
        self.outbox = opened(home)
        self.receiver = MadeUpReceiver()
        self.commits = 0
        clock = StillClock()
        client = ReceiverClient(IDENTITY, clock=clock, transport=self.receiver.transport())
        delivery = Delivery(outbox=self.outbox, client=client, clock=clock, link=lambda: True)
        self._runner = SyncRunner(
            home=home, outbox=self.outbox, clock=clock, stopping=lambda: False, _identity=IDENTITY,
            _delivery=(IDENTITY, delivery),
        )  # fmt: skip
        connection: Any = self.outbox._file.connection
        connection.set_trace_callback(self._count)

    def _count(self, sql: str) -> None:
        self.commits += sql == "COMMIT"

    def run(self) -> tuple[SyncResult, int]:
        """Make a sync run; return its result, and how many commits it made."""
        before = self.commits
        result = self._runner.run(probe=False, progress=lambda progress: None)
        return result, self.commits - before


def stored(home: Path) -> OutboxState:
    """The state in the file, as another process reads it."""
    with OutboxReader(home) as reader:
        return reader.state()


def note(home: Path, name: str) -> str:
    with OutboxReader(home) as reader:
        return reader.note(name) or ""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    made.outbox.append(events(5))
    made.run()  # with a sync event, which is made a quarter of an hour
    yield made
    made.outbox.close()


def test_a_run_makes_one_commit(device: Device) -> None:
    for first in (6, 11):
        device.outbox.append(events(5, first=first))
        result, commits = device.run()

        assert result.delivered == 5
        assert commits == 1


def test_the_commit_has_the_receipt_the_result_and_the_sync_events_state(device: Device, tmp_path: Path) -> None:
    device.outbox.append(events(5, first=6))
    device.run()

    state = stored(tmp_path)
    assert (state.delivered, state.watermark) == (10, 10)
    assert json.loads(note(tmp_path, LAST_RUN))["delivered"] == 5
    assert json.loads(note(tmp_path, "sync_events"))["unsent"]["files"] == 5


def test_a_run_of_many_batches_stores_each_receipt_but_the_last(device: Device, tmp_path: Path) -> None:
    """What a crash in a long run forgets is one batch."""
    device.outbox.append(events(10, first=6))
    device.outbox.settle(receipt(device.outbox, 12), list(range(6, 13)))
    assert stored(tmp_path).delivered == 12
    device.outbox.settle(receipt(device.outbox, 15), [13, 14, 15])
    assert (device.outbox.delivered, stored(tmp_path).delivered) == (15, 12)

    device.outbox.end_run()
    assert stored(tmp_path).delivered == 15


def test_closing_stores_what_a_run_left(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1)])
    outbox.settle(receipt(outbox, 1), [1])
    outbox.close()

    assert stored(tmp_path).delivered == 1


def test_without_anything_to_store_there_is_no_commit(device: Device) -> None:
    before = device.commits
    device.outbox.end_run()
    assert device.outbox.trim() == 0

    assert device.commits == before


def test_a_note_for_later_is_read_at_once(tmp_path: Path) -> None:
    outbox: Outbox = opened(tmp_path)
    outbox.set_note("one", "first")
    outbox.set_note("one", "second", later=True)

    assert outbox.note("one") == "second"
    assert note(tmp_path, "one") == "first"
    outbox.set_note("two", "")
    assert note(tmp_path, "one") == "second"
    outbox.close()


def test_delivered_events_are_deleted_in_ranges(tmp_path: Path) -> None:
    """A deletion a run would write several pages each time."""
    outbox = opened(tmp_path, limits=OutboxLimits(keep_delivered_bytes=64_000))
    deleted = []
    for number in range(1, 200):
        outbox.append([event(number, size=800)])
        outbox.settle(receipt(outbox, number), [number])
        deleted.append(outbox.trim())
    outbox.close()

    ranges = [count for count in deleted if count]
    assert sum(ranges) > 100
    assert min(ranges) >= 2
