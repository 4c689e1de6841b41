"""The queries on PostgreSQL, over a pool of connections."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import Connection, Pool, unusable
from pisync_receiver.store.queries import queries
from pisync_receiver.store.reading import Queries
from pisync_receiver.store.writing.tables import Row, Select, Values


class PostgresReader(Queries):
    """`store.Reader` says what each query means."""

    def __init__(self, url: PostgresUrl, readers: Pool) -> None:
        self.url = url
        self._readers = readers
        readers.open()
        self._sql = queries("postgres", "queries")

    def close(self) -> None:
        self._readers.close()

    @contextmanager
    def _lend(self) -> Iterator[Select]:
        with unusable(self.url, "read"), self._readers.connection() as connection:
            yield self._select(connection)

    @contextmanager
    def _snapshot(self) -> Iterator[Select]:
        with unusable(self.url, "read"), self._readers.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield self._select(connection)

    def _select(self, connection: Connection) -> Select:
        def select(query: str, values: Values) -> list[Row]:
            return psycopg.Cursor(connection).execute(self._sql[query], values).fetchall()

        return select
