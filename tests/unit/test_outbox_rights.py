"""Rights of the outbox's files: the agent's user alone, whatever the umask; the group reaches the socket only."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pisync_agent.identity as identities
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.recorder import Recorder
from pisync_agent.service.lock import writer_lock
from tests.support.outboxes import deliver, events, opened
from tests.support.services import root

UMASKS = [0o000, 0o022, 0o077]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(home: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in home.iterdir()}


def salvaged_outbox(home: Path) -> Outbox:
    """An outbox whose first file was broken, and whose second was superseded; in use."""
    outbox = opened(home)
    outbox.append(events(5))
    outbox.close()
    with (home / "outbox.db").open("r+b") as file:
        file.write(bytes(100))
    outbox = opened(home)
    deliver(outbox, 2)
    outbox.start_new_stream("a conflict")
    outbox.append(events(5))
    return outbox


@pytest.mark.parametrize("mask", UMASKS)
def test_every_file_is_its_users_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    home = tmp_path / "deep" / "home"
    with umask(mask):
        with writer_lock(files.lock(home)):
            outbox = salvaged_outbox(home)
        identity = Identity(url="https://pisync.example.org", device_id="pi-1", token="t")
        identities.save(home, identity)
        found = modes(home)
        outbox.close()
    names = set(found)
    assert {"outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.lock", "outbox.reserve", "identity.json"} <= names
    assert any(name.endswith(".broken.db") for name in names)
    assert any(name.endswith(".superseded.db") for name in names)
    assert set(found.values()) == {0o600}, found


@pytest.mark.parametrize("mask", UMASKS)
def test_a_new_folder_is_open_to_the_group_at_most(tmp_path: Path, mask: int) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "outbox": lambda home: opened(home).close(),
        "recorder": lambda home: Recorder(home).record("note.taken"),
        "identity": lambda home: identities.save(home, Identity(url="https://x.example", device_id="p", token="t")),
    }
    for name, make in makers.items():
        with umask(mask):
            make(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o750 & ~mask, name


def test_rights_of_an_existing_outbox_are_tightened(tmp_path: Path) -> None:
    outbox = salvaged_outbox(tmp_path)
    outbox.close()
    (tmp_path / "outbox.lock").touch()
    (tmp_path / "identity.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not the agent's")
    for file in tmp_path.iterdir():
        file.chmod(0o664)
    outbox = opened(tmp_path)
    found = modes(tmp_path)
    assert found.pop("notes.txt") == 0o664
    assert set(found.values()) == {0o600}, found
    outbox.close()


def test_files_of_another_user_are_left_as_they_are(tmp_path: Path) -> None:
    root("giving a file away")
    opened(tmp_path).close()
    other = tmp_path / "outbox-1-x.broken.db"
    other.touch()
    os.chown(other, 54400, 54400)
    other.chmod(0o644)
    opened(tmp_path).close()
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_file_system_without_rights_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat shows one mode for all files, and refuses others."""
    opened(tmp_path).close()
    (tmp_path / "outbox.db").chmod(0o755)

    def refuse(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(os, "chmod", refuse)
    outbox = opened(tmp_path)
    assert outbox.append(events(1)) == [1]
    outbox.close()


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    elsewhere.chmod(0o644)
    home = tmp_path / "home"
    opened(home).close()
    (home / "outbox-link.broken.db").symlink_to(elsewhere)
    opened(home).close()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644


def test_a_group_member_cannot_hold_the_lock(tmp_path: Path) -> None:
    root("becoming another user")
    for each in (tmp_path, *tmp_path.parents):
        if each.name.startswith(("pytest-", "popen-")) or each == tmp_path:
            each.chmod(0o755)
    home = tmp_path / "home"
    with umask(0), writer_lock(files.lock(home)):
        pass
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.setgroups([home.stat().st_gid])
            os.setuid(54401)
            files.lock(home).stat()
            code = 1
            fcntl.flock(os.open(files.lock(home), os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError:
            code += 6
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
