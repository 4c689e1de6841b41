"""A Redis that answers at once or is away: a quarter of a second for each call, and after a failure none for a second.

Nobody waits for Redis longer than that, whether it is down, frozen or swallowed by the network.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from pisync_receiver.errors import MissingExtra
from pisync_receiver.sharing.address import RedisUrl

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S: Final = 0.25
AWAY_S: Final = 1.0
_CONNECTIONS: Final = 16


def check_installed() -> None:
    """Raises MissingExtra where redis-py is not installed."""
    try:
        import redis.asyncio  # noqa: F401
    except ImportError as error:
        raise MissingExtra("redis", error) from error


class Link:
    """One process's way to Redis. Used on one event loop."""

    def __init__(
        self, url: RedisUrl, *, clock: Callable[[], float], noticed: Callable[[bool], None] = lambda up: None
    ) -> None:
        """`clock` counts seconds and never goes back; `noticed` hears after every call whether Redis answered.

        Raises MissingExtra where redis-py is not installed.
        """
        check_installed()
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._url = url
        self._clock = clock
        self._noticed = noticed
        self._away_until = float("-inf")
        self._failures: tuple[type[Exception], ...] = (RedisError, OSError)
        pool = BlockingConnectionPool.from_url(
            url.url,
            max_connections=_CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="pisync-receiver",
        )
        self._redis: Redis = Redis(connection_pool=pool)

    async def ask(self, call: "Callable[[Redis], Awaitable[T]]") -> T | None:
        """What `call` answers; None where Redis does not, which is noted. Never raises for want of Redis."""
        if self._clock() < self._away_until:
            return None
        try:
            answer = await call(self._redis)
        except self._failures as error:
            self._is_away(error)
            return None
        self._is_back()
        return answer

    async def close(self) -> None:
        await self._redis.connection_pool.disconnect()

    def _is_away(self, error: Exception) -> None:
        if self._away_until == float("-inf"):
            log.warning("%s does not answer (%s); everything goes on without it", self._url, type(error).__name__)
        self._away_until = self._clock() + AWAY_S
        self._noticed(False)

    def _is_back(self) -> None:
        if self._away_until != float("-inf"):
            log.info("%s answers again", self._url)
            self._away_until = float("-inf")
        self._noticed(True)
