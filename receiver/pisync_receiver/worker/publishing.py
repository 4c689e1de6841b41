"""Publish the stored events behind a consumer's durable position, a page at a time.

The worker that holds the position's row publishes: its transaction locks the row, and the commit that moves the
position releases it. Moving takes two transactions. The first records where the page ends, the second publishes the
page and moves over it. A repetition after a crash thus publishes exactly the same events in the same messages, whatever
has arrived in between.
"""

import logging
from collections.abc import Callable
from typing import Final

from pisync_receiver.background import AGAIN
from pisync_receiver.store.postgres.transactions import Database, Transaction
from pisync_receiver.worker.messages import histories, render
from pisync_receiver.worker.rabbitmq import RabbitPublisher

log = logging.getLogger(__name__)

NOW: Final = "now"
POLL_SECONDS: Final = 0.5
"""How often a worker looks for new events. LISTEN does not pass through PgBouncer."""
PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""The most `data` that a page holds in memory, unless a single event has more."""


class Publishing:
    """Publishes events in their order. The position moves only over what the broker confirmed.

    It starts at the event with the id `start`, after the newest (`now`), or at the position (None), which for a new
    consumer is before the first event. `now_ms` is milliseconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        publisher: RabbitPublisher,
        *,
        consumer: str,
        now_ms: Callable[[], int],
        start: int | str | None = None,
        page_events: int = PAGE_EVENTS,
        message_events: int,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._consumer = consumer
        self._now_ms = now_ms
        self._start = start
        self._page_events = page_events
        self._message_events = message_events
        self._placed = False

    async def step(self) -> float:
        """Publish one page; return the seconds until the next.

        Raises PublisherUnavailable, DatabaseUnavailable, SchemaMismatch.
        """
        if not self._placed:
            await self._place()
            self._placed = True
            log.info("started")
        await self._publisher.publish(())  # connect before the position is locked
        if not await self._prepare():
            return POLL_SECONDS
        async with self._database.transaction() as transaction:
            position = await transaction.row("take", consumer=self._consumer)
            if position is None or position[1] is None:
                return POLL_SECONDS  # another worker has published the page
            after, until = position
            events = render(await transaction.rows("page", after=after, until=until))
            await self._publisher.publish(histories(events, max_events=self._message_events))
            await transaction.rows("move", consumer=self._consumer, until=until, now=self._now_ms())
        return AGAIN

    async def close(self) -> None:
        await self._publisher.close()
        await self._database.close()

    async def _place(self) -> None:
        async with self._database.transaction() as transaction:
            if self._start is None:
                await transaction.rows("create_position", consumer=self._consumer, now=self._now_ms())
                return
            event_id = await _newest(transaction) if self._start == NOW else int(self._start) - 1
            await transaction.rows("set_position", consumer=self._consumer, event_id=event_id, now=self._now_ms())

    async def _prepare(self) -> bool:
        """Record where the next page ends. Return False if there is none or another worker holds the position."""
        async with self._database.transaction() as transaction:
            position = await transaction.row("take", consumer=self._consumer)
            if position is None:
                return False
            after, until = position
            if until is not None:
                return True
            newest = await _newest(transaction)
            end = await transaction.row(
                "end_of_page", after=after, newest=newest, events=self._page_events, bytes=PAGE_BYTES
            )
            if end is None or end[0] is None:
                return False
            await transaction.rows("set_page_end", consumer=self._consumer, until=end[0])
        return True


async def _newest(transaction: Transaction) -> int:
    row = await transaction.row("newest")
    return 0 if row is None else int(row[0])
