"""The simulated disk itself: it loses what was not synced, and only that."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from pisync_agent.outbox.outbox import Outbox, open_outbox
from tests.support.outboxes import StillClock, bodies, event, events
from tests.support.power_cut import Disk, PowerCut, WeakConnection


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk(random=Random(7))
    yield disk
    disk.close()


@pytest.fixture
def weak() -> Iterator[Disk]:
    disk = Disk(random=Random(7), connection=WeakConnection)
    yield disk
    disk.close()


def table(disk: Disk, path: Path, synchronous: str) -> None:
    connection = disk.connect(path, readonly=False)
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE t (x INTEGER)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    for number in range(20):
        connection.execute("INSERT INTO t VALUES (?)", (number,))


def numbers(disk: Disk, path: Path) -> list[int]:
    return [x for (x,) in disk.connect(path, readonly=False).execute("SELECT x FROM t")]


def test_full_keeps_every_commit_through_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    table(disk, tmp_path / "a.db", "FULL")
    disk.restart(power_lost=True)
    assert numbers(disk, tmp_path / "a.db") == list(range(20))


def test_normal_loses_commits_in_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    table(disk, tmp_path / "a.db", "NORMAL")
    disk.restart(power_lost=True)
    survived = numbers(disk, tmp_path / "a.db")
    assert survived == list(range(len(survived)))
    assert len(survived) < 20


def test_normal_loses_nothing_when_only_the_process_is_killed(disk: Disk, tmp_path: Path) -> None:
    table(disk, tmp_path / "a.db", "NORMAL")
    disk.restart(power_lost=False)
    assert numbers(disk, tmp_path / "a.db") == list(range(20))


def test_nothing_is_written_after_the_power_cut(disk: Disk, tmp_path: Path) -> None:
    table(disk, tmp_path / "a.db", "FULL")
    connection = disk.connect(tmp_path / "a.db", readonly=False)
    disk.fail_after(0)
    with pytest.raises(PowerCut):
        connection.execute("INSERT INTO t VALUES (99)")
    with pytest.raises(PowerCut):
        connection.execute("SELECT 1")
    disk.restart(power_lost=False)
    assert numbers(disk, tmp_path / "a.db") == list(range(20))


def test_errors_are_those_of_sqlite3(disk: Disk, tmp_path: Path) -> None:
    connection = disk.connect(tmp_path / "a.db", readonly=False)
    connection.execute("CREATE TABLE t (x INTEGER UNIQUE)")
    connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError) as error:
        connection.execute("INSERT INTO t VALUES (1)")
    assert error.value.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
    (tmp_path / "b.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError) as broken:
        disk.connect(tmp_path / "b.db", readonly=False).execute("SELECT * FROM sqlite_schema").fetchall()
    assert broken.value.sqlite_errorname == "SQLITE_NOTADB"


def append_until_dark(outbox: Outbox, recorded: int) -> int:
    with suppress(PowerCut):
        while True:
            outbox.append([event(recorded + 1)])
            recorded += 1
    return recorded


@pytest.mark.parametrize("operations", range(40))
def test_an_outbox_has_what_append_returned_wherever_the_power_is_cut(
    disk: Disk, tmp_path: Path, operations: int
) -> None:
    outbox = open_outbox(tmp_path, connect=disk.connect, clock=StillClock())
    stream = outbox.stream
    outbox.append(events(5))
    disk.fail_after(operations)
    recorded = append_until_dark(outbox, 5)
    disk.restart(power_lost=True)
    outbox = open_outbox(tmp_path, connect=disk.connect, clock=StillClock())
    held = [json.loads(body)["data"]["n"] for body in bodies(outbox)]
    assert held in (list(range(1, recorded + 1)), list(range(1, recorded + 2)))
    assert outbox.stream == stream
    outbox.close()


def test_an_outbox_that_syncs_too_little_loses_events(weak: Disk, tmp_path: Path) -> None:
    """So the test above means something; and the read-back at start cannot catch a disk that lies."""
    outbox = open_outbox(tmp_path, connect=weak.connect, clock=StillClock())
    outbox.append(events(5))
    for number in range(6, 20):
        outbox.append([event(number)])
    weak.restart(power_lost=True)
    outbox = open_outbox(tmp_path, connect=weak.connect, clock=StillClock())
    assert len(bodies(outbox)) < 19
    outbox.close()
