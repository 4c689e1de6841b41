"""Versions of the file."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox import database
from pisync_agent.outbox.database import queries
from pisync_common.sqlite import connect
from tests.support.outboxes import bodies, events, opened, seqs

NEXT = "-- A made-up next version.\nALTER TABLE events ADD COLUMN colour TEXT;\nPRAGMA user_version = 2;\n"


def test_migrations_are_numbered_without_gaps_and_say_their_number() -> None:
    assert list(database.migrations()) == list(range(1, max(database.migrations()) + 1))
    for number, script in database.migrations().items():
        assert script.rstrip().endswith(f"PRAGMA user_version = {number};")


def test_a_new_file_has_the_latest_version(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert database.version(outbox._file.connection) == max(database.migrations())
    outbox.close()


def test_a_file_of_the_previous_version_is_migrated_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(5))
    before, stream = bodies(outbox), outbox.stream
    outbox.close()
    newer = {**database.migrations(), max(database.migrations()) + 1: NEXT}
    monkeypatch.setattr(database, "migrations", lambda: newer)
    outbox = opened(tmp_path)
    assert database.version(outbox._file.connection) == 2
    assert (bodies(outbox), outbox.stream) == (before, stream)
    assert outbox.append(events(1)) == [6]
    outbox.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(2))
    outbox.close()
    half = NEXT.replace("PRAGMA", "INSERT INTO nowhere VALUES (1);\nPRAGMA")
    with monkeypatch.context() as patch, closing(connect(tmp_path / "outbox.db", readonly=False)) as connection:
        patch.setattr(database, "migrations", lambda: {1: "", 2: half})
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            database.migrate(connection, tmp_path)
        assert database.version(connection) == 1
    outbox = opened(tmp_path)
    assert seqs(outbox) == [1, 2]
    outbox.close()


def test_a_newer_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnusable, match="newer PiSync"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.glob("*broken*")] == []


def test_an_interrupted_creation_is_finished(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "outbox.db", readonly=False)) as connection:
        database.migrate(connection, tmp_path)
    outbox = opened(tmp_path)
    assert outbox.append(events(1)) == [1]
    assert outbox.state().salvaged == ()
    outbox.close()


def test_every_query_compiles_and_uses_an_index(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for name, sql in queries().items():
        holes = [None] * max(sql.count("?"), sql.count("?1"))
        if "?1" in sql:
            holes = [None, None]
        plan = outbox._file.connection.execute("EXPLAIN QUERY PLAN " + sql, holes).fetchall()
        scans = [row[3] for row in plan if row[3].startswith("SCAN events")]
        assert not scans or "LIMIT 1" in sql, f"{name}: {scans}"
    outbox.close()
