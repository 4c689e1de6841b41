"""The databases alone, as durable as PiSync makes them, given the very rows that a receiver stored."""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

GROUP: Final = 500
"""Rows in a transaction."""


def durable(path: Path | str) -> sqlite3.Connection:
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


class SameRows(Protocol):
    """A second table of events with the same indexes."""

    def load(self) -> int:
        """Read the rows that the receiver stored since the last call; return their number."""
        ...

    def rate(self) -> float:
        """Insert them, in transactions of `GROUP`; return rows a second."""
        ...

    def close(self) -> None: ...


class SqliteRows:
    """In a file of its own."""

    def __init__(self, source: str, path: str) -> None:
        self._source = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
        self._connection = durable(path)
        statements = "SELECT sql FROM sqlite_master WHERE tbl_name = 'events' AND sql IS NOT NULL ORDER BY type DESC"
        for (statement,) in self._source.execute(statements):
            self._connection.execute(statement)
        self._rows: list[tuple[Any, ...]] = []
        self._seen = 0

    def load(self) -> int:
        self._rows = self._source.execute("SELECT * FROM events WHERE id > ? ORDER BY id", (self._seen,)).fetchall()
        self._seen += len(self._rows)
        return len(self._rows)

    def rate(self) -> float:
        insert = f"INSERT INTO events VALUES ({','.join('?' * len(self._rows[0]))})"
        start = time.perf_counter()
        for first in range(0, len(self._rows), GROUP):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(insert, self._rows[first : first + GROUP])
            self._connection.execute("COMMIT")
        return len(self._rows) / (time.perf_counter() - start)

    def close(self) -> None:
        self._source.close()
        self._connection.close()


class PostgresRows:
    """In a schema of the same database; each transaction is one statement with its rows as JSON."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE SCHEMA bare")
        self._connection.execute("CREATE TABLE bare.events (LIKE public.events INCLUDING ALL)")
        self._groups: list[str] = []
        self._seen = 0

    def load(self) -> int:
        rows = self._connection.execute(
            "SELECT json_agg(e ORDER BY id)::text, count(*) FROM public.events e WHERE id > %s "
            "GROUP BY (id - 1) / %s ORDER BY min(id)",
            (self._seen, GROUP),
        ).fetchall()
        self._groups = [text for text, _ in rows]
        count = sum(int(count) for _, count in rows)
        self._seen += count
        return count

    def rate(self) -> float:
        insert = "INSERT INTO bare.events SELECT * FROM json_populate_recordset(NULL::bare.events, %s::json)"
        before = self._count()
        start = time.perf_counter()
        for group in self._groups:
            self._connection.execute(insert, (group,))
        seconds = time.perf_counter() - start
        return (self._count() - before) / seconds

    def _count(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM bare.events").fetchone() or (0,)
        return int(count)

    def close(self) -> None:
        self._connection.close()
