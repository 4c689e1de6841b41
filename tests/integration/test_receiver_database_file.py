"""A receiver whose database is moved, replaced or damaged under it: it acknowledges nothing more, says so once, and a
start never lays the old log over another file."""

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import ReceiverProcess, wait_until

MOVED, CUT, OVERWRITTEN, DAMAGED = "was moved, replaced or deleted", "cut short", "was overwritten", "is damaged"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    """A receiver with an older copy beside it, and 1,200 events, most of them in the file and the newest in the log."""
    with ReceiverProcess(tmp_path / "receiver", "--auth", "off") as receiver:
        assert send(receiver, 0) == 200
        receiver.command("backup", str(tmp_path / "backup.db"))
        for first in range(100, 1200, 100):
            assert send(receiver, first) == 200
        assert receiver.database.stat().st_size > 2 * (tmp_path / "backup.db").stat().st_size
        yield receiver


def send(receiver: ReceiverProcess, first: int, count: int = 100) -> int:
    """Deliver events after `first`; return the status of the answer."""
    event: dict[str, Any] = {"type": "note.taken", "occurred_at": "2026-11-23T08:00:00.000Z", "data": {"x": "y" * 4000}}
    events = [event | {"seq": first + number} for number in range(1, count + 1)]
    body = {"device_id": "pibook-1", "stream": "s1", "events": events}
    return httpx.post(receiver.url + "/api/events", json=body, trust_env=False, timeout=60).status_code


def status(receiver: ReceiverProcess, path: str) -> int:
    return httpx.get(receiver.url + path, trust_env=False, timeout=60).status_code


def watermark(receiver: ReceiverProcess) -> int:
    answer = httpx.get(receiver.url + "/api/devices/pibook-1/completeness", trust_env=False, timeout=60).json()
    return int(answer["streams"][0]["watermark"])


def errors(receiver: ReceiverProcess) -> list[str]:
    """What the log says of the file."""
    lines = [json.loads(line) for line in receiver.log().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["level"] == "ERROR" and line["logger"].endswith("sqlite.file")]


def folder(receiver: ReceiverProcess) -> dict[str, bytes]:
    """The database, its log, and what was put beside them."""
    files = [file for file in receiver.home.iterdir() if file.name.startswith("receiver.db")]
    return {file.name: file.read_bytes() for file in files if not file.name.endswith(("-shm", ".lock", ".sock"))}


# What may happen to the file. Each takes the path of the database and that of an older copy.


def moved(database: Path, _: Path) -> None:
    database.rename(database.with_name("elsewhere.db"))


def deleted(database: Path, _: Path) -> None:
    database.unlink()


def replaced_by_a_copy(database: Path, copy: Path) -> None:
    shutil.copy(copy, database.with_name("new"))
    database.with_name("new").rename(database)


def moved_and_copied_back(database: Path, _: Path) -> None:
    database.rename(database.with_name("elsewhere.db"))
    shutil.copy(database.with_name("elsewhere.db"), database)


def log_deleted(database: Path, _: Path) -> None:
    database.with_name("receiver.db-wal").unlink()


def log_truncated(database: Path, _: Path) -> None:
    os.truncate(database.with_name("receiver.db-wal"), 0)


def folder_renamed(database: Path, _: Path) -> None:
    database.parent.rename(database.parent.with_name("renamed"))
    database.parent.mkdir()
    (database.parent / "receiver.log").symlink_to(database.parent.with_name("renamed") / "receiver.log")


def copied_over(database: Path, copy: Path) -> None:
    with database.open("r+b") as file:  # as `cp` does: the same file, other content
        file.truncate()
        file.write(copy.read_bytes())


def truncated(database: Path, _: Path) -> None:
    os.truncate(database, 0)


