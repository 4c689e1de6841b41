"""The SQLite store as a file: restarts, backups, a failing disk, a file that was moved, query plans."""

import asyncio
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pisync_receiver
from pisync_common.models import Receipt
from pisync_common.queries import load_queries
from pisync_common.sqlite import Connect, Connection, Cursor
from pisync_receiver.errors import DatabaseLost, StoreUnusable
from pisync_receiver.store import reading
from pisync_receiver.store.sqlite import store as module
from pisync_receiver.store.sqlite.backup import backup
from pisync_receiver.store.sqlite.file import DatabaseFile, check_log
from pisync_receiver.store.sqlite.store import SqliteStore, connect
from tests.support.blocking import BlockingStore, counts, send, stored, stored_seqs, sync
from tests.support.submissions import NOON, batch, sync_event


def open_store(path: Path, *, create: bool = False, connect: Connect = connect) -> BlockingStore:
    async def opening() -> SqliteStore:
        return module.open_store(path, create=create, connect=connect)

    return BlockingStore(opening)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.db"


@pytest.fixture
def store(path: Path) -> Iterator[BlockingStore]:
    opened = open_store(path, create=True)
    yield opened
    opened.close()


def test_restart_keeps_what_was_written(path: Path) -> None:
    store = open_store(path, create=True)
    send(store, batch([1, 2, 4]))
    store.close()
    store = open_store(path)
    assert counts(send(store, batch([2, 3]))) == (1, 1, [], 4)
    assert [row.id for row in stored(store)] == [1, 2, 3, 4]
    store.close()


def test_closed_store_is_unusable(path: Path) -> None:
    store = open_store(path, create=True)
    store.aclose()
    store.aclose()
    calls: list[Callable[[], object]] = [
        lambda: store.device("x"),
        lambda: store.write([sync_event(NOON)]),
        store.ready,
    ]
    for call in calls:
        with pytest.raises(StoreUnusable):
            call()
    store.close()


def test_reading_connection_cannot_write(store: BlockingStore, path: Path) -> None:
    with (
        closing(connect(path, readonly=True)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("UPDATE pulse SET beats = 5")


def test_more_queries_than_connections_run_at_once(store: BlockingStore) -> None:
    for number in range(40):
        sync(store, sync_event(NOON + number, device=f"d{number % 4}"))

    async def read() -> list[int]:
        pages = await asyncio.gather(*(store.store.history(f"d{number % 4}") for number in range(240)))
        return [len(page.rows) for page in pages]

    assert store.run(read()) == [10] * 240


# Backups.


def test_backup_is_a_complete_database(store: BlockingStore, path: Path, tmp_path: Path) -> None:
    send(store, batch(range(1, 101)))
    target = tmp_path / "copy.db"
    backup(path, target)
    with closing(open_store(target)) as copy:
        assert stored_seqs(copy) == list(range(1, 101))
        assert counts(send(copy, batch([101]))) == (1, 0, [], 101)
    assert target.stat().st_mode & 0o777 == 0o600
    assert stored_seqs(store) == list(range(1, 101))


def test_backup_during_writes_is_of_one_moment(store: BlockingStore, path: Path, tmp_path: Path) -> None:
    targets = [tmp_path / f"copy-{number}.db" for number in range(5)]

    async def write(done: asyncio.Event) -> None:
        first = 1
        while not done.is_set():
            await store.store.write([batch(range(first, first + 50)), sync_event(NOON + first, failed=True)])
            first += 50

    async def both() -> None:
        done = asyncio.Event()
        writing = asyncio.create_task(write(done))
        for target in targets:
            await asyncio.to_thread(backup, path, target)
        done.set()
        await writing

    store.run(both())
    for target in targets:
        with closing(open_store(target)) as copy:
            rows = stored(copy)
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            device = copy.device("pibook-1")
            assert (0 if device is None else device.total_failures) * 50 == len(rows)


def test_backup_replaces_an_older_one(store: BlockingStore, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "copy.db").write_text("an older copy")
    backup(path, folder / "copy.db")
    assert [file.name for file in folder.iterdir()] == ["copy.db"]
    open_store(folder / "copy.db").close()


def test_failed_backup_leaves_the_older_one(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    target = tmp_path / "copy.db"
    target.write_text("an older copy")
    with pytest.raises(StoreUnusable):
        backup(path, target)
    assert target.read_text() == "an older copy"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "receiver.db"]


@pytest.mark.parametrize("target", ["receiver.db", "missing/copy.db"])
def test_backup_to_an_impossible_place_is_refused(
    store: BlockingStore, path: Path, tmp_path: Path, target: str
) -> None:
    with pytest.raises(StoreUnusable):
        backup(path, tmp_path / target)
    with pytest.raises(StoreUnusable, match="there is no database"):
        backup(tmp_path / "nothing.db", tmp_path / "copy.db")
    sync(store, sync_event(NOON))


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


@pytest.mark.parametrize(
    "at", ["BEGIN", "INSERT INTO events", "REPLACE INTO devices", "REPLACE INTO streams", "COMMIT"]
)
def test_failed_group_is_rolled_back(path: Path, at: str) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    send(store, batch([1]))
    disk.at = at
    group = [batch([2, 3]), sync_event(NOON), batch([3, 4])]
    assert {type(outcome) for outcome in store.write(group)} == {StoreUnusable}
    assert stored_seqs(store) == [1]
    assert not [outcome for outcome in store.write(group) if isinstance(outcome, Exception)]
    assert stored_seqs(store) == [1, 2, 3, 4]
    assert len(store.history("pibook-1").rows) == 1
    store.close()


def test_refused_row_costs_a_logarithmic_number_of_transactions(path: Path) -> None:
    begun: list[str] = []

    def note(sql: str) -> None:
        if sql.startswith("BEGIN IMMEDIATE"):
            begun.append(sql)

    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), note)
    )
    group = [batch([1], stream=f"s{number}") for number in range(64)]
    group[37] = batch([2**70], stream="refused")
    begun.clear()
    outcomes = store.write(group)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [37]
    assert len(begun) == 1 + 2 * 6
    assert len(stored(store)) == 63
    store.close()


