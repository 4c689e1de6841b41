"""A really full disk: a file system of 8 MiB, filled by others to the last byte while the outbox is in use."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent.errors import OutboxFull
from pisync_agent.outbox.outbox import Outbox, open_outbox
from tests.support.outboxes import events, receipt, seqs
from tests.support.small_disk import small_disk, use_up

SIZE = 8 * 1024 * 1024


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with small_disk(tmp_path, size=SIZE, kinds=[request.param]) as mounted:
        yield mounted


def fill(outbox: Outbox, most: int = 100_000) -> int:
    for _ in range(most):
        try:
            outbox.append(events(10, size=300))
        except OutboxFull:
            break
    return outbox.state().last_seq


def drain(outbox: Outbox) -> None:
    """Deliver everything; some of it is rejected."""
    while outbox.state().waiting:
        batch = [seq for seq, _ in outbox.read(outbox.delivered, max_events=200, max_bytes=10**6)]
        answer = receipt(outbox, batch[-1], rejected=[(batch[0], "invalid_event")])
        assert outbox.settle(answer, batch) == batch[-1]
    outbox.trim()


def test_the_outbox_alone_leaves_half_of_the_disk(disk: Path) -> None:
    outbox = open_outbox(disk)
    assert fill(outbox) > 2000
    free = os.statvfs(disk)
    assert free.f_bavail * free.f_frsize > SIZE // 8
    drain(outbox)
    assert outbox.append(events(1)) != []
    outbox.close()


@pytest.mark.parametrize("opened_again", [False, True])
def test_a_disk_filled_by_others_refuses_new_events_and_drains(disk: Path, opened_again: bool) -> None:
    outbox = open_outbox(disk)
    outbox.append(events(2000, size=300))
    use_up(disk)
    last = fill(outbox)
    assert seqs(outbox) == list(range(1, last + 1))
    if opened_again:
        outbox.close()
        use_up(disk)
        outbox = open_outbox(disk)
        use_up(disk)
    drain(outbox)
    assert outbox.delivered == last
    # What was delivered makes room for new work, without a byte more of the disk.
    assert outbox.append(events(20, size=300)) == list(range(last + 1, last + 21))
    (disk / "others").unlink()
    drain(outbox)
    outbox.close()
    outbox = open_outbox(disk)
    assert outbox.delivered == last + 20
    assert outbox.state().salvaged == ()
    outbox.close()


def test_recording_goes_on_after_others_made_room(disk: Path) -> None:
    outbox = open_outbox(disk)
    outbox.append(events(100, size=300))
    others = use_up(disk)
    last = fill(outbox)
    with pytest.raises(OutboxFull, match="is kept"):
        outbox.append(events(500, size=300))
    others.unlink()
    assert outbox.append(events(500, size=300)) == list(range(last + 1, last + 501))
    assert [json.loads(body)["seq"] for _, body in outbox.read(0, max_events=5, max_bytes=10**6)] == [1, 2, 3, 4, 5]
    outbox.close()