def zeros_in_the_middle(database: Path, _: Path) -> None:
    with database.open("r+b") as file:
        file.seek(database.stat().st_size // 8192 * 4096)
        file.write(bytes(65_536))


def garbage_in_front(database: Path, _: Path) -> None:
    with database.open("r+b") as file:
        file.write(os.urandom(4096))


FAULTS: dict[Callable[[Path, Path], None], str] = {
    moved: MOVED,
    deleted: MOVED,
    replaced_by_a_copy: MOVED,
    moved_and_copied_back: MOVED,
    log_deleted: MOVED,
    log_truncated: CUT,
    folder_renamed: MOVED,
    copied_over: OVERWRITTEN,
    truncated: OVERWRITTEN,
    zeros_in_the_middle: OVERWRITTEN,
    garbage_in_front: OVERWRITTEN,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_lost_database_is_not_acknowledged_into(
    receiver: ReceiverProcess, tmp_path: Path, fault: Callable[[Path, Path], None]
) -> None:
    fault(receiver.database, tmp_path / "backup.db")
    assert status(receiver, "/readyz") == 503
    assert [send(receiver, first) for first in (1200, 1300, 1200)] == [503] * 3
    assert status(receiver, "/api/events?limit=10") == 503
    assert status(receiver, "/healthz") == 200
    assert status(receiver, "/readyz") == 503
    told = errors(receiver)
    assert len(told) == 1, told
    assert FAULTS[fault] in told[0]
    assert "the receiver's log says why" in httpx.get(receiver.url + "/readyz", trust_env=False, timeout=60).text
    left = folder(receiver)
    receiver.stop()
    assert folder(receiver) == left  # neither a checkpoint nor a deletion


@pytest.mark.parametrize("fault", [moved, deleted, truncated, replaced_by_a_copy, copied_over])
def test_start_refuses_a_log_that_is_not_the_files_own(
    receiver: ReceiverProcess, tmp_path: Path, fault: Callable[[Path, Path], None]
) -> None:
    fault(receiver.database, tmp_path / "backup.db")
    receiver.kill()
    left = folder(receiver)
    done = receiver.run("serve", "--port", "0")
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder(receiver) == left


def test_moved_database_that_is_put_back_has_everything(receiver: ReceiverProcess) -> None:
    moved(receiver.database, receiver.database)
    assert send(receiver, 1200) == 503
    receiver.stop()
    receiver.database.with_name("elsewhere.db").rename(receiver.database)
    receiver.start()
    assert send(receiver, 1200) == 200
    assert watermark(receiver) == 1300


def test_restored_copy_serves_once_the_old_log_is_moved_away(receiver: ReceiverProcess, tmp_path: Path) -> None:
    copied_over(receiver.database, tmp_path / "backup.db")
    receiver.kill()
    receiver.database.with_name("receiver.db-wal").rename(tmp_path / "old-wal")
    receiver.start()
    assert watermark(receiver) == 100
    assert send(receiver, 100) == 200


def test_killed_receiver_finds_its_own_log(receiver: ReceiverProcess) -> None:
    """Kills leave a log of any age and a file behind it; both belong together."""
    for first in range(1200, 1500, 50):
        receiver.kill()
        receiver.start()
        assert send(receiver, first, 50) == 200
    assert watermark(receiver) == 1500


@pytest.mark.parametrize("kind", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_checkpoint_by_another_program_is_no_loss(receiver: ReceiverProcess, kind: str) -> None:
    """As tools that replicate the log make, and administrators at the prompt of `sqlite3`."""
    for first in range(1200, 1500, 100):
        with closing(sqlite3.connect(receiver.database)) as other:
            assert other.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()[0] == 0
        assert status(receiver, "/api/devices/pibook-1") == 200
        assert send(receiver, first) == 200
    receiver.kill()
    receiver.start()
    assert watermark(receiver) == 1500


def damage_events(receiver: ReceiverProcess) -> None:
    """Overwrite leaves of the table of events, keeping size and time, as a failing disk does; the receiver, which reads
    the file in the background too, stands still meanwhile."""
    database = receiver.database
    os.kill(receiver.pid, signal.SIGSTOP)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'events'").fetchone()
    before = database.stat()
    with database.open("r+b") as file:
        for page in range(root, before.st_size // 4096):
            file.seek((page - 1) * 4096)
            file.write(b"\x0d" + bytes(4095))
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.kill(receiver.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/api/events", "application/json"),
        ("/api/events?device_id=pibook-1", "application/json"),
        ("/api/events", "application/x-ndjson"),
    ],
)
def test_damaged_page_that_a_reader_meets_ends_acknowledgements(
    receiver: ReceiverProcess, path: str, accept: str
) -> None:
    receiver.restart()  # with nothing in memory
    damage_events(receiver)
    headers = {"Accept": accept}
    with httpx.Client(base_url=receiver.url, headers=headers, trust_env=False, timeout=60) as client:
        wait_until(lambda: met(client, path), "the damaged page is met")
    assert send(receiver, 1200) == 503
    assert status(receiver, "/readyz") == 503
    told = errors(receiver)
    assert len(told) == 1, told
    assert DAMAGED in told[0]


def met(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 503
    except httpx.RemoteProtocolError:  # an export that had begun
        return True


def test_damaged_page_that_the_writer_meets_ends_acknowledgements(receiver: ReceiverProcess) -> None:
    receiver.restart()
    damage_events(receiver)
    assert send(receiver, 0) == 503  # compared with what stands there
    assert send(receiver, 1200) == 503
    assert status(receiver, "/readyz") == 503
    assert len(errors(receiver)) == 1


def test_damaged_database_is_not_backed_up(receiver: ReceiverProcess, tmp_path: Path) -> None:
    receiver.restart()
    before = (tmp_path / "backup.db").read_bytes()
    damage_events(receiver)
    done = receiver.run("backup", str(tmp_path / "backup.db"))
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert (tmp_path / "backup.db").read_bytes() == before