def test_broken_disk_is_reported(path: Path) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    disk.at, disk.times = "COMMIT", 10**6
    outcomes = store.write([batch([1]), sync_event(NOON)])
    assert [type(outcome) for outcome in outcomes] == [StoreUnusable, StoreUnusable]
    assert "cannot be written: disk I/O error" in str(outcomes[0])
    with pytest.raises(StoreUnusable):
        store.ready()
    disk.at = None
    assert stored(store) == []
    assert counts(send(store, batch([1]))) == (1, 0, [], 1)
    store.close()


def test_interrupted_write_leaves_no_transaction_open(path: Path) -> None:
    disk = Disk()
    store = open_store(
        path, create=True, connect=lambda path, *, readonly: Failing(connect(path, readonly=readonly), disk.fail)
    )
    disk.at, disk.error = "INSERT INTO events", KeyboardInterrupt  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        store.write([batch([1])])
    assert isinstance(store.write([batch([1])])[0], Receipt)
    store.close()


def test_broken_reading_connection_is_replaced(path: Path) -> None:
    disk, readers = Disk(), []

    def noting(path: Path, *, readonly: bool) -> Connection:
        connection = Failing(connect(path, readonly=readonly), disk.fail)
        if readonly:
            readers.append(connection)
        return connection

    store = open_store(path, create=True, connect=noting)
    sync(store, sync_event(NOON))
    disk.at = "SELECT d.*, s.silent_after_ms"
    with pytest.raises(StoreUnusable, match="cannot be read"):
        store.device("pibook-1")
    for _ in range(3):
        assert store.device("pibook-1") is not None
    assert len(readers) == 3  # the first stays open and is not used
    store.close()


# The file at its path.


def test_moved_database_is_not_acknowledged(path: Path) -> None:
    store = open_store(path, create=True)
    send(store, batch([1]))
    path.rename(path.with_name("moved.db"))
    (outcome,) = store.write([batch([2])])
    with pytest.raises(StoreUnusable, match="moved, replaced or deleted"):
        raise outcome
    with pytest.raises(StoreUnusable, match="moved, replaced or deleted"):
        store.ready()
    path.with_name("moved.db").rename(path)
    assert isinstance(store.write([batch([3])])[0], Receipt)
    store.close()


def test_replaced_database_is_not_acknowledged(path: Path, tmp_path: Path) -> None:
    store = open_store(path, create=True)
    backup(path, tmp_path / "copy.db")
    (tmp_path / "copy.db").replace(path)
    assert isinstance(store.write([batch([1])])[0], StoreUnusable)
    store.close()


def test_commit_of_another_program_is_taken(store: BlockingStore, path: Path) -> None:
    sync(store, sync_event(NOON))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE devices SET label = 'by hand'")
        other.execute("PRAGMA wal_checkpoint")
    store.ready()
    assert store.device("pibook-1").label == "by hand"


@pytest.fixture
def watched(path: Path) -> Iterator[tuple[DatabaseFile, Connection]]:
    """The file of a thousand events as the writer watches it, and the writer's connection."""
    store = open_store(path, create=True)
    send(store, batch(range(1, 1001)))
    store.close()
    with closing(connect(path, readonly=False)) as connection:
        connection.execute("UPDATE pulse SET beats = beats + 1")
        file = DatabaseFile(path, connection)
        yield file, connection
    file.close()


