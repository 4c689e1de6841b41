"""The store on SQLite: one file, one writing connection with a thread of its own, a few read-only connections.

A group is planned, fetched, decided and written in this file, in one transaction on the writer's thread.
"""

import asyncio
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import asdict, astuple

from pisync_common.errors import NotDurable
from pisync_common.queries import load_queries
from pisync_common.sqlite import ERRORS, VERSION, Connect, Connection, make_durable, transaction
from pisync_common.sqlite import connect as connect_to
from pisync_common.times import now_ms
from pisync_receiver.domain.audit import AuditEntry, chained, with_target
from pisync_receiver.domain.decide import decide, details, plan
from pisync_receiver.domain.facts import Changes, Details, Facts, Failures, Plan, Version
from pisync_receiver.domain.health import FAILURES_COUNTED
from pisync_receiver.domain.rows import (
    Device,
    EarlierEvent,
    EnrollmentCode,
    StoredEvent,
    StoredSyncEvent,
    Stream,
    Token,
)
from pisync_receiver.domain.submissions import Outcome, Submission
from pisync_receiver.errors import DatabaseLost, QueryTooLong, StoreUnusable
from pisync_receiver.store import Store
from pisync_receiver.store.audit import APPEND, entries_of
from pisync_receiver.store.outcomes import access_statements, with_ids
from pisync_receiver.store.reading import HOUR_MS, LOOK_UP, QUERY_S, SHARED_SQL
from pisync_receiver.store.running import Decide, Query, Row, build
from pisync_receiver.store.sqlite import schema
from pisync_receiver.store.sqlite.file import DatabaseFile, check_log

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 4
"""Queries that run at once, each on a thread and a connection of its own."""
CACHE: Final = "cache_size = -32768"  # 32 MiB, where the default of 2 MiB would reread the indexes from disk
OVERWRITE: Final = "secure_delete = ON"  # zeros over what is deleted, as Debian's builds do: an erased learner is gone

_REFUSED: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)
"""The database refused rows, as it would again; other errors of SQLite are those of the file."""

_DEVICE: Final = Device.__struct_fields__
_STREAM: Final = Stream.__struct_fields__

_PROGRESS: Final = 20_000
"""Instructions of SQLite's machine between two looks at the clock: a millisecond or less."""
_limits = threading.local()
"""`at`: when a query on this thread is given up, by the monotonic clock."""


def connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """Open the database; a query on a reading connection ends when its thread's time is up."""
    connection = connect_to(path, readonly=readonly, private=True, pragmas=[CACHE, OVERWRITE])
    if readonly:
        connection.set_progress_handler(_is_late, _PROGRESS)
    return connection


def _is_late() -> bool:
    return time.monotonic() > getattr(_limits, "at", float("inf"))


