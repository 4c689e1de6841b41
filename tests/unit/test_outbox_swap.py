"""One database takes the place of another: interrupted at any step, nothing is lost and nothing doubled."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.outbox.database import PAGE_BYTES
from pisync_agent.outbox.recovery import swap
from pisync_common.sqlite import connect
from tests.support.outboxes import bodies, deliver, events, opened, seqs


class PowerCut(BaseException):
    """The process is gone."""


class Steps:
    """Counts renames, unlinks and flushes of the file system, and stops the world before any of these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.done = 0
        for owner, name in ((os, "rename"), (Path, "rename"), (os, "fsync"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.stopping(getattr(owner, name)))

    def stopping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.done == self.at:
                raise PowerCut
            self.done += 1
            return real(*args, **kwargs)

        return step


def filled(home: Path) -> None:
    """30 events of which 10 are delivered; 10 more stand in the log, as after a SIGKILL."""
    outbox = opened(home / "running")
    outbox.append(events(20))
    outbox._file.disk.write_back()
    outbox.append(events(10, first=21))
    deliver(outbox, 10)
    (home / "killed").mkdir()
    for name in ("outbox.db", "outbox.db-wal"):
        shutil.copy(home / "running" / name, home / "killed" / name)
    outbox.close()


def destroy_an_empty_table(path: Path) -> None:
    """The log has a page 1 of its own, so a destroyed header would not count."""
    with closing(connect(path, readonly=True, immutable=True)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'dead_letters'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(bytes(100))


def numbers(home: Path) -> list[int]:
    outbox = opened(home)
    found = [json.loads(body)["data"]["n"] for body in bodies(outbox, after=outbox.delivered)]
    assert seqs(outbox)[-1:] == [outbox.state().last_seq]
    outbox.close()
    return found


@pytest.mark.parametrize("broken", [False, True])
def test_an_interruption_at_any_step_is_finished_or_undone(tmp_path: Path, broken: bool) -> None:
    filled(tmp_path)
    interrupted = 0
    for at in range(60):
        home = tmp_path / f"home{at}"
        shutil.copytree(tmp_path / "killed", home)
        with pytest.MonkeyPatch.context() as patch:
            outbox = None
            if not broken:
                outbox = opened(home)
            else:
                destroy_an_empty_table(home / "outbox.db")
            steps = Steps(patch, at)
            try:
                if outbox is not None:
                    outbox.start_new_stream("conflict")
                else:
                    outbox = opened(home)
            except PowerCut:
                interrupted += 1
            else:
                assert steps.done <= at
        # The process is gone: what its connection would do when it is closed must not matter.
        left = tmp_path / f"left{at}"
        shutil.copytree(home, left)
        if outbox is not None:
            outbox.close()
        assert numbers(left) == list(range(11, 31)), f"step {at}"
        assert numbers(left) == list(range(11, 31)), f"step {at}, opened again"
        assert not swap.new_path(left / "outbox.db").exists()
        if interrupted < at + 1:
            break
    assert interrupted >= 6


def test_a_leftover_log_is_never_applied_to_the_new_file(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(3))
    log = (tmp_path / "outbox.db-wal").read_bytes()
    outbox.start_new_stream("conflict")
    outbox.close()
    (tmp_path / "outbox.db").rename(tmp_path / "outbox.new.db")
    (tmp_path / "outbox.db-wal").write_bytes(log)
    assert numbers(tmp_path) == [1, 2, 3]
    outbox = opened(tmp_path)
    assert [json.loads(body)["seq"] for body in bodies(outbox)] == [1, 2, 3]
    assert all("origin" in json.loads(body) for body in bodies(outbox))
    outbox.close()


def test_the_file_set_aside_is_whole(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(25))
    deliver(outbox, 20)
    stream = outbox.stream
    outbox.start_new_stream("conflict")
    (aside,) = outbox.state().salvaged
    old = tmp_path / "old"
    old.mkdir()
    for ending in ("", "-wal"):
        if (tmp_path / (aside.file + ending)).exists():
            shutil.copy(tmp_path / (aside.file + ending), old / f"outbox.db{ending}")
    again = opened(old)
    assert (again.stream, seqs(again)) == (stream, list(range(1, 26)))
    again.close()
    outbox.close()


def test_files_set_aside_in_one_millisecond_get_distinct_names(tmp_path: Path) -> None:
    outbox = opened(tmp_path, random_hex=lambda size: "b" * 2 * size)
    for _ in range(3):
        outbox.start_new_stream("conflict")
    names = [each.file for each in outbox.state().salvaged]
    assert len(set(names)) == 3
    assert all((tmp_path / name).exists() for name in names)
    outbox.close()


def test_another_process_that_still_has_the_old_file_notices(tmp_path: Path) -> None:
    mine, theirs = opened(tmp_path), opened(tmp_path)
    theirs.append(events(2))
    assert mine.is_current()
    theirs.start_new_stream("conflict")
    assert not mine.is_current()
    assert theirs.is_current()
    theirs.append(events(1, first=3))
    # Closing the old one must not touch the log of the new one.
    mine.close()
    assert theirs.append(events(1, first=4)) == [4]
    with_log = (tmp_path / "outbox.db-wal").stat().st_size
    assert with_log > 0
    theirs.close()
    assert numbers(tmp_path) == [1, 2, 3, 4]
