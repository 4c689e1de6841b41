"""A store for tests that are not coroutines, and the short ways to write to it and to read it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from pisync_common.models import Receipt
from pisync_receiver.domain.records import EventFilter, EventRecord, StreamRecord
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import EventBatch, Submission, SyncEvent
from pisync_receiver.store import Store
from tests.support.submissions import CRITERIA, DEVICE, STREAM


class BlockingStore:
    """Runs every call to its end on an event loop of its own; by CRITERIA, unless a call says otherwise."""

    def __init__(self, opening: Callable[[], Awaitable[Store]]) -> None:
        self._runner = asyncio.Runner()
        try:
            self.store: Store = self._runner.run(_opened(opening))
        except BaseException:
            self._runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the store's loop."""
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.run(self.store.aclose())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, name)
        judges = "criteria" in inspect.signature(method).parameters

        def call(*args: Any, **kwargs: Any) -> Any:
            if judges:
                kwargs.setdefault("criteria", CRITERIA)
            result = method(*args, **kwargs)
            return self._runner.run(result) if inspect.iscoroutine(result) else result

        return call


async def _opened(opening: Callable[[], Awaitable[Store]]) -> Store:
    return await opening()


def send(store: BlockingStore, submission: EventBatch) -> Receipt:
    """Write a batch alone; every receipt must add up."""
    outcome = written(store, submission)
    assert isinstance(outcome, Receipt)
    assert outcome.stored + outcome.duplicates + len(outcome.rejected) == len(submission.events) + len(
        submission.invalid
    )
    return outcome


def sync(store: BlockingStore, submission: SyncEvent) -> StoredSyncEvent:
    """Write a sync event alone."""
    outcome = written(store, submission)
    assert isinstance(outcome, StoredSyncEvent)
    return outcome


def written(store: BlockingStore, submission: Submission) -> Any:
    """Write a submission alone; return its outcome, raised if it is an exception."""
    (outcome,) = store.write([submission])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def counts(receipt: Receipt) -> tuple[int, int, list[tuple[int, str]], int]:
    """Return stored, duplicates, rejected as (seq, code), watermark."""
    rejected = [(rejection.seq, rejection.code) for rejection in receipt.rejected]
    return receipt.stored, receipt.duplicates, rejected, receipt.watermark


def stored_seqs(store: BlockingStore, *, device: str = DEVICE, stream: str = STREAM) -> list[int]:
    return sorted(row.seq for row in stored(store, device=device, stream=stream))


def stored(store: BlockingStore, *, device: str | None = DEVICE, stream: str | None = None) -> list[EventRecord]:
    return all_events(store, EventFilter(device_id=device, stream=stream))


def all_events(store: BlockingStore, wanted: EventFilter, *, after: int = 0) -> list[EventRecord]:
    found: list[EventRecord] = store.run(every_event(store.store, wanted, after=after))
    return found


async def every_event(store: Store, wanted: EventFilter, *, after: int = 0) -> list[EventRecord]:
    """Follow the pages of events to the last."""
    found: list[EventRecord] = []
    cursor: str | None = str(after)
    while cursor is not None:
        page = await store.events(wanted, limit=1000, cursor=cursor)
        found += page.rows
        cursor = page.next
    return found


def data_of(record: EventRecord) -> str | None:
    """Return an event's `data` as the text that was sent."""
    text = bytes(record.data).decode()
    return None if text == "null" else text


def streams(store: BlockingStore, device: str = DEVICE) -> list[StreamRecord]:
    found = store.completeness(device)
    return [] if found is None else found.streams


def stream_row(store: BlockingStore, *, device: str = DEVICE, stream: str = STREAM) -> StreamRecord:
    (row,) = (row for row in streams(store, device) if row.stream == stream)
    return row
