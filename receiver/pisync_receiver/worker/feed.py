"""The stored events behind a consumer's durable position, and who of all workers hands them on.

Whoever holds the position's row hands on: a transaction takes it, and the commit that moves it lets go. It takes two
transactions to move. The first says up to where (`until_id`), the second hands that on and moves. So a repetition after
a crash hands on exactly the same events, cut into the same messages, whatever has arrived meanwhile.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from pisync_receiver.store import EventRow
from pisync_receiver.store.finding import event_of
from pisync_receiver.store.postgres.transactions import Database, Transaction

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of `data` that one step holds in memory, unless one event alone has more."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is to be handed on now. The block it was given in moves the position at its end."""

    events: list[EventRow]
    hold: Callable[[], Awaitable[None]]
    """To be called now and then: PostgreSQL lets go of a page whose worker seems to have vanished."""


class Feed:
    """One consumer's way through the stored events. `now_ms` is milliseconds since 1970."""

    def __init__(
        self, database: Database, consumer: str, *, now_ms: Callable[[], int], page_events: int = PAGE_EVENTS
    ) -> None:
        self._database = database
        self._consumer = consumer
        self._now_ms = now_ms
        self._page_events = page_events

    async def begin(self) -> None:
        """A consumer without a position starts before the first event."""
        async with self._database.transaction() as transaction:
            await transaction.do("begin_at", consumer=self._consumer, event_id=0, now=self._now_ms())

    async def begin_from(self, first_id: int | None) -> int:
        """Hand on from this event on, whatever was handed on before; None skips all there is. The position."""
        async with self._database.transaction() as transaction:
            event_id = await _newest(transaction) if first_id is None else first_id - 1
            await transaction.do("set_back", consumer=self._consumer, event_id=event_id, now=self._now_ms())
        return event_id

    async def lag(self) -> int:
        """How many events wait."""
        async with self._database.transaction() as transaction:
            row = await transaction.row("lag", consumer=self._consumer)
        return 0 if row is None or row[0] is None else int(row[0])

    async def prepare(self) -> bool:
        """Say up to where the next page goes. Whether there is one, and no other worker holds the position."""
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
            await transaction.do("intend", consumer=self._consumer, until=end[0])
        return True

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page | None]:
        """The prepared page; None where another worker has it. An exception in the block leaves all as it was."""
        async with self._database.transaction() as transaction:
            position = await transaction.row("take", consumer=self._consumer)
            if position is None or position[1] is None:
                yield None
                return
            after, until = position
            rows = await transaction.rows("page", after=after, until=until)
            yield Page(events=[event_of(row) for row in rows], hold=partial(transaction.do, "bounds"))
            await transaction.do("move", consumer=self._consumer, until=until, now=self._now_ms())


async def _newest(transaction: Transaction) -> int:
    row = await transaction.row("newest")
    return 0 if row is None else int(row[0])
