"""The queries on SQLite, over read-only connections."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pisync_receiver.store.queries import queries
from pisync_receiver.store.reading import Queries
from pisync_receiver.store.sqlite.connection import Connect, Connection
from pisync_receiver.store.sqlite.pool import Readers
from pisync_receiver.store.writing.tables import Row, Select, Values


class SqliteReader(Queries):
    """Read-only. `store.Reader` says what each query means."""

    def __init__(self, path: Path, connect: Connect) -> None:
        self.path = path
        self._readers = Readers(path, connect)
        self._sql = queries("sqlite", "queries")

    def close(self) -> None:
        self._readers.close()

    @contextmanager
    def _lend(self) -> Iterator[Select]:
        with self._readers.lend() as connection:
            yield self._select(connection)

    @contextmanager
    def _snapshot(self) -> Iterator[Select]:
        with self._readers.snapshot() as connection:
            yield self._select(connection)

    def _select(self, connection: Connection) -> Select:
        def select(query: str, values: Values) -> list[Row]:
            given = {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}
            return connection.execute(self._sql[query], given).fetchall()

        return select
