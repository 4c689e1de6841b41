"""From the stored events to the broker, a page at a time."""

from typing import Final

from pisync_receiver.worker.duty import AGAIN
from pisync_receiver.worker.feed import Feed
from pisync_receiver.worker.messages import messages, rounds
from pisync_receiver.worker.metrics import WorkerMetrics
from pisync_receiver.worker.publisher import Publisher

LOOK_SECONDS: Final = 0.5
"""How often a worker looks for new events. LISTEN would not pass through PgBouncer."""


class Publishing:
    """Hands events on in their order. The position moves only over what the broker confirmed."""

    def __init__(self, feed: Feed, publisher: Publisher, *, metrics: WorkerMetrics, message_events: int) -> None:
        self._feed = feed
        self._publisher = publisher
        self._metrics = metrics
        self._message_events = message_events

    async def step(self) -> float:
        """Hand on one page; seconds until the next look. Raises PublisherUnavailable, DatabaseUnavailable."""
        self._metrics.lag(await self._feed.lag())
        await self._publisher.publish(())  # before anything is held for it
        if not await self._feed.prepare():
            return LOOK_SECONDS
        async with self._feed.page() as page:
            if page is None:
                return LOOK_SECONDS
            batch = messages(page.events, most_events=self._message_events)
            for each in rounds(batch):
                await self._publisher.publish(each)
                await page.hold()
        self._metrics.published(events=len(page.events), messages=len(batch))
        return AGAIN
