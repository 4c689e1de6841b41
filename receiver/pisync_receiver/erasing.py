"""Erasing learners: everything stored of them is deleted, and stays deleted.

1. What is asked goes into the erasures file, outside the database: a restored backup does not bring a learner back.
2. A row of `erased`, with the entry in the audit log: from its commit on, intake writes nothing of the learner.
3. Events with their keys, copies and sums, then bodies of rejected events and conflicting versions, in bounded batches.

Each step may be repeated after any failure. Streams keep their counters and gaps, as after retention.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.json import encode

from pisync_common.times import parse_ms
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.erasure import ERASED_BODY, KEY_BYTES, Erased, hidden, id_hash, key_name, learner_hash
from pisync_receiver.domain.rows import EarlierEvent
from pisync_receiver.domain.submissions import Actor
from pisync_receiver.domain.sums import DailySums
from pisync_receiver.erasures_file import ErasuresFile, Line
from pisync_receiver.errors import ErasuresFileUnusable, UnknownLearner
from pisync_receiver.logs import fields
from pisync_receiver.store import Store
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.learners import FIRST, NamingLearner, RejectedPlace
from pisync_receiver.store.running import Query, Row, Sites, build

log = logging.getLogger(__name__)

BATCH: Final = 5_000
"""Events deleted in one transaction."""
BODIES: Final = 500
"""Bodies emptied in one transaction."""
CALL_S: Final = 2.0
"""How long one call deletes events; then its caller asks again."""
HOMES: Final = 1_000
"""Homes of one id that a call erases."""
_IDS: Final = 1_000
"""Learners' ids looked at in one query."""

_RECEIVER: Final = Actor(name="the receiver, at its start")


class Erasure(Struct, frozen=True, kw_only=True):
    """What was erased of a learner until now, or would be; `more` if the call is to be repeated."""

    receipt: str | None
    """Names the erasure in the audit log; None for a dry run."""
    homes: list[str | None]
    """The homes that the learner's id is erased under."""
    events: int
    rejected: int
    """Rejected events and conflicting versions whose bodies are emptied."""
    more: bool


