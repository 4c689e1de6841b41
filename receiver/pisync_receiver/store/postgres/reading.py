"""The queries on PostgreSQL, over a pool of connections."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import PATIENCE_S, Connection, Pool, make_pool, unusable
from pisync_receiver.store.postgres.silence import Watchdog
from pisync_receiver.store.queries import queries
from pisync_receiver.store.reading import Queries
from pisync_receiver.store.writing.tables import Row, Select, Values

SILENCE_S: Final = 60.0
"""How long a query may take: longer than any takes on a server that answers."""


class PostgresReader(Queries):
    """`store.Reader` says what each query means."""

    def __init__(
        self, url: PostgresUrl, *, readers: int = 1, wait_s: float = PATIENCE_S, silence_s: float = SILENCE_S
    ) -> None:
        """Over up to so many connections; a query waits `wait_s` for one, and `silence_s` for its answer."""
        self.url = url
        self._watchdog = Watchdog(silence_s)
        self._readers = make_pool(url, name="readers", size=readers, wait_s=wait_s, check=self._check)
        self._readers.open()
        self._sql = queries("postgres", "queries")

    def close(self) -> None:
        self._readers.close()

    @contextmanager
    def _lend(self) -> Iterator[Select]:
        with unusable(self.url, "read"), self._readers.connection() as connection, self._watchdog.over(connection):
            yield self._select(connection)

    @contextmanager
    def _snapshot(self) -> Iterator[Select]:
        with (
            unusable(self.url, "read"),
            self._readers.connection() as connection,
            self._watchdog.over(connection),
            connection.transaction(),
        ):
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield self._select(connection)

    def _check(self, connection: Connection) -> None:
        """Whether a connection is there still, before it is lent: a query is not tried again over another."""
        with self._watchdog.over(connection):
            Pool.check_connection(connection)

    def _select(self, connection: Connection) -> Select:
        def select(query: str, values: Values) -> list[Row]:
            return psycopg.Cursor(connection).execute(self._sql[query], values).fetchall()

        return select
