"""SQLite plumbing of both sides: durable settings, transactions, scripts and named queries."""

import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pisync_common.errors import NotDurable
from pisync_common.queries import load_queries
from pisync_common.sqlite import Cursor, connect, make_durable, statements, transaction


def test_a_private_file_is_its_owners_alone_and_pragmas_hold(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c.db"
    connection = connect(path, readonly=False, private=True, pragmas=["cache_size = -1024"])
    connection.execute("CREATE TABLE t (x)")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert connection.execute("PRAGMA cache_size").fetchone() == (-1024,)
    assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
    connection.close()


def test_a_reader_cannot_write_and_does_not_create(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        connect(tmp_path / "none.db", readonly=True)
    connect(tmp_path / "some.db", readonly=False).close()
    reader = connect(tmp_path / "some.db", readonly=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("CREATE TABLE t (x)")
    reader.close()


def test_durable_settings_are_read_back(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", readonly=False)
    make_durable(connection, tmp_path / "a.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


class Without:
    """A connection whose file system lacks something: `refused` statements do nothing."""

    def __init__(self, connection: sqlite3.Connection, refused: str) -> None:
        self._connection = connection
        self._refused = refused

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        return self._connection.execute("PRAGMA " + sql.split()[1] if self._refused in sql else sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        return self._connection.executemany(sql, parameters)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("refused", ["journal_mode = WAL", "synchronous = FULL"])
def test_a_file_without_durable_commits_is_refused(tmp_path: Path, refused: str) -> None:
    connection = connect(tmp_path / "a.db", readonly=False, pragmas=["synchronous = OFF"])
    with pytest.raises(NotDurable, match=r"a\.db: commits would not survive a power cut"):
        make_durable(Without(connection, refused), tmp_path / "a.db")
    connection.close()


def test_a_transaction_commits_everything_or_nothing(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db", readonly=False)
    connection.execute("CREATE TABLE t (x UNIQUE)")
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (1)")
    for last, error in (("INSERT INTO t VALUES (1)", sqlite3.IntegrityError), ("ROLLBACK", KeyError)):
        with pytest.raises(error):
            _insert_and_fail(connection, last)
    assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]
    connection.close()


def _insert_and_fail(connection: sqlite3.Connection, last: str) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute(last)  # for some errors SQLite itself rolls back
        raise KeyError


def test_a_script_is_split_into_statements_with_triggers_whole() -> None:
    trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN\n  DELETE FROM t;\n  SELECT 1;\nEND;"
    assert list(statements(f"CREATE TABLE t (x);\n{trigger}\nSELECT 1")) == [
        "CREATE TABLE t (x);",
        trigger,
        "SELECT 1",
    ]


def test_queries_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "some.sql"
    file.write_text("-- name: one\n-- The first.\nSELECT 1;\n\n-- name: two\n-- The second\n-- of two.\nSELECT\n  2;\n")
    assert load_queries(file) == {"one": "SELECT 1;", "two": "SELECT\n  2;"}