def test_file_that_a_vacuum_made_shorter_is_taken(path: Path, watched: tuple[DatabaseFile, Connection]) -> None:
    """Another program frees pages; the writer's own checkpoint cuts them off."""
    file, connection = watched
    before = path.stat().st_size
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript("PRAGMA wal_autocheckpoint = 0; DELETE FROM events WHERE seq > 1; VACUUM")
    for _ in range(2):
        with file.writing():
            connection.execute("PRAGMA wal_checkpoint")
    assert path.stat().st_size < before


def test_log_is_the_files_own_after_the_clock_was_set_back(
    path: Path, tmp_path: Path, watched: tuple[DatabaseFile, Connection]
) -> None:
    file, connection = watched
    with file.writing():
        connection.execute("PRAGMA wal_checkpoint")
        tomorrow = path.stat().st_mtime_ns + 86_400 * 10**9
        os.utime(path, ns=(tomorrow, tomorrow))
    with file.writing():
        connection.execute("CREATE TABLE more (x)")  # writes page 1
    killed = tmp_path / "killed.db"
    for end in ("", "-wal"):
        shutil.copy2(f"{path}{end}", f"{killed}{end}")
    check_log(killed)


def test_torn_end_of_a_log_is_no_reason_to_refuse(
    path: Path, tmp_path: Path, watched: tuple[DatabaseFile, Connection]
) -> None:
    """A power cut leaves the head of a frame without the rest of its page; SQLite does not use the frame."""
    _, connection = watched
    connection.execute("PRAGMA wal_checkpoint")
    connection.execute("PRAGMA user_version = 5")  # writes page 1 alone
    torn = tmp_path / "torn.db"
    shutil.copy(path, torn)
    log = bytearray(path.with_name("receiver.db-wal").read_bytes())
    page_1 = 32 + 24
    log[page_1 + 24 :] = bytes(len(log) - page_1 - 24)
    tmp_path.joinpath("torn.db-wal").write_bytes(log)
    check_log(torn)


def test_time_that_a_file_system_rounds_is_taken(store: BlockingStore, path: Path) -> None:
    sync(store, sync_event(NOON))
    for grain in (1000, 10**9):
        rounded = path.stat().st_mtime_ns // grain * grain
        os.utime(path, ns=(rounded, rounded))
        store.ready()
    path.touch()
    with pytest.raises(DatabaseLost, match="overwritten"):
        store.ready()


def test_file_written_long_after_its_log_is_refused(path: Path) -> None:
    store = open_store(path, create=True)
    send(store, batch(range(1, 101)))
    log, copied = path.with_name("receiver.db-wal"), path.with_name("copied.db")
    shutil.copy(path, copied)
    shutil.copy(log, copied.with_name("copied.db-wal"))
    store.close()
    late = copied.with_name("copied.db-wal").stat().st_mtime_ns + 120 * 10**9
    os.utime(copied, ns=(late, late))
    with pytest.raises(StoreUnusable, match="does not belong"):
        open_store(copied)
    os.utime(copied.with_name("copied.db-wal"), ns=(late, late))
    with closing(open_store(copied)) as copy:
        assert stored_seqs(copy) == list(range(1, 101))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [(24, 10**6, "another state"), (16, 0x2000, "page sizes"), (40, 1, "made by `backup`")],
)
def test_log_of_another_file_is_refused(path: Path, place: int, value: int, reason: str) -> None:
    """The header of the file says that it cannot be what the log was begun on."""
    store = open_store(path, create=True)
    send(store, batch(range(1, 101)))
    shutil.copy(path.with_name("receiver.db-wal"), path.with_name("other.db-wal"))
    store.close()
    other = path.with_name("other.db")
    header = bytearray(path.read_bytes())
    size = 2 if place == 16 else 4
    header[place : place + size] = value.to_bytes(size, "big")
    other.write_bytes(header)
    before = (other.read_bytes(), path.with_name("other.db-wal").read_bytes())
    with pytest.raises(StoreUnusable, match=reason):
        open_store(other)
    assert (other.read_bytes(), path.with_name("other.db-wal").read_bytes()) == before


def test_reader_notices_a_copy_in_place(path: Path, tmp_path: Path) -> None:
    store = open_store(path, create=True)
    backup(path, tmp_path / "copy.db")
    send(store, batch(range(1, 101)))
    with path.open("r+b") as file:
        file.write((tmp_path / "copy.db").read_bytes())
    with pytest.raises(DatabaseLost, match="overwritten"):
        store.device("pibook-1")
    assert isinstance(store.write([batch([101])])[0], DatabaseLost)
    store.close()


