"""What several receivers on one PostgreSQL share through a Redis, all of which they can do without.

Answers and tokens (`memory`), and how often each device came (`rates`). Redis is asked quickly or not at all (`link`),
and it keeps nothing that is not in the database.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from pisync_receiver.limits import Limits
from pisync_receiver.sharing.address import RedisUrl
from pisync_receiver.sharing.link import Link
from pisync_receiver.sharing.memory import Memory, SharedCache, SharedTokens
from pisync_receiver.sharing.rates import SharedRates


class Sharing:
    """One receiver's part in it. Made anywhere, used on one event loop."""

    def __init__(
        self,
        url: RedisUrl,
        *,
        space: str,
        limits: Limits | None,
        clock: Callable[[], float],
        noticed: Callable[[bool], None],
    ) -> None:
        """`space` names the database, `limits` are this receiver's of devices, `clock` counts seconds and never goes
        back, and `noticed` hears whether Redis answers. Raises MissingExtra."""
        self._link = Link(url, clock=clock, noticed=noticed)
        memory = Memory(self._link, space=space, clock=clock)
        self.cache = SharedCache(memory)
        self.tokens = SharedTokens(memory)
        self._rates = None if limits is None else SharedRates(limits, self._link, space=space, clock=clock)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._rates is not None:
            self._task = asyncio.create_task(self._rates.run())

    async def close(self) -> None:
        """Harmless twice."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._link.close()
