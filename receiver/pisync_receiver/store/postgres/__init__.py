"""The store on PostgreSQL: any number of receivers write one database, each over a few connections.

`open_store` is for receivers and commands alike; nobody holds a lock beyond one transaction.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from pisync_common.times import now_ms
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import on_loop, schema
from pisync_receiver.store.postgres.connection import (
    PATIENCE_S,
    async_pool,
    check_durable,
    connect,
    in_use,
    make_pool,
    reason,
    unusable,
)
from pisync_receiver.store.postgres.on_loop import LoopPool
from pisync_receiver.store.postgres.reading import SILENCE_S, PostgresReader
from pisync_receiver.store.postgres.writing import Writer
from pisync_receiver.store.types import Outcome, Submission

__all__ = ["PostgresStore", "PostgresUrl", "identity", "migrate", "open_reader", "open_store"]

log = logging.getLogger(__name__)

WRITERS: Final = 2
READERS: Final = 4


class PostgresStore(PostgresReader):
    """`store.LoopStore` says what each call means. `write` may be called from several threads at once."""

    def __init__(
        self,
        url: PostgresUrl,
        *,
        writers: int = WRITERS,
        readers: int = READERS,
        patience_s: float = PATIENCE_S,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(url, readers=readers, wait_s=patience_s, silence_s=silence_s)
        self.writers = writers
        # Opened when it is used, since it brings threads: by commands, which run no event loop.
        self._blocking_pool = make_pool(url, name="blocking writers", size=writers, wait_s=patience_s)
        make_async_pool = partial(async_pool, url, name="writers", size=writers, wait_s=patience_s)
        self._loop_pool = LoopPool(make_async_pool, silence_s=2 * patience_s)
        writer = partial(Writer, url=url, patience_s=patience_s, timeout_ms=round(patience_s * 1000), clock=clock)
        self._blocking = writer(self._blocking_pool, sleep=sleep or time.sleep)
        self._on_loop = writer(self._loop_pool, sleep=sleep or on_loop.sleep)

    def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        self._blocking_pool.open()
        return self._write(self._blocking, submissions)

    async def awrite(self, submissions: Sequence[Submission]) -> list[Outcome]:
        return await on_loop.run(self._write, self._on_loop, submissions)

    def ready(self) -> None:
        self._blocking_pool.open()
        self._blocking.beat()

    async def aready(self) -> None:
        await on_loop.run(self._on_loop.beat)

    def connections(self) -> Mapping[str, tuple[int, int]]:
        return {"readers": in_use(self._readers), "writers": in_use(self._loop_pool.pool or self._blocking_pool)}

    async def aclose(self) -> None:
        await self._loop_pool.close()

    def close(self) -> None:
        super().close()
        self._blocking_pool.close()

    def _write(self, writer: Writer, submissions: Sequence[Submission]) -> list[Outcome]:
        until = writer.deadline()
        try:
            return writer.write(submissions, until)
        except StoreUnusable as error:
            return [error] * len(submissions)
        except Exception as error:
            if len(submissions) == 1:
                return [self._failure(error)]
            # One of them says what the server does not take: each by itself, so that it spoils no other.
            return [self._write_alone(writer, submission, until) for submission in submissions]

    def _write_alone(self, writer: Writer, submission: Submission, until: float) -> Outcome:
        try:
            return writer.write([submission], until)[0]
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, StoreUnusable):
            return error
        failure = StoreUnusable(f"{self.url} cannot be written: {reason(error)}")
        failure.__cause__ = error
        return failure


def open_store(
    url: PostgresUrl,
    *,
    create: bool = False,
    writers: int = WRITERS,
    now_ms: Callable[[], int] = now_ms,
) -> PostgresStore:
    """Open the database. `create` makes the schema in one that is empty.

    Raises SchemaMismatch for a schema that is not this program's, StoreUnusable if it cannot be reached or a commit
    would not survive a power cut.
    """
    with unusable(url, "opened"), connect(url) as connection:
        check_durable(connection, url)
        if create and schema.is_new(connection):
            schema.migrate(connection, url, now_ms=now_ms())
        schema.check(connection, url)
        log.info("opened %s with PostgreSQL %s", url, connection.info.server_version)
    return PostgresStore(url, writers=writers)


def open_reader(url: PostgresUrl) -> PostgresReader:
    """Open the database for queries alone. Raises as `open_store`."""
    with unusable(url, "opened"), connect(url) as connection:
        schema.check(connection, url)
    return PostgresReader(url)


def identity(url: PostgresUrl) -> str:
    """The cluster's own number (a standby has the same) and the database's. Raises StoreUnusable."""
    with unusable(url, "asked who it is"), connect(url) as connection:
        row = connection.execute(
            "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "FROM pg_control_system()"
        ).fetchone()
    assert row is not None
    return f"{row[0]}-{row[1]}"


def migrate(url: PostgresUrl, *, now_ms: Callable[[], int] = now_ms) -> list[str]:
    """Bring the schema up, making it in an empty database; return what was applied. Safe to repeat, and at once.

    Raises SchemaMismatch for a database of a newer program or another build, changing nothing.
    """
    with unusable(url, "migrated"), connect(url) as connection:
        applied = schema.migrate(connection, url, now_ms=now_ms())
        return [f"{migration.number:04d}_{migration.name}" for migration in applied]
