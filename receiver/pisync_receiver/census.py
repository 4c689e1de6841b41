"""How the fleet is doing, for a scrape: counted in the database at most every fifteen seconds, whoever asks."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.metrics import Metrics
from pisync_receiver.store import Store

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0


class Census:
    """Brings the gauges up to date. On the event loop; the counting happens in a thread."""

    def __init__(self, store: Store, metrics: Metrics, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._due = float("-inf")
        self._counting: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Count again if it is due. A database that cannot be read leaves the gauges as they were."""
        self._metrics.connections(self._store.connections())
        if self._counting is None or self._counting.done():
            if self._clock() < self._due:
                return
            self._counting = asyncio.create_task(self._count())
        await asyncio.shield(self._counting)

    async def _count(self) -> None:
        self._due = self._clock() + EVERY_S
        try:
            self._metrics.fleet(await asyncio.to_thread(self._store.fleet))
        except StoreUnusable as error:
            log.warning("the fleet could not be counted: %s", error)
