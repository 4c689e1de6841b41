"""The store on PostgreSQL: any number of receivers write one database, each over a few connections.

A group is one transaction of two round trips, or three if `details` asks for more. It is tried again over a new
connection when its own was lost, even at the commit: every submission is recognised when it comes again.
"""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import psycopg
from msgspec.structs import asdict, replace
from psycopg import AsyncCursor, AsyncRawCursor, errors
from psycopg.rows import class_row, tuple_row

from pisync_common.queries import load_queries
from pisync_receiver.domain import erasure
from pisync_receiver.domain.audit import AuditEntry, chained, with_target
from pisync_receiver.domain.decide import decide, details, plan
from pisync_receiver.domain.facts import Changes, Details, Facts, Failures, Plan, Version
from pisync_receiver.domain.health import FAILURES_COUNTED
from pisync_receiver.domain.rows import (
    Device,
    EarlierEvent,
    EnrollmentCode,
    EventKey,
    StoredEvent,
    StoredSyncEvent,
    Stream,
    Token,
)
from pisync_receiver.domain.submissions import EventBatch, Outcome, Submission, SyncEvent
from pisync_receiver.errors import QueryTooLong, StoreUnusable
from pisync_receiver.store import Store
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.audit import APPEND, entries_of
from pisync_receiver.store.outcomes import access_statements, with_ids
from pisync_receiver.store.postgres.connection import LOST, Connection, Pool, abort, in_use, make_pool, reason, unusable
from pisync_receiver.store.postgres.dialect import load_shared
from pisync_receiver.store.reading import HOUR_MS, LOOK_UP, QUERY_S, SHARED_SQL
from pisync_receiver.store.running import Decide, Query, Row

log = logging.getLogger(__name__)

WRITERS: Final = 2
READERS: Final = 4
"""Their own pool, so that slow queries never keep a group from its connection."""
PATIENCE_S: Final = 10.0
"""How long a group is tried while the server is away."""
WRITE_S: Final = 20.0
READ_S: Final = 20.0
LOOK_UP_S: Final = 10.0
"""Bounds on a silent server: of a group, of a query (the server's own is QUERY_S), of looking up tokens."""

_PAUSE_S: Final = 0.1
_CONFLICTS: Final = (errors.UniqueViolation, errors.SerializationFailure, errors.DeadlockDetected)
"""Another receiver was faster: the next try sees what it wrote."""
_CONFLICTS_MAX: Final = 5

T = TypeVar("T")
Statement = tuple[str, Sequence[Any] | Mapping[str, Any], Any]
"""Name of a query, its parameters (by name, if the query is shared), and the type of its rows; None for tuples."""
_COMMIT: Final[Statement] = ("commit", (), None)


