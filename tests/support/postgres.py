"""PostgreSQL for tests: a database of its own for each test, on the server that answers, dropped afterwards."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec

import psycopg

from pisync_common.models import Receipt
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import EventBatch, Submission, SyncEvent
from pisync_receiver.store.postgres import PostgresStore, PostgresUrl, migrate
from tests.support.blocking import every_event
from tests.support.services import needs

P = ParamSpec("P")

SERVER: Final = os.environ.get("PISYNC_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A role on it may create databases."""

_numbers = itertools.count(1)


needs_postgres = needs(
    "PostgreSQL",
    "PISYNC_TEST_POSTGRES",
    lambda: psycopg.connect(SERVER, connect_timeout=2).close(),
    psycopg.OperationalError,
)


@contextmanager
def fresh_database(template: str | None = None) -> Iterator[str]:
    """The URL of an empty database (or a copy of another), dropped at the end with its connections."""
    name = f"pisync_test_{os.getpid()}_{next(_numbers)}"
    source = "" if template is None else f" TEMPLATE {template.rpartition('/')[2]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}{source}".encode())
    try:
        yield f"{SERVER.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(SERVER, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def run(url: str, statement: str) -> list[Any]:
    """Execute it in a transaction of its own; return its rows, if it gives any."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def empty(url: str) -> None:
    """Delete every row of a migrated database, as if it had just been made."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'public' AND c.relkind = 'r' "
            "AND c.relname NOT IN ('migrations', 'arrival_counter', 'pulse')"
        ).fetchall()
        connection.execute("ALTER TABLE audit DISABLE TRIGGER USER")
        for (table,) in tables:
            connection.execute(f"DELETE FROM {table}".encode())
        connection.execute("ALTER TABLE audit ENABLE TRIGGER USER")
        connection.execute("UPDATE arrival_counter SET last = 0")


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresStore]:
    """A store on a database whose schema is made if it is missing."""
    address = PostgresUrl(conninfo=url)
    await migrate(address)
    store = PostgresStore(address, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def written(store: PostgresStore, submission: Submission) -> Any:
    """Write a submission alone; return its outcome, raised if it is an exception."""
    (outcome,) = await store.write([submission])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def send(store: PostgresStore, submission: EventBatch) -> Receipt:
    outcome = await written(store, submission)
    assert isinstance(outcome, Receipt)
    return outcome


async def sync(store: PostgresStore, submission: SyncEvent) -> StoredSyncEvent:
    outcome = await written(store, submission)
    assert isinstance(outcome, StoredSyncEvent)
    return outcome


async def stored_seqs(store: PostgresStore, *, device: str = "pibook-1") -> list[int]:
    return sorted(record.seq for record in await every_event(store, EventFilter(device_id=device)))


async def history_ids(store: PostgresStore, *, device: str = "pibook-1") -> list[int]:
    """The ids of a device's sync events, the newest first."""
    return [record.id for record in (await store.history(device, limit=100_000)).rows]
