"""A read-only card: looking still works, writing says what is wrong, and it works on when the card can be written."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent.commands import status, status_text
from pisync_agent.errors import OutboxFull, StoreUnusable
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.outbox.reader import OutboxReader
from tests.support.ext4 import ext4_disk
from tests.support.outboxes import deliver, events, receipt, seqs
from tests.support.processes import AgentProcess
from tests.support.services import root
from tests.support.small_disk import read_only_view, small_disk, use_up

SIZE = 8 * 1024 * 1024


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with small_disk(tmp_path, size=SIZE, kinds=[request.param]) as mounted:
        yield mounted


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def contents(home: Path) -> tuple[int, int, int, list[int], str | None]:
    """What the commands `status` and `queue` read."""
    with OutboxReader(home) as reader:
        state = reader.state()
        assert reader.dead_letters()[0].seq == 2
        listed = [seq for seq, _, _ in reader.list_events(0, 1000)]
        return state.last_seq, state.waiting, state.dead, listed, reader.event(3)


def fill(home: Path) -> Outbox:
    outbox = open_outbox(home)
    outbox.append(events(20, size=300))
    deliver(outbox, 1)
    outbox.settle(receipt(outbox, 2, rejected=[(2, "invalid_event")]), [2])
    return outbox


def test_a_card_that_went_read_only_after_a_clean_stop_can_be_read(disk: Path) -> None:
    home = disk / "home"
    fill(home).close()
    expected = contents(home)
    mount("-o", "remount,ro", str(disk))
    assert contents(home) == expected
    found = status.collect(home)
    assert (found["write_fault"]["fault"], found["outbox_fault"], found["last_seq"]) == ("read_only", None, 20)
    assert status.verdict(found) == 5
    assert "its file system is read-only" in " ".join(status_text.text(found).split())
    mount("-o", "remount,rw", str(disk))
    assert "read-only" not in status_text.text(status.collect(home))
    outbox = open_outbox(home)
    assert outbox.append(events(1)) == [21]
    outbox.close()


def test_the_commands_look_at_a_read_only_card(disk: Path) -> None:
    agent = AgentProcess(disk / "home")
    agent.command("record", "note.taken")
    mount("-o", "remount,ro", str(disk))
    assert agent.status()["last_seq"] == 1
    assert "note.taken" in agent.command("queue", "list")
    assert "note.taken" in agent.command("queue", "show", "1")
    assert agent.command("queue", "dead") == ""
    done = agent.run("record", "note.taken")
    assert done.returncode == 5
    for words in ("file system is read-only", "nothing was recorded", "nothing is lost"):
        assert words in done.stderr
    mount("-o", "remount,rw", str(disk))
    agent.command("record", "note.taken")


def test_a_log_left_by_a_kill_is_read_on_a_read_only_card(disk: Path, tmp_path: Path) -> None:
    """The newest events are in the log alone; nothing of them is missing, and no copy stays behind."""
    writing = fill(tmp_path / "writing")
    expected = contents(tmp_path / "writing")
    home = disk / "home"
    home.mkdir()
    for name in ("outbox.db", "outbox.db-wal"):
        shutil.copy(tmp_path / "writing" / name, home / name)
    writing.close()
    assert (home / "outbox.db-wal").stat().st_size > 4096
    mount("-o", "remount,ro", str(disk))
    copies = tmp_path / "copies"
    copies.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(copies))
        assert contents(home) == expected
    assert list(copies.iterdir()) == []


def test_without_room_for_a_copy_of_the_log_no_half_answer_is_given(disk: Path, tmp_path: Path) -> None:
    writing = fill(tmp_path / "writing")
    home = disk / "home"
    home.mkdir()
    for name in ("outbox.db", "outbox.db-wal"):
        shutil.copy(tmp_path / "writing" / name, home / name)
    writing.close()
    mount("-o", "remount,ro", str(disk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pisync_agent.outbox.reading.free_bytes", lambda folder: 0)
        with pytest.raises(StoreUnusable, match="Set TMPDIR"):
            OutboxReader(home)


def test_an_outbox_in_use_is_read_through_a_read_only_mount(disk: Path, tmp_path: Path) -> None:
    outbox = fill(disk / "home")
    expected = contents(disk / "home")
    with read_only_view(disk / "home", tmp_path / "view") as view:
        assert contents(view) == expected
        assert outbox.append(events(1, size=300)) == [21]
        assert contents(view)[0] == 21
    outbox.close()


def test_a_card_that_the_kernel_makes_read_only_is_named_and_read(tmp_path: Path) -> None:
    """An error of ext4 while the outbox is in use."""
    with ext4_disk(tmp_path) as card:
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(card.path)], check=True)
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", str(card.path)], text=True).strip()
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel has no errors on request")
        outbox = fill(card.path / "home")
        expected = contents(card.path / "home")
        trigger.write_text("a test")
        with pytest.raises(StoreUnusable, match=r"file system is read-only.*nothing was recorded, nothing is lost"):
            outbox.append(events(1))
        assert contents(card.path / "home") == expected
        outbox.close()
        assert contents(card.path / "home") == expected


def test_a_disk_that_fails_every_call_is_named(tmp_path: Path) -> None:
    with ext4_disk(tmp_path) as card:
        outbox = fill(card.path / "home")
        card.cut_power()
        for act in (lambda: outbox.append(events(1)), lambda: open_outbox(card.path / "home")):
            with pytest.raises(StoreUnusable, match=r"the disk failed.*nothing was recorded, nothing is lost"):
                act()
        with pytest.raises(StoreUnusable, match=r"the disk failed.*nothing is lost"):
            OutboxReader(card.path / "home")
        outbox.close()


def test_a_full_disk_can_be_looked_at(disk: Path) -> None:
    home = disk / "home"
    fill(home).close()
    expected = contents(home)
    use_up(disk)
    assert contents(home) == expected


def test_used_up_inodes_are_named_and_hinder_no_outbox_in_use(tmp_path: Path) -> None:
    root("mounting")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=40", "none", str(disk))
    try:
        outbox = fill(disk / "home")
        others = use_up_inodes(disk)
        assert outbox.append(events(5)) == [21, 22, 23, 24, 25]
        deliver(outbox, 25)
        outbox.close()
        use_up_inodes(disk)
        with pytest.raises(OutboxFull, match=r"no inode for another file.*nothing was recorded.*is kept"):
            open_outbox(disk / "home").append(events(1))
        with pytest.raises(OutboxFull, match="no inode"):
            open_outbox(disk / "another")
        assert contents(disk / "home")[0] == 25
        for file in others:
            file.unlink()
        outbox = open_outbox(disk / "home")
        assert outbox.append(events(1)) == [26]
        assert seqs(outbox)[-1] == 26
        outbox.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def use_up_inodes(disk: Path) -> list[Path]:
    made: list[Path] = []
    for number in range(1000):
        file = disk / f"other-{number}"
        try:
            file.touch()
        except OSError:
            return made
        made.append(file)
    raise AssertionError("never full")
