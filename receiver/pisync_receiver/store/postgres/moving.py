"""An empty PostgreSQL filled from elsewhere, in one transaction: all of it, compared, or nothing."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import sql

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.moving import Moved
from pisync_receiver.store.postgres import schema
from pisync_receiver.store.postgres.connection import Connection, check_durable, connect, unusable
from pisync_receiver.store.writing.tables import Row

_AT_ONCE: Final = 5_000
_COUNTERS: Final = (
    "UPDATE arrival_counter SET last = setval('event_ids', (SELECT coalesce(max(id), 0) FROM events))",
    "SELECT setval('stream_numbers', coalesce((SELECT max(number) FROM streams), 0) + 1, false)",
    "SELECT setval('rejected_ids', coalesce((SELECT max(id) FROM rejected), 0) + 1, false)",
    "SELECT setval('sync_event_ids', coalesce((SELECT max(id) FROM sync_events), 0) + 1, false)",
    "SELECT setval(pg_get_serial_sequence('tokens', 'id'), coalesce((SELECT max(id) FROM tokens), 0) + 1, false)",
    "SELECT setval(pg_get_serial_sequence('enrollments', 'id'), "
    "coalesce((SELECT max(id) FROM enrollments), 0) + 1, false)",
)
"""What is given next goes on from what was moved."""


class Target:
    """A database inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def count(self, moved: Moved) -> int:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(moved.table))
        row = psycopg.Cursor(self._connection).execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def make_month(self, month: str) -> None:
        """Room for what arrived in a month, such as 2026-11."""
        self._connection.execute("SELECT make_months(($1 || '-01T00:00:00Z')::timestamptz, 1)", (month,))

    def fill(self, moved: Moved, rows: Iterator[Row], progress: Callable[[int], None]) -> None:
        """Add rows to a table; `progress` hears now and then how many are in."""
        names = sql.SQL(", ").join(map(sql.Identifier, moved.columns))
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(moved.table), names)
        with psycopg.Cursor(self._connection).copy(query) as copy:
            for number, row in enumerate(rows, 1):
                copy.write_row(row)
                if number % _AT_ONCE == 0:
                    progress(number)

    def set_counters(self) -> None:
        """Let what is given next follow on what is there."""
        for statement in _COUNTERS:
            self._connection.execute(statement)

    def rows(self, moved: Moved) -> Iterator[Row]:
        """A table's rows in the order of their keys."""
        columns = sql.SQL(", ").join(map(sql.Identifier, moved.columns))
        order = sql.SQL(", ").join(map(sql.Identifier, moved.order))
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(columns, sql.Identifier(moved.table), order)
        with psycopg.ServerCursor(self._connection, "pisync_moving") as cursor:
            cursor.itersize = _AT_ONCE
            yield from cursor.execute(query)


@contextmanager
def target(url: PostgresUrl, *, now_ms: int) -> Iterator[Target]:
    """The database at `url`, its schema made if it is empty. What the block does counts only if it does not raise."""
    with unusable(url, "filled"), connect(url) as connection:
        check_durable(connection, url)
        if schema.is_new(connection):
            schema.migrate(connection, url, now_ms=now_ms)
        schema.check(connection, url)
        with connection.transaction():
            yield Target(connection)
        connection.execute("ANALYZE")


def first_difference(one: Iterator[Row], other: Iterator[Row]) -> int | None:
    """The number of the first row, from 1, in which two tables differ; None where they are the same."""
    for number, (left, right) in enumerate(itertools.zip_longest(one, other), 1):
        if left != right:
            return number
    return None