class SqliteStore(Store):
    """The one writer of a database file, and its queries."""

    writers = 1

    def __init__(self, path: Path, connection: Connection, connect: Connect, *, query_s: float = QUERY_S) -> None:
        self._path = path
        self._query_s = query_s
        self._connection = connection
        self._connect = connect
        self._sql = load_sql()
        self._last_event: int | None = None  # unknown until the next event is stored
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pisync-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="pisync-reader")
        self._look_ups = ThreadPoolExecutor(1, thread_name_prefix="pisync-look-up")
        self._file = DatabaseFile(path, connection)
        self._keeper = connect(path, readonly=True)  # while it is open, closing the writer leaves the file alone
        self._keeper.execute("SELECT count(*) FROM pulse").fetchall()
        self._free: list[Connection] = []
        self._closed = False

    async def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        return await self._run(self._writer, self._write, submissions)

    async def ready(self) -> None:
        await self._run(self._writer, self._beat)

    async def act(self, reads: Sequence[Query], decide: Decide, *, lock: str | None = None) -> bool:
        return await self._run(self._writer, self._act, reads, decide)  # one process: every lock is free

    def connections(self) -> Mapping[str, tuple[int, int]]:
        return {}

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._look_ups.shutdown()
        closing = [self._keeper, self._connection]
        try:
            self._file.check()
        except DatabaseLost:
            closing.reverse()  # then the writer does not lay its log over what is at the path now
        for connection in (*self._free, *closing):
            with suppress(*ERRORS):
                connection.close()
        self._file.close()

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
        if self._closed:
            raise StoreUnusable(f"{self._path} was closed")
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)

    # Reading, on the readers' threads.

    async def _read(self, *queries: Query) -> list[list[Row]]:
        if queries[0][0] == LOOK_UP:
            threads = self._look_ups
        else:
            threads = self._readers
            if self._file.is_suspect():
                await self.ready()
        return await self._run(threads, self._select_in_time, queries, time.monotonic() + self._query_s)

    def _select_in_time(self, queries: Sequence[Query], until: float) -> list[list[Row]]:
        _limits.at = until
        try:
            if not _is_late():
                return self._select(queries)
        except StoreUnusable as error:
            if getattr(error.__cause__, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise
        finally:
            del _limits.at
        raise QueryTooLong(self._query_s)

    def _select(self, queries: Sequence[Query]) -> list[list[Row]]:
        with self._using("read"):
            connection = self._free.pop() if self._free else self._connect(self._path, readonly=True)
            try:
                if len(queries) > 1:
                    connection.execute("BEGIN")
                found = [connection.execute(self._sql[name], _bound(values)).fetchall() for name, values in queries]
                if len(queries) > 1:
                    connection.execute("COMMIT")
            except BaseException:
                with suppress(*ERRORS):
                    connection.close()  # whatever is wrong, the next query gets a fresh connection
                raise
            self._free.append(connection)
            return found

    @contextmanager
    def _using(self, doing: str) -> Iterator[None]:
        """Turn the engine's errors inside the block into StoreUnusable; raise DatabaseLost if the file is lost."""
        try:
            yield
        except ERRORS as error:
            raise self._failure(doing, error) from error
        self._file.check()

    def _failure(self, doing: str, error: Exception) -> StoreUnusable:
        """What to say of an error of the engine, which may be the consequence of what happened to the file."""
        try:
            self._file.check()
            self._file.note(error)
            self._file.check()
        except DatabaseLost as failure:
            failure.__cause__ = error
            return failure
        return _unusable(self._path, doing, error)

    # Writing, on the writer's thread.

    def _write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        if not submissions:
            return []
        try:
            return self._write_group(submissions)
        except StoreUnusable as error:
            return [error] * len(submissions)
        except Exception as error:
            failure = self._failure("written", error)
            if len(submissions) == 1 or (isinstance(error, ERRORS) and not isinstance(error, _REFUSED)):
                return [failure] * len(submissions)
            log.warning("a group of submissions was refused; it is halved", exc_info=True)
        # Find the submission that the database refuses in a logarithmic number of tries.
        middle = len(submissions) // 2
        return [*self._write(submissions[:middle]), *self._write(submissions[middle:])]

    def _write_group(self, submissions: Sequence[Submission]) -> list[Outcome]:
        wanted = plan(submissions)
        last_event, self._last_event = self._last_event, None
        with self._file.writing(), transaction(self._connection):
            facts = self._fetch(wanted)
            more = details(facts, submissions)
            if more is not None:
                self._fetch_details(facts, more)
            decision = decide(facts, submissions)
            ids, last_event = self._store(decision.changes, last_event)
        self._last_event = last_event
        return with_ids(decision.outcomes, ids) if ids else decision.outcomes

    def _fetch(self, wanted: Plan) -> Facts:
        facts = Facts()
        self._fetch_devices(facts, [*wanted.devices, *wanted.known_devices])
        for device_id in wanted.devices:
            if device_id not in facts.devices:
                facts.devices[device_id] = Device(device_id=device_id)
        if wanted.streams:
            for row in self._all("streams_by_name", json.dumps(wanted.streams)):
                facts.streams[row[0], row[1]] = Stream(**dict(zip(_STREAM, row, strict=True)))
        if wanted.sync_keys:
            for row in self._all("sync_events_by_key", json.dumps(wanted.sync_keys)):
                facts.sync_events[row[0], row[9]] = StoredSyncEvent(*row)
        for key in wanted.event_keys:
            self._fetch_event_key(facts, key)
        if wanted.sync_event_ids:
            ((last,),) = self._all("last_sync_event") or [(0,)]
            facts.sync_event_ids.extend(range(last + 1, last + 1 + wanted.sync_event_ids))
        if wanted.token_hashes or wanted.token_ids or wanted.tokens_of:
            self._fetch_tokens(facts, wanted.token_hashes, wanted.token_ids, wanted.tokens_of)
        if wanted.code_hashes or wanted.code_ids:
            rows = self._all("codes_wanted", json.dumps(wanted.code_hashes), json.dumps(wanted.code_ids))
            facts.codes.extend(build(EnrollmentCode, row) for row in rows)
        if wanted.learners:
            facts.erasure_keys.extend(key for (key,) in self._all("erasure_keys"))
        return facts

    def _fetch_details(self, facts: Facts, wanted: Details) -> None:
        for device_id, stream, seqs in wanted.versions:
            for seq, kind, content, detail, *_ in self._named("versions", device=device_id, stream=stream, seqs=seqs):
                facts.versions.setdefault((device_id, stream, seq), []).append(Version(kind, content, detail))
        for device_id, stream, count, seqs in wanted.gaps:
            about = {"device": device_id, "stream": stream, "count": count, "seqs": seqs}
            facts.gaps[device_id, stream] = self._named("gaps_wanted", **about)
        for device_id, stream, first, last in wanted.neighbours:
            place = {"device": device_id, "stream": stream, "first": first, "last": last}
            (facts.neighbours[device_id, stream],) = self._named("neighbours", **place)
        for device_id, stream, below, boot, limit in wanted.earlier:
            about = {"device": device_id, "stream": stream, "below": below, "boot": boot, "limit": limit}
            facts.earlier[device_id, stream, below] = [EarlierEvent(*row) for row in self._named("earlier", **about)]
        for device_id, at_ms in wanted.late_successes:
            (row,) = self._named("failures_after", device=device_id, at=at_ms, limit=FAILURES_COUNTED)
            facts.failures_after[device_id, at_ms] = Failures(*row)
        for key in wanted.event_keys:
            self._fetch_event_key(facts, key)
        if wanted.known_devices:
            self._fetch_devices(facts, wanted.known_devices)
        if wanted.tokens_of:
            self._fetch_tokens(facts, (), (), wanted.tokens_of)
        if wanted.learners:
            facts.erased.update(learner for (learner,) in self._named("erased_of", ids=list(wanted.learners)))
        if wanted.sessions_of:
            known = {token.id for token in facts.tokens}
            rows = self._named("sessions_of", parents=list(wanted.sessions_of))
            facts.tokens.extend(build(Token, row) for row in rows if row[0] not in known)

    def _fetch_devices(self, facts: Facts, device_ids: Sequence[str]) -> None:
        for row in self._named("devices_by_id", devices=list(device_ids)):
            device = Device(**dict(zip(_DEVICE, row, strict=True)))
            facts.devices[device.device_id] = device

    def _fetch_event_key(self, facts: Facts, key: tuple[str, bytes]) -> None:
        for place in self._all("event_key", *key):
            facts.event_keys[key] = place

    def _fetch_tokens(self, facts: Facts, hashes: Sequence[str], ids: Sequence[int], devices: Sequence[str]) -> None:
        known = {token.id for token in facts.tokens}
        rows = self._all("tokens_wanted", json.dumps(hashes), json.dumps(ids), json.dumps(devices))
        facts.tokens.extend(build(Token, row) for row in rows if row[0] not in known)

    def _store(self, changes: Changes, last_event: int | None) -> tuple[dict[str, int], int | None]:
        """Write every row; return the ids of new tokens and codes by their hash, and the last event's id."""
        rows: Sequence[Struct]
        for statement, rows in (
            ("delete_gap", changes.gaps_closed),
            ("insert_gap", changes.gaps),
            ("put_device", changes.devices),
            ("put_stream", changes.streams),
            ("insert_event_key", changes.event_keys),
            ("insert_carried", changes.carried),
            ("insert_rejected", changes.rejected),
            ("insert_sync_event", changes.sync_events),
            ("repair_event", changes.repaired),
        ):
            if rows:
                self._connection.executemany(self._sql[statement], map(astuple, rows))
        if changes.sums:
            self._named("put_sum_additions", body=encode(changes.sums).decode())
        if changes.events:
            last_event = self._put_events(changes.events, last_event)
        ids: dict[str, int] = {}
        if changes.tokens or changes.tokens_changed or changes.codes or changes.codes_changed:
            for statement, rows in access_statements(changes):
                for row in rows:
                    ids.update(self._named(statement, **asdict(row)))
        if changes.sessions_before_ms is not None:
            self._named("delete_sessions", before=changes.sessions_before_ms)
        self._append_audit([with_target(entry, ids) for entry in changes.audit])
        return ids, last_event

    def _put_events(self, events: Sequence[StoredEvent], last: int | None) -> int:
        first = 1 + (self._all("last_event")[0][0] if last is None else last)
        rows = [(number, *astuple(event)) for number, event in enumerate(events, first)]
        self._connection.executemany(self._sql["insert_event"], rows)
        hours: dict[int, list[int]] = {}
        for number, event in enumerate(events, first):
            hours.setdefault(event.received_ms // HOUR_MS, [number, number])[1] = number
        for hour, (begun, ended) in hours.items():
            self._all("put_arrivals", hour, begun, ended)
        return first + len(events) - 1

    def _beat(self) -> None:
        with self._using("written"), self._file.writing(), transaction(self._connection):
            self._connection.execute(self._sql["beat"])

    def _act(self, reads: Sequence[Query], decide: Decide) -> bool:
        with self._using("written"), self._file.writing(), transaction(self._connection):
            decided = decide([self._named(name, **values) for name, values in reads])
            for name, values in decided:
                if name != APPEND:
                    self._named(name, **values)
            self._append_audit(entries_of(decided))
        return True

    def _append_audit(self, entries: Sequence[AuditEntry]) -> None:
        if entries:
            last = self._named("last_audit")
            for row in chained(entries, last[0] if last else None):
                self._named("insert_audit", **row)

    def _all(self, query: str, *values: object) -> list[Any]:
        return self._connection.execute(self._sql[query], values).fetchall()

    def _named(self, query: str, **values: object) -> list[Any]:
        return self._connection.execute(self._sql[query], _bound(values)).fetchall()


def open_store(
    path: Path, *, create: bool = False, connect: Connect = connect, now_ms: Callable[[], int] = now_ms
) -> SqliteStore:
    """Open the database for writing; the caller holds the writer's lock. `create` makes it if there is none.

    Raises SchemaMismatch for a schema that is not this program's, StoreUnusable if it cannot be opened or a commit
    would not survive a power cut.
    """
    if not create and not path.exists():
        raise StoreUnusable(f"there is no database {path}; `pisync-receiver serve` makes one")
    connection = _open(path, connect)
    try:
        with unusable(path, "opened"):
            if create and schema.is_new(connection):
                schema.migrate(connection, path, now_ms=now_ms())
            schema.check(connection, path)
            store = SqliteStore(path, connection, connect)
    except BaseException:
        connection.close()
        raise
    log.info("opened %s with SQLite %s", path, VERSION)
    return store


def migrate(
    path: Path,
    *,
    connect: Connect = connect,
    now_ms: Callable[[], int] = now_ms,
    begin: Callable[[], None] = lambda: None,
) -> list[str]:
    """Bring the schema up, making the database if there is none; return what was applied. Safe to repeat.

    Raises SchemaMismatch for a database of a newer program or another build, changing nothing.
    """
    connection = _open(path, connect)
    try:
        with unusable(path, "migrated"):
            applied = schema.migrate(connection, path, now_ms=now_ms(), begin=begin)
            return [f"{migration.number:04d}_{migration.name}" for migration in applied]
    finally:
        connection.close()


@contextmanager
def unusable(path: Path, doing: str) -> Iterator[None]:
    """Turn the engine's errors inside the block into StoreUnusable."""
    try:
        yield
    except ERRORS as error:
        raise _unusable(path, doing, error) from error


def _unusable(path: Path, doing: str, error: Exception) -> StoreUnusable:
    failure = StoreUnusable(f"{path} cannot be {doing}: {error}")
    failure.__cause__ = error
    return failure


def _open(path: Path, connect: Connect) -> Connection:
    check_log(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreUnusable(f"{path.parent} cannot be made: {error.strerror}") from error
    with unusable(path, "opened"):
        connection = connect(path, readonly=False)
        try:
            make_durable(connection, path)
        except NotDurable as error:
            connection.close()
            raise StoreUnusable(str(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection


@cache
def load_sql() -> Mapping[str, str]:
    """Return every statement by its name: those shared and those of this engine."""
    own = Path(__file__).parent / "sql"
    files = (*sorted(SHARED_SQL.glob("*.sql")), *sorted(own.glob("*.sql")))
    return {name: sql for file in files for name, sql in load_queries(file).items()}


def _bound(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a statement; a list is a JSON array."""
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}
