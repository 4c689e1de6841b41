"""A worker's transactions: on a connection that is opened when needed, and opened again when it is lost.

Everything happens inside transactions, and nothing is prepared or set for longer: PgBouncer may stand in between, in
transaction mode.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg

from pisync_receiver.errors import DatabaseUnavailable, SchemaMismatch
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import conninfo
from pisync_receiver.store.queries import queries

_AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
"""Lost, refused, timed out, stopped by an administrator, or failed over to a server that only reads."""

Row = tuple[Any, ...]


class Transaction:
    """One transaction, and the queries of `worker.sql` in it."""

    def __init__(self, connection: "psycopg.AsyncConnection[Row]") -> None:
        self._connection = connection
        self._sql: Mapping[str, Any] = queries("postgres", "worker")

    async def rows(self, query: str, /, **values: object) -> list[Row]:
        return await (await self._connection.execute(self._sql[query], values)).fetchall()

    async def row(self, query: str, /, **values: object) -> Row | None:
        return await (await self._connection.execute(self._sql[query], values)).fetchone()

    async def do(self, query: str, /, **values: object) -> None:
        await self._connection.execute(self._sql[query], values)

    async def alone(self, name: str) -> bool:
        """Whether no other worker does what `name` says until this transaction ends."""
        row = await self.row("only_one", name=f"pisync {name}")
        return row is not None and bool(row[0])


class Database:
    """Transactions, one at a time, on a connection of its own."""

    def __init__(self, url: PostgresUrl) -> None:
        self._url = url
        self._connection: psycopg.AsyncConnection[Row] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction, committed at the end of the block, taken back by an exception.

        Raises DatabaseUnavailable where PostgreSQL cannot be reached or goes away, also inside the block; whether a
        commit that broke off was made is then unknown.
        """
        try:
            connection = await self._open()
            async with connection.transaction():
                transaction = Transaction(connection)
                await transaction.do("bounds")
                yield transaction
        except _AWAY as error:
            await self.close()
            raise DatabaseUnavailable(
                f"PostgreSQL is away ({type(error).__name__}); what was not committed is done again when it is back"
            ) from error
        except BaseException:
            if self._connection is not None and self._connection.closed:
                self._connection = None
            raise

    async def check(self) -> None:
        """Raises SchemaMismatch unless a worker's tables are there, DatabaseUnavailable."""
        async with self.transaction() as transaction:
            row = await transaction.row("schema")
        if row is None or not row[0]:
            raise SchemaMismatch(
                "the database lacks what a worker needs; nothing was changed. Run: pisync-receiver migrate"
            )

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> "psycopg.AsyncConnection[Row]":
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                conninfo(self._url), autocommit=True, prepare_threshold=None
            )
        return self._connection
