"""Writing on the event loop: the code is the one that blocks; where it would wait for the server, the loop goes on.

It runs in a greenlet, which is left when there is something to wait for and entered again with what came of it, as
SQLAlchemy's asyncio extension does it. A thread would do the same work at a quarter more processor time for each
request: it and the loop would keep taking the interpreter from each other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from pisync_receiver.errors import MissingExtra
from pisync_receiver.store.postgres.connection import AsyncConnection, AsyncPool
from pisync_receiver.store.postgres.silence import cut

try:
    from greenlet import getcurrent, greenlet
    from psycopg import AsyncCursor
    from psycopg.pq.abc import PGconn
except ImportError as error:
    raise MissingExtra("postgres", error) from error

P = ParamSpec("P")
T = TypeVar("T")


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises. What it hands to `wait_for` is awaited here, by the task that awaits this."""
    inside = greenlet(function)
    given = inside.switch(*args, **kwargs)
    while not inside.dead:
        try:
            result = await given
        except BaseException as error:
            given = inside.throw(error)
        else:
            given = inside.switch(result)
    returned: T = given
    return returned


def wait_for(awaitable: Awaitable[T]) -> T:
    """Its result; only in code that `run` runs, and on the event loop's own thread."""
    outside = getcurrent().parent
    assert outside is not None, "only code that `run` runs can wait like this"
    result: T = outside.switch(awaitable)
    return result


def sleep(seconds: float) -> None:
    """`time.sleep`, in code that `run` runs."""
    wait_for(asyncio.sleep(seconds))


class LoopPool:
    """Connections in code that `run` runs; the pool is opened when the first is asked for."""

    def __init__(self, make: Callable[[], AsyncPool], *, silence_s: float) -> None:
        """A connection whose server does not answer for `silence_s` is cut."""
        self._make = make
        self._silence_s = silence_s
        self._pool: AsyncPool | None = None

    @property
    def pool(self) -> AsyncPool | None:
        """The pool while it is open."""
        return self._pool

    @contextmanager
    def connection(self) -> "Iterator[LoopConnection]":
        """Lend one. Raises PoolTimeout, PoolClosed, TooManyRequests."""
        if (pool := self._pool) is None:
            pool = self._make()
            wait_for(pool.open())
            self._pool = pool
        lent = wait_for(pool.getconn())
        try:
            yield LoopConnection(lent, self._silence_s)
        finally:
            wait_for(pool.putconn(lent))

    async def close(self) -> None:
        """On the event loop that used it, when nothing is lent; the next that is asked for opens it again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()


class LoopConnection:
    """What writing uses of a connection."""

    def __init__(self, connection: AsyncConnection, silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s

    @property
    def closed(self) -> bool:
        return self._connection.closed

    @property
    def pgconn(self) -> PGconn:
        return self._connection.pgconn

    def execute(self, query: str | bytes, params: Sequence[Any] | None = None, /) -> "LoopCursor":
        return LoopCursor(wait_for(self._answer(query, params)))

    def close(self) -> None:
        wait_for(self._connection.close())

    async def _answer(self, query: str | bytes, params: Sequence[Any] | None) -> "AsyncCursor[tuple[Any, ...]]":
        timer = asyncio.get_running_loop().call_later(self._silence_s, cut, self)
        try:
            return await self._connection.execute(query, params)
        finally:
            timer.cancel()


class LoopCursor:
    """What writing uses of a cursor."""

    def __init__(self, cursor: AsyncCursor[tuple[Any, ...]]) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def rownumber(self) -> int | None:
        return self._cursor.rownumber

    def fetchone(self) -> tuple[Any, ...] | None:
        return wait_for(self._cursor.fetchone())

    def fetchall(self) -> list[tuple[Any, ...]]:
        return wait_for(self._cursor.fetchall())

    def nextset(self) -> bool | None:
        return self._cursor.nextset()
