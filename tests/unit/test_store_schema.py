"""Migrations: applied once, never altered, never past what the program knows."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from pisync_common.sqlite import Connection, make_durable, statements
from pisync_receiver.domain import rows
from pisync_receiver.errors import SchemaMismatch, StoreUnusable
from pisync_receiver.store.migrations import load
from pisync_receiver.store.sqlite import schema
from pisync_receiver.store.sqlite.store import SqliteStore, connect, migrate, open_store

RELEASED: Final = {"0001_initial": "e7ab9b258a43fa3430a9f6bef511652925c2cc161eac99e9ab57c1c135fe8c96"}
"""Migrations that databases out there have applied. A change to any of them breaks all those databases: write
a new migration instead. (The first may change until the first release; the second is not released.)"""


def close(store: SqliteStore) -> None:
    asyncio.run(store.aclose())


def schema_of(path: Path) -> list[tuple[str, str]]:
    with closing(connect(path, readonly=True)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        return [(name, sql) for name, sql in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.db"


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A folder with two migrations."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_first.sql").write_text("CREATE TABLE one (a);\n-- A comment; with a semicolon.\n")
    (folder / "0002_second.sql").write_text(
        "CREATE TABLE two (b);\n"
        "CREATE TRIGGER on_two AFTER INSERT ON two BEGIN\n    INSERT INTO one VALUES (1);\n    DELETE FROM two;\nEND;\n"
    )
    return folder


def apply(path: Path, folder: Path, upto: int | None = None) -> list[int]:
    with closing(connect(path, readonly=False)) as connection:
        make_durable(connection, path)
        applied = schema.migrate(connection, path, now_ms=1, migrations=load(folder)[:upto])
        return [migration.number for migration in applied]


def check(path: Path, folder: Path, upto: int | None = None) -> None:
    with closing(connect(path, readonly=True)) as connection:
        schema.check(connection, path, load(folder)[:upto])


def test_released_migrations_are_unchanged() -> None:
    known = {f"{one.number:04d}_{one.name}": one.checksum for one in schema.known()}
    assert {name: known.get(name) for name in RELEASED} == RELEASED


def test_migrations_give_the_schema_of_a_new_database(path: Path, tmp_path: Path) -> None:
    close(open_store(path, create=True))
    assert migrate(tmp_path / "other.db") == [f"{one.number:04d}_{one.name}" for one in schema.known()]
    assert schema_of(path) == schema_of(tmp_path / "other.db")


def test_migrating_again_does_nothing(path: Path) -> None:
    migrate(path)
    before = schema_of(path)
    assert migrate(path) == []
    assert schema_of(path) == before


def test_migrating_in_steps_or_at_once_is_the_same(path: Path, tmp_path: Path, steps: Path) -> None:
    assert apply(path, steps, 1) == [1]
    assert apply(path, steps) == [2]
    assert apply(tmp_path / "other.db", steps) == [1, 2]
    assert schema_of(path) == schema_of(tmp_path / "other.db")


def test_triggers_are_one_statement(steps: Path) -> None:
    assert len(list(statements((steps / "0002_second.sql").read_text()))) == 2


def test_older_schema_is_refused_with_the_command_to_run(path: Path, steps: Path) -> None:
    apply(path, steps, 1)
    with pytest.raises(SchemaMismatch, match="pisync-receiver migrate"):
        check(path, steps)


def test_newer_database_is_refused_and_unchanged(path: Path, steps: Path) -> None:
    apply(path, steps)
    before = schema_of(path)
    with pytest.raises(SchemaMismatch, match="newer"):
        check(path, steps, 1)
    with pytest.raises(SchemaMismatch, match="newer"):
        apply(path, steps, 1)
    assert schema_of(path) == before


def test_altered_migration_is_refused(path: Path, steps: Path) -> None:
    apply(path, steps, 1)
    (steps / "0001_first.sql").write_text("CREATE TABLE one (a, b);\n")
    with pytest.raises(SchemaMismatch, match="another build"):
        apply(path, steps)
    with pytest.raises(SchemaMismatch, match="another build"):
        check(path, steps)


def test_altered_checksum_is_refused(path: Path) -> None:
    migrate(path)
    with closing(connect(path, readonly=False)) as connection:
        connection.execute("UPDATE migrations SET checksum = 'x'")
    openings: list[Callable[[], object]] = [
        lambda: open_store(path),
        lambda: open_store(path, create=True),
    ]
    for opening in openings:
        with pytest.raises(SchemaMismatch):
            opening()


@pytest.mark.parametrize("name", ["0003_gap.sql", "0001_twice.sql"])
def test_migrations_must_count_without_gaps(steps: Path, name: str) -> None:
    (steps / "0002_second.sql").rename(steps / name)
    with pytest.raises(SchemaMismatch, match="gap"):
        load(steps)


def test_failed_migration_leaves_nothing_behind(path: Path, steps: Path) -> None:
    (steps / "0002_second.sql").write_text("CREATE TABLE two (b);\nCREATE TABLE two (c);\n")
    with pytest.raises(sqlite3.OperationalError):
        apply(path, steps)
    assert schema_of(path) == []


def test_concurrent_migrations_apply_once(path: Path, steps: Path) -> None:
    barrier = threading.Barrier(4)
    applied: list[list[int] | Exception] = []

    def run() -> None:
        barrier.wait()
        try:
            applied.append(apply(path, steps))
        except Exception as error:
            applied.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    with closing(connect(path, readonly=False)) as held:
        # SQLite has no busy wait while a file changes to WAL, or back as the last connection closes.
        make_durable(held, path)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(repr, applied)) == ["[1, 2]", "[]", "[]", "[]"]
    check(path, steps)


def test_foreign_database_is_refused_and_unchanged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    openings: list[Callable[[], object]] = [
        lambda: open_store(path, create=True),
        lambda: migrate(path),
    ]
    for opening in openings:
        with pytest.raises(StoreUnusable, match="not a PiSync database"):
            opening()
    assert [name for name, _ in schema_of(path)] == ["theirs"]


def test_file_that_is_no_database_is_unusable(path: Path) -> None:
    path.write_bytes(b"not a database, by any means" * 100)
    openings: list[Callable[[], object]] = [
        lambda: open_store(path, create=True),
        lambda: migrate(path),
    ]
    for opening in openings:
        with pytest.raises(StoreUnusable, match="not a database"):
            opening()
    assert path.read_bytes().startswith(b"not a database")


def test_interrupted_first_start_is_completed(path: Path) -> None:
    with closing(connect(path, readonly=False)) as connection:
        make_durable(connection, path)
    store = open_store(path, create=True)
    asyncio.run(store.ready())
    close(store)


def test_missing_database_is_not_made_without_create(path: Path) -> None:
    openings: list[Callable[[], object]] = [lambda: open_store(path)]
    for opening in openings:
        with pytest.raises(StoreUnusable, match="there is no database"):
            opening()
    assert not path.exists()


class Weak:
    """A connection whose pragmas say something else than was asked."""

    def __init__(self, inner: Connection, answers: dict[str, object]) -> None:
        self._inner = inner
        self._answers = answers
        self.executemany = inner.executemany
        self.close = inner.close

    def execute(self, sql: str, parameters: object = (), /) -> object:
        cursor = self._inner.execute(sql, parameters)
        if sql in self._answers:
            return self._inner.execute("SELECT ?", (self._answers[sql],))
        return cursor


@pytest.mark.parametrize("answers", [{"PRAGMA journal_mode = WAL": "delete"}, {"PRAGMA synchronous": 1}])
def test_less_than_wal_and_full_is_refused(path: Path, answers: dict[str, object]) -> None:
    def weak(path: Path, *, readonly: bool) -> Connection:
        return Weak(connect(path, readonly=readonly), answers)  # type: ignore[return-value]

    with pytest.raises(StoreUnusable, match="would not survive a power cut"):
        open_store(path, create=True, connect=weak)


def test_writer_runs_on_wal_and_full(path: Path) -> None:
    made: list[Connection] = []

    def noting(path: Path, *, readonly: bool) -> Connection:
        connection = connect(path, readonly=readonly)
        made.append(connection)
        return connection

    store = open_store(path, create=True, connect=noting)
    assert made[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert made[0].execute("PRAGMA synchronous").fetchone() == (2,)
    close(store)


def test_database_is_readable_by_its_owner_only(path: Path) -> None:
    close(open_store(path, create=True))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("table", "row", "before"),
    [
        ("devices", rows.Device, []),
        ("streams", rows.Stream, []),
        ("events", rows.StoredEvent, ["id"]),
        ("event_keys", rows.EventKey, []),
        ("carried", rows.Carried, []),
        ("rejected", rows.Rejected, []),
        ("gaps", rows.Gap, []),
        ("sync_events", rows.StoredSyncEvent, []),
        ("tokens", rows.Token, []),
        ("enrollments", rows.EnrollmentCode, []),
    ],
)
def test_columns_are_the_fields_of_the_row_in_order(path: Path, table: str, row: type, before: list[str]) -> None:
    migrate(path)
    with closing(connect(path, readonly=True)) as connection:
        columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall()]
    assert columns == [*before, *row.__struct_fields__]  # type: ignore[attr-defined]
