"""The disk whose power can be cut does lose what it must: otherwise the tests beside it would prove nothing."""

import errno
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.ext4 import Ext4Disk, ext4_disk
from tests.support.processes import wait_until

FLUSHED, UNFLUSHED = b"this was flushed " * 1000, b"this was not flushed " * 1000


def write(path: Path, content: bytes, *, flush: bool) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content)
        if flush:
            os.fsync(file.fileno())


def test_only_what_was_flushed_is_there_again(disk: Ext4Disk) -> None:
    write(disk.path / "flushed", FLUSHED, flush=True)
    write(disk.path / "unflushed", UNFLUSHED, flush=False)
    assert (disk.path / "unflushed").read_bytes() == UNFLUSHED
    disk.cut_power()
    # Not even the image has it; so nothing that happens later can bring it back.
    held = disk.image.read_bytes()
    assert FLUSHED[:4000] in held
    assert UNFLUSHED[:20] not in held
    disk.restart()
    assert (disk.path / "flushed").read_bytes() == FLUSHED
    assert not (disk.path / "unflushed").exists()


def test_the_bytes_of_a_file_that_was_there_before_are_lost_too(disk: Ext4Disk) -> None:
    """As SQLite's log, which is written over again and again."""
    write(disk.path / "log", FLUSHED, flush=True)
    with (disk.path / "log").open("r+b", buffering=0) as file:
        file.write(UNFLUSHED[: len(FLUSHED)])
    disk.cut_power()
    disk.restart()
    assert (disk.path / "log").read_bytes() == FLUSHED


def test_without_power_nothing_can_be_written(disk: Ext4Disk) -> None:
    disk.cut_power()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(disk.path / "late", FLUSHED, flush=True)
    disk.restart()
    write(disk.path / "later", FLUSHED, flush=True)
    assert [file.name for file in disk.path.iterdir() if file.is_file()] == ["later"]


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    with ext4_disk(tmp_path) as disk:
        disk.cut_power()
        disk.restart()
        disk.cut_power()
    assert not disk.path.is_mount()
    wait_until(lambda: str(tmp_path) not in losetup(), "the loop devices are free")


def losetup() -> str:
    return subprocess.run(["losetup", "--list"], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("journal", "synchronous", "survive"),
    [("WAL", "NORMAL", 0), ("WAL", "FULL", 20), ("DELETE", "FULL", 19), ("DELETE", "EXTRA", 20)],
)
def test_what_sqlite_keeps_of_twenty_commits(disk: Ext4Disk, journal: str, synchronous: str, survive: int) -> None:
    """The third is about a folder: the last commit is undone where the deletion of its journal was not flushed."""
    file = disk.path / "some.db"
    with closing(opened(file, journal, "EXTRA")) as connection:
        connection.execute("CREATE TABLE rows (n INTEGER)")
    with closing(opened(file, journal, synchronous)) as connection:
        for number in range(20):
            connection.execute("INSERT INTO rows VALUES (?)", (number,))
        disk.cut_power()
    disk.restart()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT n FROM rows ORDER BY n").fetchall() == [(n,) for n in range(survive)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def opened(file: Path, journal: str, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal.lower(),)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection
