"""Where the receiver keeps everything: one asynchronous `Store`, one package an engine (`sqlite`, `postgres`).

`opening` finds the engine of an address; `reading` has the queries of both, `sql/` the SQL that they share.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from pisync_receiver.domain.acts import Note
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.submissions import Actor, Outcome, Submission
from pisync_receiver.store.acts import ActQueries, note_of
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.notices import NoticeQueries
from pisync_receiver.store.reading import HOUR_MS, Queries
from pisync_receiver.store.running import Query, Row

Decide = Callable[[list[list[Row]]], Sequence[Query]]
"""From the rows of each query that was asked to the statements to run: a name, and values by name."""
RETAIN_BATCH: Final = 5_000
"""Events, and sync events, that `retain` deletes in one transaction."""


class Retained(Struct, frozen=True, kw_only=True):
    """What one call of `retain` deleted, or would delete; `more` if another call would find more."""

    events: int
    sync_events: int
    more: bool


class Store(Queries, ActQueries, NoticeQueries):
    """Used on one event loop. Every method raises StoreUnusable when the database cannot be read or written."""

    @property
    @abstractmethod
    def writers(self) -> int:
        """How many groups can be written at once."""

    @abstractmethod
    async def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store all submissions in one durable transaction; return an outcome for each, in order, after the commit.

        Repeating a submission is safe. A submission that cannot be stored fails alone: its outcome is the exception.
        """

    @abstractmethod
    async def ready(self) -> None:
        """Write something small, durably."""

    @abstractmethod
    async def act(self, reads: Sequence[Query], decide: Decide, *, lock: str | None = None) -> bool:
        """In one durable transaction: read, have `decide` say what to write, write it. The same shape as `write`, for
        the receiver's own work. Return False, with nothing read, while another receiver holds `lock`.

        `decide` gets the rows of each query, and returns named statements with their values; it must be pure, for it is
        called again when the transaction is.
        """

    async def add_note(
        self, *, device_id: str | None = None, site: str | None = None, at_ms: int, by: Actor, text: str
    ) -> Note:
        """Write about a device or a site."""
        values = {"device": device_id, "site": site, "at": at_ms, "author": by.name, "text": text}
        target = f"site {site}" if device_id is None else f"device {device_id}"
        ids: list[int] = []

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            ids[:] = [number for (number,) in found[0]]  # again if the transaction is repeated
            return [audit_statement(audited(by, "note.write", target, at_ms, {"note": ids[0]}))]

        await self.act([("insert_note", values)], decide)
        return note_of(ids[0], at_ms, by.name, text)

    async def retain(self, before_ms: int, *, dry_run: bool) -> Retained:
        """Delete events and sync events that arrived before a moment, RETAIN_BATCH rows of each at most; with `dry_run`
        count all of them. Streams keep their counters and gaps: deleted events stay accounted for."""
        old = {"before": before_ms, "hour": before_ms // HOUR_MS, "limit": RETAIN_BATCH}
        if not dry_run:
            events, sync_events = await self._delete_old(old)
            return Retained(events=events, sync_events=sync_events, more=RETAIN_BATCH in (events, sync_events))
        ((events, sync_events),) = await self._rows("count_old", **old)
        return Retained(events=events, sync_events=sync_events, more=False)

    @abstractmethod
    async def _delete_old(self, old: Mapping[str, int]) -> tuple[int, int]:
        """Delete one batch of what `old_events` and `old_sync_events` find; return how many rows of each."""

    @abstractmethod
    def connections(self) -> Mapping[str, tuple[int, int]]:
        """Count connections to a server: name -> (open, in use); empty where there is no server."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what is being written and free everything. Harmless twice."""
