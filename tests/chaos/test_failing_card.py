"""A card that fails: each record is refused with its right words, nothing recorded is lost, and it works on afterwards.

SQLite meets the fault in its own calls to write and to flush.
"""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import apsw
import pytest

from pisync_agent.errors import AgentError, OutboxFull, StoreUnusable
from pisync_agent.outbox import faults
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.outbox import Outbox, open_outbox
from tests.support.outboxes import STAMP, bodies, deliver, event, events, opened, receipt
from tests.support.power_cut import Disk, failing, no_fault

# A fault while SQLite closes a file has no caller to go to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FAULTS: dict[str, tuple[Callable[[str], None], int | None, type[AgentError], str]] = {
    "EIO on write": (failing(apsw.SQLITE_IOERR_WRITE, "write"), errno.EIO, StoreUnusable, "the disk failed"),
    "EIO on fsync": (failing(apsw.SQLITE_IOERR_FSYNC, "sync"), errno.EIO, StoreUnusable, "the disk failed"),
    "EIO now and not later": (failing(apsw.SQLITE_IOERR_WRITE, "write"), None, StoreUnusable, "the disk failed"),
    "read-only": (failing(apsw.SQLITE_IOERR_WRITE, "write"), errno.EROFS, StoreUnusable, "file system is read-only"),
    "ENOSPC": (failing(apsw.SQLITE_FULL, "write"), errno.ENOSPC, OutboxFull, "kept"),
    "EDQUOT": (failing(apsw.SQLITE_IOERR_WRITE, "write"), errno.EDQUOT, OutboxFull, "quota"),
}
"""For each fault: what fails, what a probe of the disk then meets, and how a record is refused."""


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk(random=Random(5))
    yield disk
    disk.close()


def numbers(outbox: Outbox) -> list[int]:
    return [json.loads(body)["data"]["n"] for body in bodies(outbox)]


def break_it(disk: Disk, name: str, patch: pytest.MonkeyPatch) -> tuple[type[AgentError], str]:
    disk.fault, probe, kind, words = FAULTS[name]
    patch.setattr(faults, "refusal_to_write", lambda folder: probe)
    return kind, words


@pytest.mark.parametrize("name", FAULTS)
def test_records_are_refused_and_work_goes_on(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outbox = opened(tmp_path, connect=disk.connect)
    outbox.append(events(5))
    for _ in range(3):
        with monkeypatch.context() as patch:
            kind, words = break_it(disk, name, patch)
            for size in (10, 30_000):
                with pytest.raises(kind) as refused:
                    outbox.append([event(1000, size=size)])
                for part in (words, "nothing was recorded"):
                    assert part in str(refused.value)
                assert "damage" not in str(refused.value)
            assert numbers(outbox) == list(range(1, outbox.state().last_seq + 1))
            disk.fault = no_fault
        last = outbox.state().last_seq
        assert outbox.append([event(last + 1)]) == [last + 1]
    assert numbers(outbox) == list(range(1, 9))
    assert outbox.state().salvaged == ()
    outbox.close()


@pytest.mark.parametrize("power_lost", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_acknowledged_is_lost_when_it_ends_while_the_card_fails(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, power_lost: bool
) -> None:
    outbox = opened(tmp_path, connect=disk.connect)
    outbox.append(events(5))
    with monkeypatch.context() as patch:
        kind, _ = break_it(disk, name, patch)
        for _ in range(2):
            with pytest.raises(kind):
                outbox.append([event(1000), event(1001)])
        disk.restart(power_lost=power_lost)
        disk.fault = no_fault
    outbox = opened(tmp_path, connect=disk.connect)
    assert numbers(outbox)[:5] == [1, 2, 3, 4, 5]
    assert outbox.append(events(1, first=6)) == [outbox.state().last_seq]
    assert outbox.state().salvaged == ()
    outbox.close()


@pytest.mark.parametrize("name", FAULTS)
def test_bookkeeping_is_refused_or_kept_and_works_afterwards(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outbox = opened(tmp_path, connect=disk.connect)
    outbox.append(events(10))
    with monkeypatch.context() as patch:
        kind, words = break_it(disk, name, patch)
        acts: list[Callable[[], object]] = [
            lambda: outbox.set_note("last_run", "now"),
            lambda: outbox.add_sync_event(QueuedSyncEvent(key="r1", stamp=STAMP, files=0)),
            lambda: outbox.move_to_dead_letters(3, "declined", "x"),
        ]
        for act in acts:
            with pytest.raises(kind, match=words):
                act()
        if kind is OutboxFull:
            assert outbox.settle(receipt(outbox, 4), [1, 2, 3, 4]) == 4, "delivery goes on without room"
        else:
            with pytest.raises(kind, match=words):
                outbox.settle(receipt(outbox, 4), [1, 2, 3, 4])
        disk.fault = no_fault
    for act in acts:
        act()
    deliver(outbox, 10)
    state = outbox.state()
    assert (state.delivered, state.waiting, state.dead, state.sync_events_waiting) == (10, 0, 1, 1)
    assert outbox.note("last_run") == "now"
    outbox.close()


@pytest.mark.parametrize("name", FAULTS)
def test_opening_on_a_failing_card_says_why_and_sets_nothing_aside(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        kind, words = break_it(disk, name, patch)
        with pytest.raises(kind, match=words):
            opened(home, connect=disk.connect)
        disk.restart(power_lost=False)
        disk.fault = no_fault
    outbox = opened(home, connect=disk.connect)
    assert outbox.append(events(3)) == [1, 2, 3]
    disk.restart(power_lost=False)
    with monkeypatch.context() as patch:
        break_it(disk, name, patch)
        with suppress(kind):  # opening writes nothing, unless the log has to be written back
            open_outbox(home, connect=disk.connect)
        disk.restart(power_lost=False)
        disk.fault = no_fault
    outbox = opened(home, connect=disk.connect)
    assert numbers(outbox) == [1, 2, 3]
    assert outbox.state().salvaged == ()
    outbox.close()
