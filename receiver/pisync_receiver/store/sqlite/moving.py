"""A database file read from end to end, table by table, for a move to another engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pisync_receiver.store.moving import Moved
from pisync_receiver.store.sqlite import schema
from pisync_receiver.store.sqlite.connection import Connection, connect, unusable
from pisync_receiver.store.writing.tables import Row

_MONTHS = (
    "SELECT DISTINCT strftime('%Y-%m', received_ms / 1000, 'unixepoch') FROM "
    "(SELECT received_ms FROM events UNION ALL SELECT received_ms FROM sync_events)"
)
_SWITCHED = {"clock_synced"}


class Source:
    """One moment of a database file. Rows come one by one."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self.path = path
        self._connection = connection

    def count(self, moved: Moved) -> int:
        (count,) = self._connection.execute(f"SELECT count(*) FROM {moved.table}").fetchone()  # noqa: S608 - names of our own
        return int(count)

    def rows(self, moved: Moved) -> Iterator[Row]:
        """A table's rows in the order of their keys, as PostgreSQL is to have them."""
        switched = [place for place, name in enumerate(moved.columns) if name in _SWITCHED]
        order = ", ".join(moved.there[moved.columns.index(name)] for name in moved.order)
        query = f"SELECT {', '.join(moved.there)} FROM {moved.source} ORDER BY {order}"  # noqa: S608 - names of our own
        for row in self._connection.execute(query):
            yield _switched(row, switched) if switched else row

    def months(self) -> list[str]:
        """The months in which anything arrived, such as 2026-11."""
        return sorted(month for (month,) in self._connection.execute(_MONTHS).fetchall() if month is not None)


def _switched(row: Row, places: list[int]) -> Row:
    """0 and 1 as a boolean, at some places."""
    return tuple(bool(value) if place in places else value for place, value in enumerate(row))


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """The database at `path`, inside the block. Raises StoreUnusable, SchemaMismatch."""
    with unusable(path, "read"):
        connection = connect(path, readonly=True)
        try:
            schema.check(connection, path)
            connection.execute("BEGIN")
            yield Source(path, connection)
        finally:
            connection.close()
