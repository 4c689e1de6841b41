"""Fleet-wide answers that many ask for, kept for a few seconds, in the process or in a Redis that receivers share.

Time-to-live only, and never on the way of a write. A Redis that is away makes answers slower and nothing else.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pisync_receiver.errors import MissingExtra

log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Counts seconds and never goes back."""

TTL_S: Final = 3.0
PAYBACK: Final = 20
"""An answer is kept this many times as long as it took to make: a small fleet's answers stay as good as immediate."""
ENTRIES: Final = 1_000
"""Answers one process keeps: 100 MB where each is a page of 1,000 devices, as a rule a hundredth of that."""
REDIS_TIMEOUT_S: Final = 0.25
REDIS_PAUSE_S: Final = 1.0
"""How long a Redis that failed is not asked again."""
_PREFIX: Final = b"pisync:answer:"
_CONNECTIONS: Final = 16
_SCHEMES: Final = ("redis", "rediss", "unix")


class Storage(Protocol):
    """Where answers are kept. No method raises because the storage is away."""

    async def get(self, key: str) -> bytes | None: ...
    async def put(self, key: str, value: bytes, keep_s: float) -> None: ...
    async def aclose(self) -> None: ...


class Cache:
    """Keeps answers, and makes each only once at a time. Used on the event loop."""

    def __init__(self, storage: Storage, *, clock: Clock, ttl_s: float = TTL_S) -> None:
        """`ttl_s` is the longest an answer is kept; 0 keeps none."""
        self._storage = storage
        self._clock = clock
        self._ttl_s = ttl_s
        self._making: dict[str, asyncio.Task[bytes]] = {}

    async def answer(self, key: str, make: Callable[[], Awaitable[bytes]], *, fresh: bool = False) -> bytes:
        """Return the kept answer, or `make` it; `fresh` always makes it. Raises what `make` raises."""
        if fresh or not self._ttl_s:
            return await make()
        if (kept := await self._storage.get(key)) is not None:
            return kept
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.ensure_future(self._make(key, make))
            task.add_done_callback(lambda _: self._making.pop(key))
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        await self._storage.aclose()

    async def _make(self, key: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        began = self._clock()
        value = await make()
        await self._storage.put(key, value, min(self._ttl_s, PAYBACK * (self._clock() - began)))
        return value


class MemoryStorage:
    """In the process; forgets the answer that was made first when there are too many."""

    def __init__(self, *, clock: Clock, entries: int = ENTRIES) -> None:
        self._clock = clock
        self._entries = entries
        self._kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        value, until = self._kept.get(key, (None, 0.0))
        return value if self._clock() < until else None

    async def put(self, key: str, value: bytes, keep_s: float) -> None:
        self._kept[key] = (value, self._clock() + keep_s)
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)

    async def aclose(self) -> None:
        self._kept.clear()


@dataclass(frozen=True, kw_only=True)
class RedisUrl:
    """A Redis. Its text never holds the password."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redis_url(value: str) -> RedisUrl:
    """Parse a setting. Raises ValueError whose text completes the sentence "the value is …"."""
    wrong = "not the address of a Redis, such as redis://redis.example:6379/0 or rediss://:password@redis.example/0"
    try:
        parts = urlsplit(value)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        usable = parts.scheme in _SCHEMES and bool(place) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(wrong) from error
    number = "" if parts.scheme == "unix" else parts.path.removeprefix("/")
    if not usable or not (number == "" or (number.isascii() and number.isdecimal())) or not value.isprintable():
        raise ValueError(wrong)
    return RedisUrl(url=value)


class RedisStorage:
    """In Redis: a call takes a quarter of a second at most, and after a failure none is made for a second."""

    def __init__(self, url: RedisUrl, *, space: str, clock: Clock) -> None:
        """`space` tells this database's answers from those of another. Raises MissingExtra without redis-py."""
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError as error:
            raise MissingExtra("redis", error) from error
        self._url = url
        self._clock = clock
        self._prefix = _PREFIX + space.encode() + b":"
        self._away_until: float | None = None
        self._failures: tuple[type[Exception], ...] = (RedisError, OSError)
        pool = BlockingConnectionPool.from_url(
            url.url,
            max_connections=_CONNECTIONS,
            timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="pisync-receiver",
        )
        self._redis: Redis = Redis(connection_pool=pool)

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._ask(lambda: self._redis.get(self._prefix + key.encode()))
        return value

    async def put(self, key: str, value: bytes, keep_s: float) -> None:
        if (keep_ms := round(keep_s * 1000)) > 0:
            await self._ask(lambda: self._redis.set(self._prefix + key.encode(), value, px=keep_ms))

    async def aclose(self) -> None:
        await self._redis.connection_pool.disconnect()

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return what Redis answers; None where it does not. The change either way is logged once."""
        if self._away_until is not None and self._clock() < self._away_until:
            return None
        try:
            answer = await call()
        except self._failures as error:
            if self._away_until is None:
                log.warning("%s does not answer (%s); answers are made without it", self._url, type(error).__name__)
            self._away_until = self._clock() + REDIS_PAUSE_S
            return None
        if self._away_until is not None:
            log.info("%s answers again", self._url)
            self._away_until = None
        return answer