class PostgresStore(Store):
    """One process's connections to a database."""

    writers = WRITERS

    def __init__(
        self,
        url: PostgresUrl,
        *,
        patience_s: float = PATIENCE_S,
        write_s: float = WRITE_S,
        read_s: float = READ_S,
        query_s: float = QUERY_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self._patience_s = patience_s
        self._write_s = write_s
        self._read_s = read_s
        self._query_s = query_s
        self._clock = clock
        self._sleep = sleep
        self._sql = load_sql()
        self._writing = make_pool(url, name="writers", size=WRITERS, wait_s=patience_s)
        self._reading = make_pool(url, name="readers", size=READERS, wait_s=patience_s)
        self._process = secrets.token_hex(8)
        self._erasure_keys: tuple[bytes, ...] = ()
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        await self._writing.open()
        await self._reading.open()

    async def aclose(self) -> None:
        await self._writing.close()
        await self._reading.close()

    def connections(self) -> Mapping[str, tuple[int, int]]:
        return {"readers": in_use(self._reading), "writers": in_use(self._writing)}

    @asynccontextmanager
    async def _lend(self, pool: Pool, bound_s: float) -> AsyncIterator[Connection]:
        """Lend a connection, aborted after `bound_s`; roll back what an exception leaves open."""
        timer: asyncio.TimerHandle | None = None
        try:
            async with pool.connection() as connection:
                timer = asyncio.get_running_loop().call_later(bound_s, abort, connection)
                yield connection
        finally:
            if timer is not None:
                timer.cancel()

    # Reading.

    async def _read(self, *wanted: Query) -> list[list[Row]]:
        with unusable(self.url, "read"):
            return await self._persistently(partial(self._select, wanted), "read", self._deadline())

    async def _select(self, wanted: Sequence[Query]) -> list[list[Row]]:
        """Run queries in one round trip and on one snapshot."""
        looks_up = wanted[0][0] == LOOK_UP
        pool, bound_s = (self._writing, LOOK_UP_S) if looks_up else (self._reading, self._read_s)
        async with self._lend(pool, bound_s) as connection:
            try:
                async with connection.pipeline():
                    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    await connection.execute(self._sql["limit_query"], {"ms": str(round(self._query_s * 1000))})
                    cursors = [await connection.execute(self._sql[name], values) for name, values in wanted]
                    await connection.execute("COMMIT")
                return [await cursor.fetchall() for cursor in cursors]
            except errors.QueryCanceled as error:
                raise QueryTooLong(self._query_s) from error

    async def lags(self) -> Mapping[str, int]:
        return dict(await self._rows("lags"))

    # Writing.

    async def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        if not submissions:
            return []
        return await self._write(list(map(self._recognisable, submissions)), self._deadline())

    async def ready(self) -> None:
        with unusable(self.url, "write"):
            await self._persistently(self._beat, "write", self._deadline())

    async def act(self, reads: Sequence[Query], decide: Decide, *, lock: str | None = None) -> bool:
        with unusable(self.url, "write"):
            return await self._persistently(partial(self._act, reads, decide, lock), "write", self._deadline())

    def _deadline(self) -> float:
        return self._clock() + self._patience_s

    def _recognisable(self, submission: Submission) -> Submission:
        """Give a sync event without a key a key of ours: the next try finds it if this try was committed."""
        if isinstance(submission, SyncEvent) and submission.idempotency_key is None:
            return replace(submission, idempotency_key=f"~{self._process}-{next(self._numbers):x}")
        return submission

    async def _write(self, submissions: Sequence[Submission], deadline: float) -> list[Outcome]:
        try:
            return await self._persistently(partial(self._try, submissions), "write", deadline)
        except StoreUnusable as error:
            return [error] * len(submissions)
        except Exception as error:
            if len(submissions) == 1:
                return [self._failure("write", error)]
            leaks = isinstance(error, psycopg.Error)  # its further lines may quote what was sent
            log.warning("the database refused a group; halving it: %s", reason(error), exc_info=not leaks)
        # Find the submission that is refused in a logarithmic number of tries.
        middle = len(submissions) // 2
        return [
            *await self._write(submissions[:middle], deadline),
            *await self._write(submissions[middle:], deadline),
        ]

    async def _try(self, submissions: Sequence[Submission]) -> list[Outcome]:
        async with self._lend(self._writing, self._write_s) as connection:
            facts = await self._fetch(connection, plan(submissions), self._asked(submissions))
            if (wanted := details(facts, submissions)) is not None:
                await self._fetch_details(connection, facts, wanted)
            decision = decide(facts, submissions)
            ids = await self._store(connection, facts, decision.changes)
        return with_ids(decision.outcomes, ids) if ids else decision.outcomes

    async def _persistently(self, operation: Callable[[], Awaitable[T]], doing: str, deadline: float) -> T:
        """Try until the deadline while another try may help. Raises StoreUnusable, and what the server refuses."""
        conflicts = 0
        while self._clock() <= deadline:
            try:
                return await operation()
            except _CONFLICTS as error:
                conflicts += 1
                if isinstance(error, errors.UniqueViolation) and conflicts > _CONFLICTS_MAX:
                    raise
                problem: Exception = error
            except LOST as error:
                problem = error
            if self._clock() + _PAUSE_S > deadline:
                raise self._failure(doing, problem)
            log.warning("cannot %s the database; trying again: %s", doing, reason(problem))
            await self._sleep(_PAUSE_S)
        raise StoreUnusable(f"cannot {doing} {self.url}: others of the group took all the time; nothing was stored")

    def _failure(self, doing: str, error: Exception) -> StoreUnusable:
        unknown = "; whether it was stored is unknown" if doing == "write" else ""
        failure = StoreUnusable(f"cannot {doing} {self.url}: {reason(error)}{unknown}")
        failure.__cause__ = error
        return failure

    async def _exchange(self, connection: Connection, statements: Sequence[Statement]) -> list[list[Any]]:
        """Send statements in one round trip; return the rows of each."""
        cursors = []
        async with connection.pipeline():
            for name, values, row_type in statements:
                kind = AsyncCursor if isinstance(values, Mapping) else AsyncRawCursor
                cursor = kind(connection, row_factory=tuple_row if row_type is None else class_row(row_type))
                cursors.append(await cursor.execute(self._sql[name], values))
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    # Fetching.

    async def _fetch(self, connection: Connection, wanted: Plan, learners: Sequence[str]) -> Facts:
        """Begin the transaction, lock the devices and read what was planned."""
        statements = self._begin(learners=wanted.learners)
        if wanted.devices:
            statements.append(("lock_devices", (wanted.devices,), Device))
        statements += [("lock_device", (device_id,), Device) for device_id in wanted.known_devices]
        if wanted.streams:
            statements.append(("find_streams", _columns(wanted.streams), Stream))
        if wanted.sync_keys:
            statements.append(("find_sync_events", _columns(wanted.sync_keys), StoredSyncEvent))
        if wanted.event_keys:
            statements.append(("find_event_keys", _columns(wanted.event_keys), EventKey))
        if wanted.sync_event_ids:
            statements.append(("take_sync_event_ids", (wanted.sync_event_ids,), None))
        if wanted.code_hashes or wanted.code_ids:
            statements.append(("lock_codes", (wanted.code_hashes, wanted.code_ids), EnrollmentCode))
        if wanted.token_hashes or wanted.token_ids or wanted.tokens_of:
            statements.append(("lock_tokens", (wanted.token_hashes, wanted.token_ids, wanted.tokens_of), Token))
        if learners:
            statements.append(("erased_of", {"ids": learners}, None))
        keys_asked = self._erasure_keys
        _, ((*_, keys),), *found = await self._exchange(connection, statements)
        self._erasure_keys = tuple(keys or self._erasure_keys)
        facts = Facts(erasure_keys=keys or [], keys_asked=keys_asked)
        if learners:
            facts.erased.update(learner for (learner,) in found.pop())
        for rows in found:
            _add(facts, rows)
        return facts

    def _asked(self, submissions: Sequence[Submission]) -> list[str]:
        """Hashes of the ids of all learners, with the keys that earlier groups got: without them, if a learner was
        erased, a group needs another exchange."""
        if not self._erasure_keys:
            return []
        return erasure.asked(self._erasure_keys, (each for each in submissions if isinstance(each, EventBatch)))

    def _begin(self, *, learners: bool = False) -> list[Statement]:
        return [("begin", (), None), ("bounds", (str(round(self._patience_s * 1000)), learners), None)]

    async def _fetch_details(self, connection: Connection, facts: Facts, wanted: Details) -> None:
        statements: list[Statement] = [("lock_device", (device_id,), Device) for device_id in wanted.known_devices]
        if wanted.event_keys:
            statements.append(("find_event_keys", _columns(wanted.event_keys), EventKey))
        if wanted.tokens_of:
            statements.append(("lock_tokens", ([], [], wanted.tokens_of), Token))
        if wanted.sessions_of:
            statements.append(("sessions_of", {"parents": list(wanted.sessions_of)}, Token))
        plain = len(statements)
        gaps = [(*place, seqs or [0]) for *place, seqs in wanted.gaps]  # an empty array would have no type
        statements += [("versions", _named("device stream seqs", values), None) for values in wanted.versions]
        statements += [("gaps_wanted", _named("device stream count seqs", values), None) for values in gaps]
        statements += [("neighbours", _named("device stream first last", values), None) for values in wanted.neighbours]
        statements += [("earlier", _named("device stream below boot limit", values), None) for values in wanted.earlier]
        statements += [
            ("failures_after", {"device": device_id, "at": at_ms, "limit": FAILURES_COUNTED}, None)
            for device_id, at_ms in wanted.late_successes
        ]
        if wanted.learners:
            statements.append(("erased_of", {"ids": list(wanted.learners)}, None))
        found = await self._exchange(connection, statements)
        if wanted.learners:
            facts.erased.update(learner for (learner,) in found.pop())
        for rows in found[:plain]:
            _add(facts, rows)
        results = iter(found[plain:])
        for device_id, stream, _ in wanted.versions:
            for seq, kind, content, detail, *_ in next(results):
                facts.versions.setdefault((device_id, stream, seq), []).append(Version(kind, content, detail))
        for device_id, stream, *_ in wanted.gaps:
            facts.gaps[device_id, stream] = next(results)
        for device_id, stream, *_ in wanted.neighbours:
            (facts.neighbours[device_id, stream],) = next(results)
        for device_id, stream, below, *_ in wanted.earlier:
            facts.earlier[device_id, stream, below] = [EarlierEvent(*row) for row in next(results)]
        for late in wanted.late_successes:
            (row,) = next(results)
            facts.failures_after[late] = Failures(*row)

    # Storing.

    async def _beat(self) -> None:
        async with self._lend(self._writing, self._write_s) as connection:
            await self._exchange(connection, [("beat", {}, None)])

    async def _store(self, connection: Connection, facts: Facts, changes: Changes) -> dict[str, int]:
        """Write the rows and commit; return the ids of new tokens and codes by their hashes."""
        known = [device for device in changes.devices if device.device_id in facts.devices]
        new = [device for device in changes.devices if device.device_id not in facts.devices]
        lists: list[tuple[str, Sequence[Any]]] = [
            ("change_devices", known),
            ("close_gaps", changes.gaps_closed),
            ("add_devices", new),
            ("put_streams", changes.streams),
            ("add_gaps", changes.gaps),
            ("add_event_keys", changes.event_keys),
            ("add_carried", changes.carried),
            ("add_rejected", changes.rejected),
            ("add_sync_events", changes.sync_events),
            ("repair_events", changes.repaired),
        ]
        statements: list[Statement] = [(name, (encode_rows(rows),), None) for name, rows in lists if rows]
        statements += [(name, asdict(row), None) for name, changed in access_statements(changes) for row in changed]
        if changes.sessions_before_ms is not None:
            statements.append(("delete_sessions", {"before": changes.sessions_before_ms}, None))
        if changes.events:
            statements += _event_statements(changes.events)
        if changes.sums:
            statements.append(("put_sum_additions", {"body": encode_rows(changes.sums)}, None))
        found = await self._exchange(connection, statements if changes.audit else [*statements, _COMMIT])
        ids = {digest: number for rows in found for digest, number in rows}
        if changes.audit:
            await self._append_audit(connection, [with_target(entry, ids) for entry in changes.audit])
        return ids

    async def _append_audit(self, connection: Connection, entries: Sequence[AuditEntry]) -> None:
        """Add to the audit log, and commit."""
        *_, last = await self._exchange(connection, [("lock_audit", (), None), ("last_audit", {}, None)])
        rows = chained(entries, last[0] if last else None)
        await self._exchange(connection, [*(("insert_audit", row, None) for row in rows), _COMMIT])

    async def _act(self, reads: Sequence[Query], decide: Decide, lock: str | None) -> bool:
        async with self._lend(self._writing, self._write_s) as connection:
            begin = self._begin()
            if lock is not None:
                *_, ((free,),) = await self._exchange(connection, [*begin, ("try_lock", (lock,), None)])
                if not free:
                    await self._exchange(connection, [("commit", (), None)])
                    return False
                begin = []
            found = await self._exchange(connection, [*begin, *((name, values, None) for name, values in reads)])
            decided = decide(found[len(begin) :])
            statements: list[Statement] = [(name, values, None) for name, values in decided if name != APPEND]
            if entries := entries_of(decided):
                await self._exchange(connection, statements)
                await self._append_audit(connection, entries)
            else:
                await self._exchange(connection, [*statements, _COMMIT])
            return True


@cache
def load_sql() -> Mapping[str, bytes]:
    """Return every statement by its name: those shared and those of this engine."""
    own = Path(__file__).parent / "sql"
    found = {name: sql for file in sorted(SHARED_SQL.glob("*.sql")) for name, sql in load_shared(file).items()}
    for file in (own / "queries.sql", own / "notices.sql"):
        found |= load_shared(file)
    found |= load_queries(own / "write.sql")
    found |= {"begin": "BEGIN;", "commit": "COMMIT;"}
    found["limit_query"] = "SELECT set_config('statement_timeout', %(ms)s, true)"
    return {query: sql.encode() for query, sql in found.items()}


def _named(names: str, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names.split(), values, strict=True))


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _add(facts: Facts, rows: Sequence[Any]) -> None:
    for row in rows:
        match row:
            case Device():
                facts.devices[row.device_id] = row
            case Stream():
                facts.streams[row.device_id, row.stream] = row
            case StoredSyncEvent():
                facts.sync_events[row.device_id, row.idempotency_key or ""] = row
            case EventKey():
                facts.event_keys[row.device_id, row.key] = (row.stored_device_id, row.stream, row.seq)
            case Token():
                facts.tokens.append(row)
            case EnrollmentCode():
                facts.codes.append(row)
            case (number,):
                facts.sync_event_ids.append(number)


def _event_statements(events: Sequence[StoredEvent]) -> list[Statement]:
    hours: dict[int, tuple[int, int]] = {}
    for place, event in enumerate(events, 1):
        hour = event.received_ms // HOUR_MS
        hours[hour] = (hours.get(hour, (place,))[0], place)
    arrivals = [{"hour": hour, "first_id": first, "last_id": last} for hour, (first, last) in hours.items()]
    count = len(events)
    return [
        ("take_arrival_numbers", (count,), None),
        ("add_events", (encode_rows(events), count), None),
        ("add_arrivals", (encode_rows(arrivals), count), None),
    ]


_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_encode = msgspec.json.Encoder().encode


def encode_rows(rows: Sequence[object]) -> str:
    """Return rows as a JSON array of objects, the fastest way to hand many rows to one statement.

    PostgreSQL's text holds no NUL: U+FFFD stands in its place.
    """
    encoded = _encode(rows)
    if b"\\u0000" in encoded:
        encoded = _NUL.sub(rb"\1\\ufffd", encoded)
    return encoded.decode()
