"""What cannot be opened says why, and only damage is called damage."""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pisync_agent.errors import AgentError, OutboxFull, StoreUnusable
from pisync_agent.outbox import disk, faults, files
from pisync_agent.outbox.faults import explained
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.outbox.space import free_bytes
from tests.support.outboxes import Faults, events, opened, seqs, sqlite_error
from tests.support.services import root

STRANGER = 54402  # no such user


def filled(home: Path) -> Path:
    outbox = opened(home)
    outbox.append(events(3))
    outbox.close()
    return home


def set_version(home: Path, version: int) -> None:
    with closing(sqlite3.connect(home / "outbox.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def another_program(home: Path, version: int) -> None:
    with closing(sqlite3.connect(home / "outbox.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE bookmarks (x)")
        connection.execute("INSERT INTO bookmarks VALUES ('kept')")
        connection.execute(f"PRAGMA user_version = {version}")


def failure(act: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as caught:
        act()
    return str(caught.value)


def check_no_damage(home: Path, *words: str, write: bool = True, read: bool = True) -> None:
    """Writing and reading both fail with these words; neither speaks of damage, and nothing was set aside."""
    texts = [failure(lambda: opened(home))] if write else []
    texts += [failure(lambda: OutboxReader(home))] if read else []
    for text in texts:
        for word in words:
            assert word in text
        assert "damage" not in text
        assert "pisync run" not in text
    assert not [file for file in home.iterdir() if "broken" in file.name]


def test_a_newer_file_is_named_newer(tmp_path: Path) -> None:
    set_version(filled(tmp_path), 99)
    check_no_damage(tmp_path, "written by a newer PiSync", "schema version 99", "nothing was changed")


@pytest.mark.parametrize("version", [0, 1, 99])
def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path, version: int) -> None:
    another_program(tmp_path, version)
    before = (tmp_path / "outbox.db").read_bytes()
    check_no_damage(tmp_path, "another program's database", "Nothing was changed")
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
        assert connection.execute("SELECT x FROM bookmarks").fetchall() == [("kept",)]
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (1,)
    assert len((tmp_path / "outbox.db").read_bytes()) == len(before)


def test_a_file_that_is_no_database_is_called_damaged_to_a_reader(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"<html>" * 1000)
    text = failure(lambda: OutboxReader(tmp_path))
    assert "the file is damaged (file is not a database): nothing was changed" in text
    assert "`pisync run`" in text


def test_a_directory_in_the_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()
    check_no_damage(tmp_path, "it is a directory, where a file should be", "Move it away")


def test_a_directory_in_the_place_of_the_log_is_named(tmp_path: Path) -> None:
    (filled(tmp_path) / "outbox.db-wal").mkdir()
    check_no_damage(tmp_path, "outbox.db-wal", "it is a directory, where a file should be")


def test_a_directory_in_the_place_of_the_index_is_named(tmp_path: Path) -> None:
    (filled(tmp_path) / "outbox.db-shm").mkdir()
    outbox = opened(tmp_path)
    text = failure(lambda: outbox.append(events(1)))
    assert "outbox.db-shm cannot be used: it is a directory" in text
    (tmp_path / "outbox.db-shm").rmdir()
    outbox.close()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert "where a directory should be" in failure(lambda: opened(tmp_path / "home" / "deeper"))
    assert failure(lambda: opened(tmp_path / "home"))


def test_a_missing_file_is_named_to_a_reader(tmp_path: Path) -> None:
    check_no_damage(tmp_path, "it does not exist", write=False)


def test_too_many_open_files_are_named(tmp_path: Path) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert "too many files are open" in str(explained(tmp_path / "outbox.db", error))


@pytest.mark.parametrize(("mode", "folder"), [(0o600, 0o755), (0o600, 0o700)])
def test_a_file_of_another_user_names_that_user(tmp_path: Path, mode: int, folder: int) -> None:
    root("becoming another user")
    for each in [*tmp_path.parents][:3]:
        each.chmod(each.stat().st_mode | 0o755)
    home = tmp_path / "home"
    filled(home)
    (home / "outbox.db").chmod(mode)
    home.chmod(folder)
    found = as_user(STRANGER, lambda: [failure(lambda: OutboxReader(home)), failure(lambda: opened(home))])
    for text in found.split("\0"):
        assert "belongs to root" in text
        assert "sudo -u root pisync" in text
        assert "group" not in text
        assert "damage" not in text
        assert "pisync run" not in text


def as_user(uid: int, act: Callable[[], list[str]]) -> str:
    """What `act` returns in a process of another user, joined with NUL."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(into, "\0".join(act()).encode())
        except BaseException as error:
            os.write(into, repr(error).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


# Errors of SQLite while the outbox is in use: each refused with its words, and it works on afterwards

IN_USE: dict[str, tuple[sqlite3.Error, type[AgentError], str]] = {
    "EIO on write": (
        sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_WRITE"), StoreUnusable, "the disk failed"
    ),
    "EIO on fsync": (
        sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_FSYNC"), StoreUnusable, "the disk failed"
    ),
    "ENOSPC": (
        sqlite_error(sqlite3.OperationalError, "database or disk is full", "SQLITE_FULL"), OutboxFull, "is kept"
    ),
    "busy": (
        sqlite_error(sqlite3.OperationalError, "database is locked", "SQLITE_BUSY"), StoreUnusable, "another process"
    ),
    "moved": (
        sqlite_error(sqlite3.OperationalError, "attempt to write a readonly database", "SQLITE_READONLY_DBMOVED"),
        StoreUnusable, "moved or deleted",
    ),
    "memory": (sqlite_error(sqlite3.OperationalError, "out of memory", "SQLITE_NOMEM"), StoreUnusable, "out of memory"),
}  # fmt: skip


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "INSERT INTO events", "COMMIT"])
@pytest.mark.parametrize("name", IN_USE)
def test_a_failed_write_is_refused_and_work_goes_on_after_it(tmp_path: Path, name: str, statement: str) -> None:
    error, kind, words = IN_USE[name]
    connections = Faults()
    outbox = opened(tmp_path, connect=connections.connect)
    outbox.append(events(3))

    def fault(sql: str) -> None:
        if sql.startswith(statement):
            raise error

    connections.fault = fault
    for _ in range(2):
        with pytest.raises(kind) as caught:
            outbox.append(events(2, first=10))
        assert words in str(caught.value)
        assert "nothing was recorded" in str(caught.value)
        assert "damage" not in str(caught.value)
    connections.fault = lambda sql: None
    assert outbox.append(events(2, first=4)) == [4, 5]
    assert seqs(outbox) == [1, 2, 3, 4, 5]
    assert outbox.state().salvaged == ()
    outbox.close()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EDQUOT, OutboxFull, "quota"),
        (errno.ENOSPC, OutboxFull, "has no room"),
        (errno.EROFS, StoreUnusable, "file system is read-only"),
        (errno.EIO, StoreUnusable, "the disk failed"),
        (errno.EACCES, StoreUnusable, "may not use it"),
    ],
)
def test_an_unclear_error_of_sqlite_is_explained_by_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[AgentError], words: str
) -> None:
    """SQLite reports each of these as a disk I/O error."""
    monkeypatch.setattr(faults, "refusal_to_write", lambda folder: number)
    error = sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_WRITE")
    found = explained(tmp_path / "outbox.db", error)
    assert isinstance(found, kind)
    assert words in str(found)


def test_a_used_up_quota_keeps_delivery_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bookkeeping takes the reserve, as on a full disk."""
    connections = Faults()
    outbox = opened(tmp_path, connect=connections.connect)
    reserve = files.reserve(tmp_path)
    monkeypatch.setattr(faults, "refusal_to_write", lambda folder: errno.EDQUOT if reserve.exists() else None)

    def quota(sql: str) -> None:
        if sql.startswith("INSERT INTO notes") and reserve.exists():
            raise sqlite_error(sqlite3.OperationalError, "disk I/O error", "SQLITE_IOERR_WRITE")

    connections.fault = quota
    outbox.set_note("last_run", "now")
    assert outbox.note("last_run") == "now"
    outbox.close()


def test_a_probe_is_never_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may ask for it in a folder of the agent's user, who makes the link after the old probe was deleted."""
    (tmp_path / "file").write_text("of root")
    (tmp_path / "outbox.probe").symlink_to(tmp_path / "file")
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)

    faults.refusal_to_write(tmp_path)
    assert (tmp_path / "file").read_text() == "of root"


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    assert faults.refusal_to_write(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert faults.refusal_to_write(tmp_path / "none") == errno.ENOENT


# Numbers of the file system that make no sense


def stated(**fields: int) -> Callable[[object], os.statvfs_result]:
    names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
    defaults = dict.fromkeys(names, 4096) | fields
    return lambda path: os.statvfs_result([*(defaults[name] for name in names), 0, 255])


ABSURD = {
    "nothing is counted": dict.fromkeys(("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail"), 0),
    "no blocks": {"f_blocks": 0, "f_bfree": 0, "f_bavail": 0},
    "no fragment size": {"f_frsize": 0, "f_blocks": 10**6, "f_bfree": 10**6, "f_bavail": 10**6},
    "no sizes": {"f_frsize": 0, "f_bsize": 0},
    "huge": {"f_blocks": 2**64 - 1, "f_bfree": 2**64 - 1, "f_bavail": 2**64 - 1, "f_frsize": 2**32},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_numbers_of_the_file_system_do_not_stop_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "statvfs", stated(**ABSURD[name]))
    outbox: Outbox = opened(tmp_path)
    assert outbox.append(events(3)) == [1, 2, 3]
    assert 0 < outbox.state().bytes_max <= 256 * 1024 * 1024
    assert files.reserve(tmp_path).stat().st_size <= disk.RESERVE_BYTES
    outbox.close()


def test_without_a_fragment_size_the_block_size_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", stated(f_frsize=0, f_bsize=512, f_blocks=100, f_bfree=50, f_bavail=40))
    assert free_bytes(tmp_path) == 40 * 512


def test_a_count_below_zero_means_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks are reserved than free: some file systems state the difference as a huge number."""
    monkeypatch.setattr(os, "statvfs", stated(f_blocks=10**6, f_bfree=2, f_bavail=2**64 - 3))
    assert free_bytes(tmp_path) == 2 * 4096
    with pytest.raises(OutboxFull, match="has no room"):
        opened(tmp_path)
