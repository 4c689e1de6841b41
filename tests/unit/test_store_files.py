"""The SQLite store as a file: read while it is written, copied while it is written, broken on purpose."""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pisync_common.models import Receipt
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.queries import queries
from pisync_receiver.store.sqlite import SqliteStore, backup, open_reader, open_store
from pisync_receiver.store.sqlite.connection import Connection, Cursor, connect
from tests.support.stores.made import NOON, batch, counts, report, send, stored, stored_seqs, tell


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    opened = open_store(path, create=True)
    yield opened
    opened.close()


def test_what_was_written_is_there_after_a_new_start(path: Path) -> None:
    store = open_store(path, create=True)
    send(store, batch([1, 2, 4]))
    store.close()
    store = open_store(path)
    assert counts(send(store, batch([2, 3]))) == (1, 1, [], 4)
    assert [row.id for row in stored(store)] == [1, 2, 3, 4]
    store.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = open_store(path, create=True)
    store.close()
    store.close()
    with pytest.raises(StoreUnusable):
        store.device("x")
    assert isinstance(store.write([report(NOON)])[0], StoreUnusable)
    with pytest.raises(StoreUnusable):
        store.ready()


def test_a_reader_sees_what_another_connection_commits(store: SqliteStore, path: Path) -> None:
    with closing(open_reader(path)) as reader:
        assert reader.device("pibook-1") is None
        tell(store, report(NOON))
        assert reader.device("pibook-1") is not None


def test_a_reader_needs_no_server(path: Path) -> None:
    store = open_store(path, create=True)
    tell(store, report(NOON))
    store.close()
    assert not path.with_name("receiver.db-wal").exists()
    with closing(open_reader(path)) as reader:
        assert len(reader.history("pibook-1").rows) == 1


