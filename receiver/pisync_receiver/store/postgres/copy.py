"""An empty PostgreSQL filled in one transaction, for `store.copy`."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import schema
from pisync_receiver.store.postgres.connection import Connection, check_durable, connect, unusable

Row = tuple[Any, ...]

_AT_ONCE: Final = 5_000
_COUNTERS: Final = {"sync_events": "sync_event_ids"} | {
    table: f"{table}_id_seq" for table in ("tokens", "enrollments", "transitions", "notices", "notes", "sum_additions")
}
"""The sequence that numbers a table's rows."""


class Target:
    """A database inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def is_empty(self, tables: Iterable[str]) -> bool:
        for table in tables:
            query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table))
            if await (await self._connection.execute(query)).fetchone() is not None:
                return False
        return True

    async def fill(self, table: str, columns: Sequence[str], rows: Iterator[Row]) -> None:
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), _names(columns))
        async with self._connection.cursor().copy(query) as copy:
            for row in rows:
                await copy.write_row(row)

    async def rows(self, table: str, columns: Sequence[str], order: str) -> AsyncIterator[Row]:
        """Read a table in the order of its key."""
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
            _names(columns), sql.Identifier(table), _names(order.split(", "))
        )
        async with psycopg.AsyncServerCursor(self._connection, "pisync_copy") as cursor:
            cursor.itersize = _AT_ONCE
            await cursor.execute(query)
            async for row in cursor:
                yield row

    async def set_counters(self, last_event: int, last_ids: Mapping[str, int]) -> None:
        """Continue every numbering where the source stopped."""
        await self._connection.execute("UPDATE arrival_counter SET last = %s", (last_event,))
        for table, sequence in _COUNTERS.items():
            last = last_ids.get(table, 0)
            await self._connection.execute("SELECT setval(%s, greatest(%s, 1), %s > 0)", (sequence, last, last))


@asynccontextmanager
async def open_target(url: PostgresUrl, *, now_ms: int) -> AsyncIterator[Target]:
    """The database at `url`, its schema made if it is empty. What the block does counts only if it does not raise."""
    with unusable(url, "fill"):
        async with connect(url) as connection:
            await check_durable(connection, url)
            if await schema.is_new(connection):
                await schema.migrate(connection, url, now_ms=now_ms)
            await schema.check(connection, url)
            async with connection.transaction():
                yield Target(connection)
            await connection.execute("ANALYZE")


def _names(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