@pytest.mark.parametrize("empty", [False, True])
def test_new_database_is_not_made_beside_an_orphaned_log(path: Path, empty: bool) -> None:
    if empty:
        path.touch()
    log = path.with_name("receiver.db-wal")
    log.write_bytes(b"frames")
    with pytest.raises(StoreUnusable, match="its log"):
        open_store(path, create=True)
    assert log.read_bytes() == b"frames"
    assert path.exists() == empty


# Query plans: no query reads a history from end to end.


def named(*names: str) -> dict[str, str]:
    """Return the SQL of files of these names, shared and of this engine."""
    folders = (reading.SHARED_SQL, Path(module.__file__).with_name("sql"))
    files = [folder / f"{name}.sql" for folder in folders for name in names]
    return {query: sql for file in files for query, sql in load_queries(file).items()}


def plan(path: Path, sql: str) -> str:
    numbered = max(map(int, re.findall(r"\?(\d)", sql)), default=sql.count("?"))
    values = dict.fromkeys(re.findall(r":(\w+)", sql), 1) or (1,) * numbered
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("history", "SEARCH sync_events USING INDEX sync_events_by_device (device_id=?"),
        ("streaks", "SEARCH devices USING INDEX devices_by_streak"),
        ("totals", "SEARCH devices USING INDEX devices_by_failures"),
        ("totals_since", "SEARCH sync_events USING COVERING INDEX sync_events_failed_by_time (at_ms>?)"),
        ("risen", "SEARCH sync_events USING INDEX sync_events_by_arrival (received_ms>?)"),
        ("newest_arrival", "SEARCH sync_events USING COVERING INDEX sync_events_by_arrival"),
        ("events", "SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("events_of_learner", "SEARCH events USING INDEX events_by_learner (learner_id=? AND rowid>? AND rowid<?)"),
        ("events_of_device", "SEARCH events USING INDEX events_by_device (device_id=? AND rowid>? AND rowid<?)"),
        ("streams", "SEARCH streams USING PRIMARY KEY (device_id=?)"),
        ("gaps", "SEARCH g USING PRIMARY KEY (device_id=? AND stream=? AND first<?)"),
        ("newest_rejected", "SEARCH newest USING COVERING INDEX rejected_by_arrival (device_id=? AND stream=?)"),
        ("rejected", "SEARCH rejected USING INDEX rejected_by_arrival (device_id=?"),
        ("devices_by_id", "SEARCH devices USING PRIMARY KEY (device_id=?)"),
        ("tokens_by_hash", "SEARCH tokens USING INDEX"),
        ("count_old", "SEARCH events USING INTEGER PRIMARY KEY (rowid<?)"),
        ("count_old", "SEARCH sync_events USING COVERING INDEX sync_events_by_arrival (received_ms<?)"),
    ],
)
def test_query_uses_its_index(store: BlockingStore, path: Path, query: str, index: str) -> None:
    steps = plan(path, module.load_sql()[query])
    assert index in steps
    for table in ("sync_events", "events"):
        assert f"SCAN {table}\n" not in steps + "\n"


@pytest.mark.parametrize("query", sorted(named("write").keys() - {"old_events"}))
def test_intake_never_scans_a_table(store: BlockingStore, path: Path, query: str) -> None:
    steps = plan(path, module.load_sql()[query]).splitlines()
    inner = {f"SCAN {step.removeprefix('CO-ROUTINE ')}" for step in steps}
    scanned = [step for step in steps if re.match(r"SCAN (?!CONSTANT|\(|.*VIRTUAL TABLE)", step) and step not in inner]
    assert scanned == [] or query in ("last_event", "last_sync_event"), steps


@pytest.mark.parametrize(
    "query", ["history", "streaks", "totals", "events", "events_of_learner", "events_of_device", "rejected", "gaps"]
)
def test_page_needs_no_sorting(store: BlockingStore, path: Path, query: str) -> None:
    assert "TEMP B-TREE" not in plan(path, module.load_sql()[query])


def test_every_query_is_used() -> None:
    package = Path(str(pisync_receiver.__file__)).parent
    source = "".join(file.read_text() for file in package.rglob("*.py"))
    assert [name for name in module.load_sql() if f'"{name}"' not in source] == []


def test_query_is_shared_or_of_an_engine_and_not_both() -> None:
    folders = (reading.SHARED_SQL, Path(module.__file__).with_name("sql"))
    names = [list(load_queries(file)) for folder in folders for file in folder.glob("*.sql")]
    assert len(set().union(*names)) == sum(map(len, names))
