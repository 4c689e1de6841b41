"""SQLite alone, as durable as PiSync is: WAL + FULL."""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[Any]]


def durable(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    connection.execute("PRAGMA synchronous = FULL")
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    return connection


class OneRowCommits:
    """Events inserted one by one, each with its own commit."""

    def __init__(self, path: Path) -> None:
        self._connection = durable(path)
        self._connection.execute("CREATE TABLE event (seq INTEGER PRIMARY KEY, body TEXT NOT NULL)")

    def rate(self, bodies: Sequence[str]) -> float:
        """Commits a second."""
        start = time.perf_counter()
        for body in bodies:
            self._connection.execute("INSERT INTO event (body) VALUES (?)", (body,))
        return len(bodies) / (time.perf_counter() - start)

    def close(self) -> None:
        self._connection.close()


class SameRows:
    """A table of another database, its indexes included, filled with the very same rows in transactions of 500."""

    def __init__(self, source: Path, table: str, path: Path) -> None:
        self._source = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
        self._table = table
        self._seen = 0
        self._connection = durable(path)
        for (statement,) in self._source.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type DESC", (table,)
        ):
            self._connection.execute(statement)

    def new_rows(self) -> Rows:
        """What was added since the last call, complete."""
        query = f"SELECT rowid, * FROM {self._table} WHERE rowid > ? ORDER BY rowid"
        rows = self._source.execute(query, (self._seen,)).fetchall()
        self._seen = rows[-1][0] if rows else self._seen
        return [row[1:] for row in rows]

    def rate(self, rows: Rows, *, group: int = 500) -> float:
        """Rows a second."""
        insert = f"INSERT INTO {self._table} VALUES ({','.join('?' * len(rows[0]))})"
        start = time.perf_counter()
        for at in range(0, len(rows), group):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(insert, rows[at : at + group])
            self._connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)

    def close(self) -> None:
        self._source.close()
        self._connection.close()
