"""What is stored of learners: one learner's events, and what erasing needs to find."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from pisync_receiver.domain.erasure import Erased, homes_of, named
from pisync_receiver.domain.records import EventRecord, Page
from pisync_receiver.domain.rows import Device
from pisync_receiver.store.cursors import decode, encode, page
from pisync_receiver.store.reading import event_record, fill
from pisync_receiver.store.running import QueryRunner, Row, Sites, build, listed

_LARGEST: Final = 2**63 - 1
_STEP: Final = 200
"""Events read at once for a page; each may have 64 KiB of data."""
_BODIES: Final = 500
"""Bodies of rejected events read at once; each may have 64 KiB."""

RejectedPlace = tuple[str, str, int, bytes]
"""Device, stream, seq and content hash of a rejected event or of a conflicting version."""
FIRST: Final[RejectedPlace] = ("", "", 0, b"")
"""Before every such place."""


class NamingLearner(Struct, frozen=True):
    """A rejected event, or a conflicting version, whose body names a learner."""

    place: RejectedPlace
    learner_id: str
    homes: Sequence[str | None]
    """Which the learner may belong to: several where the body names none and the device was moved."""


class LearnerQueries(QueryRunner):
    """Queries about learners."""

    async def timeline(
        self,
        learner_id: str,
        *,
        home: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        sites: Sites = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[EventRecord]:
        """List a learner's events by their best time, newest first, of one home or of all; `since_ms` is included,
        `until_ms` is not. A page with much data has fewer than `limit` rows."""
        place = (_LARGEST, _LARGEST) if cursor is None else decode(cursor, int, int)

        async def read(last: tuple[Row, EventRecord] | None, rows: int) -> list[tuple[Row, EventRecord]]:
            best_ms, number = place if last is None else (last[0][-3], last[0][0])
            found = await self._rows(
                "timeline",
                learner=learner_id,
                home=home,
                since=-_LARGEST if since_ms is None else since_ms,
                until=_LARGEST if until_ms is None else until_ms,
                best=best_ms,
                id=number,
                sites=listed(sites),
                limit=rows,
            )
            return [(row, event_record(row)) for row in found]

        found, fit = await fill(read, lambda pair: len(memoryview(pair[1].data)), limit=limit, step=_STEP)
        shown = page(found, fit, _place)
        return Page(rows=[record for _, record in shown.rows], next=shown.next)

    # Erasing.

    async def erasure_keys(self) -> list[bytes]:
        """Return the keys of the hashes of erased learners; at most one, unless databases were mixed."""
        return [bytes(key) for (key,) in await self._rows("all_erasure_keys")]

    async def erased(self, ids: Sequence[str]) -> list[Erased]:
        """Return the erased learners with some ids, by the hashes of the ids."""
        return [build(Erased, row) for row in await self._rows("erased_by_id", ids=list(ids))]

    async def all_erased(self, *, after: str = "", limit: int = 1000) -> list[Erased]:
        """List erased learners by their hashes."""
        return [build(Erased, row) for row in await self._rows("all_erased", after=after, limit=limit)]

    async def homes(self, learner_id: str, *, limit: int) -> list[tuple[str | None, int]]:
        """Return the homes that an id occurs under in stored events, and how many events each has."""
        return [(home, count) for home, count in await self._rows("homes_of_learner", learner=learner_id, limit=limit)]

    async def learner_ids(self, *, after: str, limit: int) -> list[str]:
        """Return the next ids that occur in stored events, ascending."""
        return [name for (name,) in await self._rows("next_learners", after=after, limit=limit)]

    async def rejected_naming(
        self, learner_id: str | None, after: RejectedPlace
    ) -> tuple[list[NamingLearner], RejectedPlace | None]:
        """Of a bounded number of rejected events and conflicting versions after a place, return those that name a
        learner, or any without `learner_id`; and the place to go on from, None at the end."""
        place = dict(zip(("device", "stream", "seq", "content"), after, strict=True))
        rows, ends = await self._read(
            ("rejected_naming", {**place, "learner": learner_id, "limit": _BODIES}),
            ("rejected_after", {**place, "limit": _BODIES}),
        )
        naming = [(row, *found) for row in rows if (found := named(row[4])) is not None]
        naming = [(row, home, name) for row, home, name in naming if learner_id in (None, name)]
        devices = await self._rows("devices_by_id", devices=sorted({row[0] for row, home, _ in naming if home is None}))
        known = {device.device_id: device for device in (build(Device, row) for row in devices)}
        return [
            NamingLearner((row[0], row[1], row[2], bytes(row[3])), name, homes_of(known.get(row[0]), home))
            for row, home, name in naming
        ], (*ends[0][:3], bytes(ends[0][3])) if ends else None


def _place(row: tuple[Row, EventRecord]) -> str:
    number, best_ms = row[0][0], row[0][-3]
    return encode(best_ms, number)
