"""A separate PostgreSQL database for each test, with the receiver's schema, filled the way its commits fill it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

from pisync_receiver import store
from tests.support.postgres import fresh_database

_MIGRATIONS: Final = Path(store.__file__).parent / "postgres" / "migrations"

_EVENT: Final = """
INSERT INTO events (device_id, stream, seq, site, id, type, learner_home, learner_id, event_id, occurred_at,
                    clock_synced, data, received_ms, best_ms, quality, content)
VALUES (%s, %s, %s, %s, %s, 'video.watched', 'Nakuru', 's-17', 'e-1', '2026-11-23T08:12:09.120Z',
        true, %s, %s, %s, 0, '')
"""


class WorkerDatabase:
    """`url` is its address. Every call is a separate transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True)

    @property
    def server(self) -> tuple[str, int, str]:
        """Return host, port and user."""
        info = self._connection.info
        return info.host, info.port, info.user

    def through(self, port: int) -> str:
        """Return its address behind a proxy on this port."""
        parts = urlsplit(self.url)
        user = parts.netloc.rpartition("@")[0] or self.server[2]
        return parts._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    def close(self) -> None:
        self._connection.close()

    def rows(self, query: str, *values: object) -> list[Any]:
        with self._connection.transaction():
            cursor = self._connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *values: object) -> Any:
        ((value,),) = self.rows(query, *values)
        return value

    def device(self, device_id: str, site: str | None = None) -> None:
        self.rows("INSERT INTO devices (device_id, site) VALUES (%s, %s) ON CONFLICT DO NOTHING", device_id, site)

    def add_events(
        self, events: Sequence[tuple[str, str, int]], *, data: str = '{"n": 1}', site: str | None = None
    ) -> list[int]:
        """Store (device, stream, seq) in this order in one commit; return their ids."""
        now = time.time_ns() // 1_000_000
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("UPDATE arrival_counter SET last = last + %s RETURNING last", (len(events),))
            row = cursor.fetchone()
            assert row is not None
            ids = list(range(row[0] - len(events) + 1, row[0] + 1))
            rows = [(*event, site, number, data, now, now) for event, number in zip(events, ids, strict=True)]
            cursor.executemany(_EVENT, rows)
        return ids

    def position(self, consumer: str) -> int | None:
        rows = self.rows("SELECT event_id FROM positions WHERE consumer = %s", consumer)
        return None if not rows else int(rows[0][0])


@contextmanager
def database_with_schema() -> Iterator[str]:
    """Give the URL of a template database."""
    with fresh_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            for file in sorted(_MIGRATIONS.glob("*.sql")):
                connection.execute(file.read_bytes())
        yield url


@contextmanager
def copy_of(template: str) -> Iterator[WorkerDatabase]:
    """A fresh database; dropped at the end, open connections included."""
    with fresh_database(template) as url:
        database = WorkerDatabase(url)
        try:
            yield database
        finally:
            database.close()
