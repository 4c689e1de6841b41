"""Connections to PostgreSQL: pools that renew them, a bound on silent servers, and what makes a commit durable.

No session state is relied on and nothing is prepared on the server, so that PgBouncer may stand in between in
transaction mode. Text is UTF-8, whatever the address, the role or the database says.
"""

import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import SimpleNamespace
from typing import Any, Final

from pisync_common.limits import MIB
from pisync_receiver.errors import MissingExtra, StoreUnusable
from pisync_receiver.store.address import PostgresUrl

try:
    import psycopg
    from psycopg.adapt import AdaptersMap, Buffer, Loader
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
except ImportError as error:
    raise MissingExtra("postgres", error) from error

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

LOST: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
)
"""The server, or the way to it, is unavailable or out of resources; a new connection may help."""

_DURABLE: Final = ("on", "local", "remote_write", "remote_apply")
_CONNECT_S: Final = 5
_LARGE: Final = 8 * MIB
"""A table so small is read fast with any plan."""

log = logging.getLogger(__name__)


class _NumericLoader(Loader):
    """Load a numeric as it was sent: as an int if it has no decimals."""

    def load(self, data: Buffer) -> float:
        text = bytes(data)
        return float(text) if b"." in text else int(text)


def make_pool(url: PostgresUrl, *, name: str, size: int, wait_s: float) -> Pool:
    """Return a pool of up to `size` connections, not yet open; a caller waits up to `wait_s` for one."""
    return AsyncConnectionPool(
        conninfo(url),
        connection_class=psycopg.AsyncConnection[tuple[Any, ...]],
        kwargs=_options(),
        open=False,
        min_size=1,
        max_size=size,
        timeout=wait_s,
        reconnect_timeout=wait_s,
        max_lifetime=3600,
        name=f"pisync {name}",
    )


@asynccontextmanager
async def connect(url: PostgresUrl) -> AsyncIterator[Connection]:
    """Open one connection, in which each statement commits, for the block. Raises StoreUnusable."""
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo(url), **_options())
    except psycopg.Error as error:
        raise StoreUnusable(f"cannot connect to {url}: {reason(error)}") from error
    async with connection:
        yield connection


def in_use(pool: Pool) -> tuple[int, int]:
    """Return how many connections are open, and how many of these are lent."""
    stats = pool.get_stats()
    size = stats.get("pool_size", 0)
    return size, size - stats.get("pool_available", 0)


async def check_durable(connection: Connection, url: PostgresUrl) -> None:
    """Raise StoreUnusable if a commit would not survive a power cut."""
    cursor = await connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
    row = await cursor.fetchone()
    assert row is not None
    fsync, synchronous_commit = row
    if fsync != "on" or synchronous_commit not in _DURABLE:
        raise StoreUnusable(
            f"{url}: commits would not survive a power cut (fsync {fsync!r}, synchronous_commit "
            f"{synchronous_commit!r}; both must be on). Change it in postgresql.conf, or for this role or database"
        )


async def check_statistics(connection: Connection, url: PostgresUrl) -> None:
    """Log a warning if the planner's statistics are missing, or will become old."""
    cursor = await connection.execute(
        "SELECT current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on', "
        "array(SELECT s.relname::text FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid "
        "      WHERE schemaname = current_schema() AND pg_table_size(s.relid) > %(large)s "
        "      AND ((last_analyze IS NULL AND last_autoanalyze IS NULL AND c.reltuples <= 0) "
        "           OR 'autovacuum_enabled=false' = ANY (c.reloptions)) ORDER BY 1)",
        {"large": _LARGE},
    )
    row = await cursor.fetchone()
    assert row is not None
    automatic, tables = row
    if not automatic:
        log.warning(
            "%s: autovacuum is off, so queries become slow as tables grow; set autovacuum and track_counts to on in "
            "postgresql.conf, then run VACUUM ANALYZE once",
            url,
        )
    elif tables:
        log.warning(
            "%s: no statistics are kept of %s, so queries are slow; run VACUUM ANALYZE once, and leave autovacuum on",
            url,
            ", ".join(tables),
        )


@contextmanager
def unusable(url: PostgresUrl, doing: str) -> Iterator[None]:
    """Turn the driver's errors inside the block into StoreUnusable."""
    try:
        yield
    except (psycopg.Error, *LOST) as error:
        raise StoreUnusable(f"cannot {doing} {url}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what the server or the driver said, without the values that it may quote after the first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def conninfo(url: PostgresUrl) -> str:
    """Return the address for the driver, with keep-alives that notice a dead server. Raises StoreUnusable."""
    try:
        given = conninfo_to_dict(url.conninfo)
        defaults: dict[str, Any] = {"connect_timeout": _CONNECT_S, "application_name": "pisync-receiver"}
        # A machine that vanished is noticed within half a minute.
        defaults |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
        chosen = {name: value for name, value in defaults.items() if name not in given}
        return make_conninfo(url.conninfo, **chosen, client_encoding="UTF8")
    except psycopg.ProgrammingError as error:
        raise StoreUnusable(f"not a PostgreSQL address: {reason(error)}") from error


def _options() -> dict[str, Any]:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("numeric", _NumericLoader)
    context = SimpleNamespace(adapters=adapters, connection=None)
    return {"autocommit": True, "prepare_threshold": None, "context": context}


def abort(connection: Connection) -> None:
    """Shut the socket down; the driver then finds the connection lost.

    For a server that does not answer: a hung disk, a stopped machine or a stuck proxy keeps TCP alive, so none of its
    time-outs ends the wait, and the server's own are as stuck as it is.
    """
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
