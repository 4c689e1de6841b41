"""Deleting what arrived long ago, in bounded batches."""

import json
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from pisync_receiver.store.reading import HOUR_MS
from pisync_receiver.store.running import Query, QueryRunner, Row, Values

Audit = Callable[[Mapping[str, object]], Query]
"""From the details of an act to the statement that adds it to the audit log."""
RETAIN_BATCH: Final = 5_000
"""Events, and sync events, that `retain` deletes in one transaction."""
WINDOW: Final = 50_000
WINDOWS: Final = 20
"""Events that `retain` looks at in one transaction for those of a type, and such transactions in one call."""
TYPES: Final = 1_000
"""Types of events that a dry run counts apart, the most frequent first."""
_LARGEST: Final = 2**63 - 1


class Retained(Struct, frozen=True, kw_only=True):
    """What one call of `retain` deleted, or would delete; `more` if another call would find more."""

    events: int
    sync_events: int
    by_type: dict[str, int] | None = None
    """Of a dry run: events by their type, the most frequent first."""
    more: bool
    after: int = 0
    """Where the next call goes on."""


class Retention(QueryRunner):
    """Streams keep their counters and gaps: what is deleted stays accounted for."""

    async def retain(
        self,
        before_ms: int,
        *,
        dry_run: bool,
        event_type: str | None = None,
        after: int = 0,
        audit: Audit | None = None,
    ) -> Retained:
        """Delete events and sync events that arrived before a moment, RETAIN_BATCH rows of each at most; of one type,
        events alone. With `dry_run` count all of them. `after` is where the call before ended; `audit` gets what was
        deleted, if anything was."""
        hour = before_ms // HOUR_MS
        old = {"before": before_ms, "hour": hour, "type": event_type}
        if dry_run:
            (counts,), types = await self._read(("count_old", old), ("count_old_types", {**old, "limit": TYPES}))
            events, sync_events = counts
            return Retained(events=events, sync_events=sync_events, by_type=dict(types), more=False)
        if event_type is None:
            events, sync_events = await self._delete_old(old, 0, _LARGEST, audit)
            return Retained(events=events, sync_events=sync_events, more=RETAIN_BATCH in (events, sync_events))
        ((_, last),) = await self._rows("arrived", first=-_LARGEST, last=hour)
        for _ in range(WINDOWS):  # rows of other types are read too: a bounded number in each transaction
            events, _ = await self._delete_old(old, after, after + WINDOW, audit)
            if events < RETAIN_BATCH:
                after += WINDOW
            if events or after >= (last or 0):
                break
        return Retained(events=events, sync_events=0, more=after < (last or 0), after=after)

    async def _delete_old(self, old: Values, after: int, upto: int, audit: Audit | None) -> tuple[int, int]:
        """Delete one batch of old rows, events only with ids from `after` to `upto`; return how many of each."""
        counts = (0, 0)

        def decide(rows: list[list[Row]]) -> list[Query]:
            nonlocal counts
            *_, events, sync_events = rows
            counts = (len(events), len(sync_events))
            deletes: list[Query] = []
            if events:
                deletes.append(("delete_keys_at", {"places": json.dumps([place for _, *place in events])}))
                deletes.append(("delete_events", {"ids": [number for number, *_ in events]}))
            if sync_events:
                ids, newest = [number for number, _ in sync_events], sync_events[-1][1]
                deletes.append(("delete_sync_events", {"ids": ids, "newest": newest}))
            if deletes and audit is not None:
                deletes.append(audit({"events": counts[0], "sync_events": counts[1]}))
            return deletes

        wanted = {**old, "after": after, "upto": upto, "limit": RETAIN_BATCH}
        await self.act([("old_events", wanted), ("old_sync_events", wanted)], decide)
        return counts