def test_a_reader_cannot_write(store: SqliteStore, path: Path) -> None:
    with (
        closing(connect(path, readonly=True)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("UPDATE pulse SET beats = 5")


def test_more_threads_than_connections_read_at_once(store: SqliteStore) -> None:
    for number in range(40):
        tell(store, report(NOON + number, device=f"d{number % 4}"))
    found: list[int] = []
    barrier = threading.Barrier(12)

    def read(device: str) -> None:
        barrier.wait()
        for _ in range(20):
            found.append(len(store.history(device).rows))

    threads = [threading.Thread(target=read, args=(f"d{number % 4}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10] * 240


# Copies.


def test_a_backup_is_a_whole_database(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    send(store, batch(range(1, 101)))
    target = tmp_path / "copy.db"
    backup(path, target)
    with closing(open_store(target)) as copy:
        assert stored_seqs(copy) == list(range(1, 101))
        assert counts(send(copy, batch([101]))) == (1, 0, [], 101)
    assert target.stat().st_mode & 0o777 == 0o600
    assert stored_seqs(store) == list(range(1, 101))


def test_a_backup_is_of_one_moment_while_another_writes(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    stopped = threading.Event()

    def write() -> None:
        first = 1
        while not stopped.is_set():
            store.write([batch(range(first, first + 50)), report(NOON + first, failed=True)])
            first += 50

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            target = tmp_path / f"copy-{number}.db"
            backup(path, target)
            with closing(open_reader(target)) as copy:
                rows = stored(copy)  # type: ignore[arg-type]
                assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
                device = copy.device("pibook-1")
                assert (0 if device is None else device.total_failures) * 50 == len(rows)
    finally:
        stopped.set()
        thread.join()


def test_a_backup_replaces_an_older_one_and_leaves_nothing_else(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "copy.db").write_text("an older copy")
    backup(path, folder / "copy.db")
    assert [file.name for file in folder.iterdir()] == ["copy.db"]
    open_reader(folder / "copy.db").close()


def test_a_backup_that_fails_leaves_the_older_one(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    target = tmp_path / "copy.db"
    target.write_text("an older copy")
    with pytest.raises(StoreUnusable):
        backup(path, target)
    assert target.read_text() == "an older copy"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "receiver.db"]


@pytest.mark.parametrize("target", ["receiver.db", "missing/copy.db"])
def test_a_backup_to_nowhere_is_refused(store: SqliteStore, path: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(StoreUnusable):
        backup(path, tmp_path / target)
    with pytest.raises(StoreUnusable, match="there is no database"):
        backup(tmp_path / "nothing.db", tmp_path / "copy.db")
    tell(store, report(NOON))


# A disk that fails.


class Failing:
    """A connection that fails where `fail` says so."""

    def __init__(self, inner: Connection, fail: Callable[[str], None]) -> None:
        self._inner = inner
        self._fail = fail
        self.close = inner.close

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        self._fail(sql)
        return self._inner.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        self._fail(sql)
        return self._inner.executemany(sql, parameters)


class Disk:
    """Fails once at the statement that begins with `at`."""

    def __init__(self) -> None:
        self.at: str | None = None
        self.error: type[Exception] = sqlite3.OperationalError
        self.times = 1

    def fail(self, sql: str) -> None:
        if self.at is not None and sql.startswith(self.at) and self.times > 0:
            self.times -= 1
            raise self.error("disk I/O error")


@pytest.mark.parametrize("at", ["BEGIN", "INSERT INTO events", "INSERT INTO devices", "UPDATE streams", "COMMIT"])
def test_a_group_that_fails_is_rolled_back_and_each_is_written_alone(path: Path, at: str) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    send(store, batch([1]))
    disk.at = at
    outcomes = store.write([batch([2, 3]), report(NOON), batch([3, 4])])
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, False, False]
    assert stored_seqs(store) == [1, 2, 3, 4]
    assert len(store.history("pibook-1").rows) == 1
    store.close()


def test_a_disk_that_stays_broken_stores_nothing_and_says_so(path: Path) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    disk.at, disk.times = "COMMIT", 10**6
    outcomes = store.write([batch([1]), report(NOON)])
    assert [type(outcome) for outcome in outcomes] == [StoreUnusable, StoreUnusable]
    with pytest.raises(StoreUnusable):
        store.ready()
    disk.at = None
    assert stored(store) == []
    assert counts(send(store, batch([1]))) == (1, 0, [], 1)
    store.close()


def test_an_interrupted_write_leaves_no_transaction_open(path: Path) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    disk.at, disk.error = "INSERT INTO events", KeyboardInterrupt  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        store.write([batch([1])])
    assert isinstance(store.write([batch([1])])[0], Receipt)
    store.close()


def test_a_reader_whose_connection_broke_gets_a_new_one(path: Path) -> None:
    disk, readers = Disk(), []

    def noting(path: Path, *, readonly: bool) -> Connection:
        connection = Failing(connect(path, readonly=readonly), disk.fail)
        if readonly:
            readers.append(connection)
        return connection

    store = open_store(path, create=True, connect=noting)
    tell(store, report(NOON))
    disk.at = "SELECT device_id, site"
    with pytest.raises(StoreUnusable, match="cannot be read"):
        store.device("pibook-1")
    for _ in range(3):
        assert store.device("pibook-1") is not None
    assert len(readers) == 2
    store.close()


# No query reads a history from end to end.


def plan(path: Path, query: str) -> str:
    with closing(sqlite3.connect(path)) as connection:
        sql = queries("sqlite", "queries")[query]
        wanted = dict.fromkeys(re.findall(r":(\w+)", sql), 1)
        return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", wanted))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("history", "SEARCH sync_events USING INDEX sync_events_by_device (device_id=?"),
        ("streaks", "SEARCH devices USING INDEX devices_by_streak"),
        ("totals_since", "SEARCH sync_events USING COVERING INDEX sync_events_failed (at_ms>?)"),
        ("events", "SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("events_of_learner", "SEARCH e USING INDEX events_by_learner (learner_id=? AND rowid>? AND rowid<?)"),
        ("events_of_stream", "SEARCH e USING INDEX events_by_stream (stream_id=? AND rowid>? AND rowid<?)"),
        ("streams", "SEARCH streams USING INDEX"),
        ("gaps", "SEARCH gaps USING PRIMARY KEY (stream_id=?)"),
        ("device", "SEARCH devices USING PRIMARY KEY (device_id=?)"),
    ],
)
def test_a_query_uses_its_index(store: SqliteStore, path: Path, query: str, index: str) -> None:
    steps = plan(path, query)
    assert index in steps
    for table in ("sync_events", "events", "e", "devices AS"):
        assert f"SCAN {table}\n" not in steps + "\n"


@pytest.mark.parametrize("query", ["history", "streaks", "events", "events_of_learner", "events_of_stream", "gaps"])
def test_a_page_needs_no_sorting(store: SqliteStore, path: Path, query: str) -> None:
    assert "TEMP B-TREE" not in plan(path, query)
