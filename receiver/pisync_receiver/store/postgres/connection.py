"""Connections to PostgreSQL: pools that renew them, and what makes a commit durable.

No session state is relied on and nothing is prepared on the server, so that PgBouncer may stand in between in
transaction mode. All of it speaks UTF-8, whatever the address, the role or the database says.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, Final, Protocol

from pisync_receiver.errors import MissingExtra, StoreUnusable
from pisync_receiver.store.address import PostgresUrl

try:
    import psycopg
    from psycopg import AsyncRawCursor, RawCursor
    from psycopg.adapt import AdaptersMap, Buffer, Loader
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq.abc import PGconn
    from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
except ImportError as error:
    raise MissingExtra("postgres", error) from error

log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
Pool = ConnectionPool[Connection]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
AsyncPool = AsyncConnectionPool[AsyncConnection]

LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed, TooManyRequests)
"""The server, or the way to it, is not there (any more); a new connection may help."""

_DURABLE: Final = ("on", "local", "remote_write", "remote_apply")
_CONNECT_S: Final = 5
PATIENCE_S: Final = 10.0
"""How long a request waits for a database that is away before it is answered 503."""


class Answered(Protocol):
    """What the server answered; `psycopg.Cursor` says what each means."""

    @property
    def rowcount(self) -> int: ...
    @property
    def rownumber(self) -> int | None: ...
    def fetchone(self) -> tuple[Any, ...] | None: ...
    def fetchall(self) -> list[tuple[Any, ...]]: ...
    def nextset(self) -> bool | None: ...


class Link(Protocol):
    """A connection that a writer was lent, whether it blocks its thread or leaves it to the event loop meanwhile."""

    @property
    def closed(self) -> bool: ...
    @property
    def pgconn(self) -> PGconn: ...
    def execute(self, query: str | bytes, params: Sequence[Any] | None = None, /) -> Answered: ...
    def close(self) -> None: ...


class Links(Protocol):
    """A pool of them."""

    def connection(self) -> AbstractContextManager[Link]: ...


class _Number(Loader):
    """A numeric as it was sent: an integer where it has no decimals."""

    def load(self, data: Buffer) -> float:
        text = bytes(data)
        return float(text) if b"." in text else int(text)


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("numeric", _Number)
    return adapters


def connect(url: PostgresUrl) -> Connection:
    """One connection of its own, committing each statement by itself. Raises StoreUnusable."""
    try:
        return psycopg.connect(conninfo(url), cursor_factory=RawCursor, **_options())
    except psycopg.Error as error:
        raise StoreUnusable(f"{url} cannot be reached: {reason(error)}") from error


def make_pool(
    url: PostgresUrl, *, name: str, size: int, wait_s: float, check: Callable[[Connection], None] | None = None
) -> Pool:
    """A pool of up to `size` connections, not yet open; a caller waits `wait_s` for one.

    `check` tries each before it is lent, and raises what the driver does for one that is lost.
    """
    return ConnectionPool(
        conninfo(url),
        connection_class=psycopg.Connection[tuple[Any, ...]],
        kwargs=_options() | {"cursor_factory": RawCursor},
        check=check,
        open=False,
        **_pooling(name, size, wait_s),
    )


def async_pool(url: PostgresUrl, *, name: str, size: int, wait_s: float) -> AsyncPool:
    """The same for an event loop."""
    return AsyncConnectionPool(
        conninfo(url),
        connection_class=psycopg.AsyncConnection[tuple[Any, ...]],
        kwargs=_options() | {"cursor_factory": AsyncRawCursor},
        open=False,
        **_pooling(name, size, wait_s),
    )


def in_use(pool: Pool | AsyncPool) -> tuple[int, int]:
    """How many connections are open, and how many of these are lent."""
    stats = pool.get_stats()
    size = stats.get("pool_size", 0)
    return size, size - stats.get("pool_available", 0)


def check_durable(connection: Connection, url: PostgresUrl) -> None:
    """Raise StoreUnusable if a commit would not survive a power cut."""
    row = connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')").fetchone()
    assert row is not None
    fsync, synchronous_commit = row
    if fsync != "on" or synchronous_commit not in _DURABLE:
        raise StoreUnusable(
            f"{url}: commits would not survive a power cut (fsync {fsync!r}, synchronous_commit "
            f"{synchronous_commit!r}; both must be on). Change it in postgresql.conf, or for this role or database"
        )


@contextmanager
def unusable(url: PostgresUrl, doing: str) -> Iterator[None]:
    """Turn the driver's errors inside the block into StoreUnusable."""
    try:
        yield
    except (psycopg.Error, *LOST) as error:
        raise StoreUnusable(f"{url} cannot be {doing}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the server or the driver said, without the values that it may quote after the first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _options() -> dict[str, Any]:
    return {
        "autocommit": True,
        "prepare_threshold": None,
        "context": SimpleNamespace(adapters=_adapters(), connection=None),
    }


def _pooling(name: str, size: int, wait_s: float) -> dict[str, Any]:
    return {
        "min_size": 1,
        "max_size": size,
        "timeout": wait_s,
        "reconnect_timeout": wait_s,
        "max_lifetime": 3600,
        "name": f"pisync {name}",
    }


def conninfo(url: PostgresUrl) -> str:
    """What the driver takes: the address, with what is needed to notice a server that is gone. Raises StoreUnusable."""
    try:
        given = conninfo_to_dict(url.conninfo)
        defaults: dict[str, Any] = {"connect_timeout": _CONNECT_S, "application_name": "pisync-receiver"}
        # A server that is gone without a word is noticed within half a minute.
        defaults |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
        chosen = {name: value for name, value in defaults.items() if name not in given}
        return make_conninfo(url.conninfo, **chosen, client_encoding="UTF8")
    except psycopg.ProgrammingError as error:
        raise StoreUnusable(f"this is no PostgreSQL address: {reason(error)}") from error