class Eraser:
    """Erases learners from one store. Without the path of an erasures file a restored backup brings them back."""

    def __init__(
        self,
        store: Store,
        file: Path | None,
        *,
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._file = None if file is None else ErasuresFile(file)
        self._now_ms = now_ms
        self._clock = clock

    async def preview(self, learner_id: str, home: str | None, sites: Sites) -> Erasure:
        """Count what `erase` would delete. Raises UnknownLearner."""
        found = dict(await self._homes(learner_id, home, sites))
        if not found:
            raise UnknownLearner("nothing that is stored names this learner")
        rejected = [each async for each in self._rejected(learner_id) if not found.keys().isdisjoint(each.homes)]
        return Erasure(receipt=None, homes=list(found), events=sum(found.values()), rejected=len(rejected), more=False)

    async def erase(self, learner_id: str, home: str | None, sites: Sites, by: Actor) -> Erasure:
        """Delete what is stored of a learner: of one home, or of every home on `sites` that the id occurs under. Raises
        UnknownLearner where it occurs under none; ErasuresFileUnusable, having deleted nothing."""
        key = await self._key()
        learners = {each: learner_hash(key, each, learner_id) for each, _ in await self._homes(learner_id, home, sites)}
        known = await self._known(key, learner_id, home, sites)
        if not learners and not known:
            raise UnknownLearner(
                "nothing that is stored names this learner; with learner_home, what still arrives is not stored"
            )
        if new := {*learners.values()} - {row.learner for row in known}:
            await self._remember(new, id_hash(key, learner_id), by)
            known = await self._known(key, learner_id, home, sites)
        pending = {*learners.values()} | {row.learner for row in known if row.done_ms is None}
        more = not await self._erase_all(learner_id, learners)
        if not more:
            await self._empty_rejected(
                (each.place, hashes[0])
                async for each in self._rejected(learner_id)
                if (hashes := _among(pending, [key], each.homes, learner_id))
            )
            await self._end(pending, by)
        receipt = max(known, key=lambda row: row.asked_ms).receipt
        rows = [row for row in await self._known(key, learner_id, home, sites) if row.receipt == receipt]
        return Erasure(
            receipt=receipt,
            homes=list(learners),
            events=sum(row.events for row in rows),
            rejected=sum(row.rejected for row in rows),
            more=more,
        )

    async def resume(self) -> None:
        """Before anything is answered: erase again what a restored backup brought back, and finish what was
        interrupted; write down what the file lacks. Raises ErasuresFileUnusable."""
        known: dict[str, Erased] = {}
        while rows := await self._store.all_erased(after=max(known, default="")):
            known |= {row.learner: row for row in rows}
        if self._file is not None:
            lines = self._file.read()
            lacking = {line.learner: line for line in lines if line.learner not in known}
            if lacking:
                await self._restore(list(lacking.values()))
                log.warning(
                    "learners that were erased are in this database; erasing", extra=fields(learners=len(lacking))
                )
            written = {line.learner for line in lines}
            if unwritten := [row for learner, row in known.items() if learner not in written]:
                await self._write_again(unwritten)
            known |= {line.learner: _erased(line) for line in lacking.values()}
        if pending := {row.learner: row for row in known.values() if row.done_ms is None}:
            await self._finish(pending)

    # Finding.

    async def _homes(self, learner_id: str, home: str | None, sites: Sites) -> list[tuple[str | None, int]]:
        """The homes to erase an id under, and the events of each."""
        found = dict(await self._store.homes(learner_id, limit=HOMES))
        if home is not None:
            return [(home, found.get(home, 0))]
        async for each in self._rejected(learner_id):
            if found.keys().isdisjoint(each.homes):
                found[each.homes[0]] = 0
        return [(each, count) for each, count in found.items() if sites is None or each in sites]

    async def _known(self, key: bytes, learner_id: str, home: str | None, sites: Sites) -> list[Erased]:
        """What was erased under an id: of one home, or of every home that the caller may see."""
        rows = await self._store.erased([id_hash(key, learner_id)])
        if home is None and sites is None:
            return rows
        visible = {learner_hash(key, each, learner_id) for each in ((home,) if home is not None else sites or ())}
        return [row for row in rows if row.learner in visible]

    async def _rejected(self, learner_id: str | None) -> AsyncIterator[NamingLearner]:
        place: RejectedPlace | None = FIRST
        while place is not None:
            found, place = await self._store.rejected_naming(learner_id, place)
            for each in found:
                yield each

    # Remembering.

    async def _key(self) -> bytes:
        keys = await self._store.erasure_keys()
        if not keys:
            key = secrets.token_bytes(KEY_BYTES)
            await self._store.act([("lock_erasures", {}), ("all_erasure_keys", {})], lambda rows: _first(key, rows[1]))
            keys = await self._store.erasure_keys()
        return keys[0]

    async def _remember(self, learners: Iterable[str], hashed_id: str, by: Actor) -> None:
        """Write down that learners of one id are erased, under one receipt; what arrives of them is not stored."""
        receipt, now = secrets.token_hex(16), self._now_ms()
        rows = [Erased(learner=learner, id=hashed_id, receipt=receipt, asked_ms=now) for learner in sorted(learners)]
        if self._file is not None:
            await asyncio.to_thread(self._file.append, await self._store.erasure_keys(), rows)
        entry = audited(by, "learner.erase", f"erasure {receipt}", now, {"homes": len(rows)})
        added = [*(_added(row) for row in rows), audit_statement(entry)]
        await self._store.act([("lock_erasures", {})], lambda _: added)

    async def _write_again(self, rows: Sequence[Erased]) -> None:
        """Write to the file what the database knows. Without it the receiver serves: the database keeps them erased."""
        assert self._file is not None
        try:
            self._file.append(await self._store.erasure_keys(), rows)
        except ErasuresFileUnusable as error:
            log.error("a restored backup would bring erased learners back: %s", error)

    async def _restore(self, lines: Sequence[Line]) -> None:
        """Take from the file what this database does not know."""
        keys = {bytes.fromhex(key) for line in lines for key in line.keys}
        writes: list[Query] = [("add_secret", {"name": key_name(key), "value": key}) for key in sorted(keys)]
        writes += [_added(_erased(line)) for line in lines]
        for receipt in sorted({line.receipt for line in lines}):
            told = {"cause": "the erasures file knows it, and the database did not"}
            entry = audited(_RECEIVER, "learner.erase", f"erasure {receipt}", self._now_ms(), told)
            writes.append(audit_statement(entry))
        await self._store.act([("lock_erasures", {})], lambda _: writes)

    # Deleting.

    async def _erase_all(self, learner_id: str, learners: Mapping[str | None, str]) -> bool:
        """Delete a learner's events of some homes; return whether none is left when it is time to answer."""
        until = self._clock() + CALL_S
        for home, learner in learners.items():
            while await self._erase_batch(learner_id, home, learner) == BATCH:
                if self._clock() >= until:
                    return False
        return True

    async def _erase_batch(self, learner_id: str, home: str | None, learner: str) -> int:
        found: list[Row] = []

        def decide(rows: list[list[Row]]) -> list[Query]:
            found[:] = rows[1]
            if not found:
                return []
            places = json.dumps([row[1:4] for row in found])
            return [
                ("delete_keys_at", {"places": places}),
                ("delete_copies_of", {"places": places}),
                ("delete_events", {"ids": [row[0] for row in found]}),
                ("count_erased", {"learner": learner, "events": len(found), "rejected": 0}),
                _uncounted(EarlierEvent(*row[3:]) for row in found),
            ]

        wanted = {"learner": learner_id, "home": home, "limit": BATCH}
        await self._store.act([("lock_erasures", {}), ("events_to_erase", wanted)], decide)
        return len(found)

    async def _empty_rejected(self, places: AsyncIterable[tuple[RejectedPlace, str]]) -> None:
        """Empty the bodies at some places, each of a learner by its hash."""
        batch: list[tuple[RejectedPlace, str]] = []
        async for each in places:
            batch.append(each)
            if len(batch) == BODIES:
                await self._empty_batch(batch)
                batch = []
        if batch:
            await self._empty_batch(batch)

    async def _empty_batch(self, batch: Sequence[tuple[RejectedPlace, str]]) -> None:
        key = await self._key()
        writes: list[Query] = []
        for (device_id, stream, seq, content), learner in batch:
            place = {"device": device_id, "stream": stream, "seq": seq, "content": content}
            writes.append(("empty_rejected", {**place, "body": ERASED_BODY, "hidden": hidden(key, content)}))
            writes.append(("count_erased", {"learner": learner, "events": 0, "rejected": 1}))
        await self._store.act([], lambda _: writes)

    async def _end(self, learners: Container[str], by: Actor) -> None:
        """Note that nothing is left of learners, and how much it was."""
        await self._store.fold_sums()
        now = self._now_ms()

        def decide(rows: list[list[Row]]) -> list[Query]:
            ended = [row for row in (build(Erased, each) for each in rows[0]) if row.learner in learners]
            statements: list[Query] = [("end_erasure", {"learner": row.learner, "now": now}) for row in ended]
            for receipt in sorted({row.receipt for row in ended}):
                mine = [row for row in ended if row.receipt == receipt]
                told = {"events": sum(row.events for row in mine), "rejected": sum(row.rejected for row in mine)}
                statements.append(audit_statement(audited(by, "learner.erased", f"erasure {receipt}", now, told)))
            return statements

        await self._store.act([("unfinished_erasures", {})], decide)

    async def _finish(self, pending: dict[str, Erased]) -> None:
        """Erase learners of whom nothing is known but their hashes: look at all learners."""
        keys = await self._store.erasure_keys()
        ids = {row.id for row in pending.values()}
        after, seen = "", 0
        while names := await self._store.learner_ids(after=after, limit=_IDS):
            for name in names:
                if not ids.isdisjoint(id_hash(key, name) for key in keys):
                    for home, _ in await self._store.homes(name, limit=HOMES):
                        for learner in _among(pending, keys, [home], name):
                            while await self._erase_batch(name, home, learner) == BATCH:
                                pass
            after, seen = names[-1], seen + len(names)
            log.info("looking for learners to erase", extra=fields(looked_at=seen))
        await self._empty_rejected(
            (each.place, learner)
            async for each in self._rejected(None)
            for learner in _among(pending, keys, each.homes, each.learner_id)[:1]
        )
        await self._end(pending, _RECEIVER)
        log.warning("learners are erased", extra=fields(learners=len(pending)))


def _uncounted(events: Iterable[EarlierEvent]) -> Query:
    """Return what takes events from the daily sums."""
    sums = DailySums()
    for event in events:
        sums.take_event(event)
    return "put_sum_additions", {"body": encode(sums.rows()).decode()}


def _among(pending: Container[str], keys: Sequence[bytes], homes: Sequence[str | None], name: str) -> list[str]:
    hashes = (learner_hash(key, home, name) for key in keys for home in homes)
    return [learner for learner in hashes if learner in pending]


def _first(key: bytes, known: Sequence[Row]) -> list[Query]:
    return [] if known else [("add_secret", {"name": key_name(key), "value": key})]


def _added(row: Erased) -> Query:
    return "add_erased", {"learner": row.learner, "id": row.id, "receipt": row.receipt, "asked_ms": row.asked_ms}


def _erased(line: Line) -> Erased:
    return Erased(learner=line.learner, id=line.id, receipt=line.receipt, asked_ms=parse_ms(line.time))
