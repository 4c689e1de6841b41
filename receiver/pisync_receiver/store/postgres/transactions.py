"""Transactions of background tasks, on one connection that is opened when needed and replaced when lost.

Every statement runs inside a transaction and nothing is prepared or set beyond it, so PgBouncer may stand in between in
transaction mode.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from pisync_common.queries import load_queries
from pisync_receiver.errors import DatabaseUnavailable, SchemaMismatch
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import Connection, abort, conninfo

_UNAVAILABLE: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
"""Lost, refused, timed out, stopped by an administrator, or failed over to a server that only reads."""

_ANSWER_SECONDS: Final = 45.0
"""How long a statement may take to be answered; above the server's own limit, which `begin` in worker.sql sets."""

_SQL: Final = Path(__file__).parent / "sql/worker.sql"

Row = tuple[Any, ...]


class Transaction:
    """One transaction, and the queries of `worker.sql` in it."""

    def __init__(self, connection: Connection, answer_seconds: float) -> None:
        self._connection = connection
        self._answer_seconds = answer_seconds
        self._sql: Mapping[str, Any] = load_queries(_SQL)

    async def rows(self, query: str, /, **values: object) -> list[Row]:
        # A server that keeps the connection and says nothing ends no wait; cutting the connection does.
        timer = asyncio.get_running_loop().call_later(self._answer_seconds, abort, self._connection)
        try:
            cursor = await self._connection.execute(self._sql[query], values or None)
            return await cursor.fetchall() if cursor.description else []
        finally:
            timer.cancel()

    async def row(self, query: str, /, **values: object) -> Row | None:
        rows = await self.rows(query, **values)
        return rows[0] if rows else None


class Database:
    """Transactions on a connection of its own; each waits for its turn."""

    def __init__(self, url: PostgresUrl, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._url = url
        self._answer_seconds = answer_seconds
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit at the end of the block; roll back, by closing the connection, if the block raises.

        Raises SchemaMismatch if the database lacks tables, and DatabaseUnavailable if PostgreSQL cannot be reached or
        is lost, also inside the block. Whether a commit that was cut off took effect is then unknown.
        """
        async with self._turn:
            try:
                transaction = Transaction(await self._open(), self._answer_seconds)
                await transaction.rows("begin")
                yield transaction
                await transaction.rows("commit")
            except BaseException as error:
                await self.close()
                if isinstance(error, psycopg.errors.UndefinedTable):
                    raise SchemaMismatch(
                        "the database lacks tables; nothing was changed. Run: pisync-receiver migrate"
                    ) from error
                if isinstance(error, _UNAVAILABLE):
                    raise DatabaseUnavailable(
                        f"PostgreSQL is unavailable ({type(error).__name__}); uncommitted work is repeated later"
                    ) from error
                raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                conninfo(self._url), autocommit=True, prepare_threshold=None
            )
        return self._connection
