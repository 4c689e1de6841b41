"""From the notices that wait to one service, in their order, by one worker at a time.

A notice is marked in the transaction that is open while it is sent. It goes again only where a worker dies, or loses
PostgreSQL, between the service's answer and the commit: an operator rather reads it twice than never.
"""

import logging
from collections.abc import Callable
from typing import Final

from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.alerts.services import Service
from pisync_receiver.worker.duty import AGAIN
from pisync_receiver.worker.errors import ServiceUnavailable
from pisync_receiver.worker.metrics import WorkerMetrics

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
LONG_MS: Final = 86_400_000
"""How long a notice that its service does not take may hold up the ones after it."""


class Sender:
    """One service's notices."""

    def __init__(
        self, database: Database, service: Service, *, now_ms: Callable[[], int], metrics: WorkerMetrics
    ) -> None:
        self._database = database
        self._service = service
        self._now_ms = now_ms
        self._metrics = metrics

    async def step(self) -> float:
        """Send the oldest notice; seconds until the next look. Raises ServiceUnavailable, DatabaseUnavailable."""
        target = self._service.target
        async with self._database.transaction() as transaction:
            if not await transaction.alone(f"notices {target}"):
                return LOOK_SECONDS
            waiting = await transaction.row("next_notice", target=target, long_ago=self._now_ms() - LONG_MS)
            if waiting is None:
                return LOOK_SECONDS
            number, title, body = waiting
            await self._send(title, body)
            await transaction.do("sent", id=number, now=self._now_ms())
        self._metrics.alert(sent=True)
        return AGAIN

    async def _send(self, title: str, body: str) -> None:
        try:
            await self._service.send(title, body)
        except ServiceUnavailable:
            self._metrics.alert(sent=False)
            raise
