"""Salvage: what an outbox file still holds is transferred into a new file with a new stream.

Of a broken file: every event that can be read and was not delivered yet, its dead letters, pending sync events and
notes. If the row of pointers cannot be read, what was delivered is unknown, and all readable events are transferred:
each has its `origin`, so the receiver recognises what it has. An event whose text is not what was recorded becomes a
dead letter `damaged`. One sync event with `errors {"storage": 1}` tells the receiver.

Of an intact file (a new stream after a conflict) the same, without the sync event; events in conflict are transferred
too.

An event's origin is where it was *first* recorded: an event that was transferred before keeps its origin.
`swap` puts the new file in the place of the old one.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pisync_agent.outbox import database, event_rows, files, pointers, sync_event_rows
from pisync_agent.outbox.database import BrokenOutbox, queries
from pisync_agent.outbox.events import renumber, seq_of
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.pointers import Pointers, checksum
from pisync_agent.outbox.recovery import swap
from pisync_agent.outbox.recovery.sqlite_pages import WAL_HEADER, LogHeader, Pages, Row, frames
from pisync_common.limits import MIB, SEQ_MAX
from pisync_common.models import Origin, Stamp
from pisync_common.sqlite import ERRORS, Connect, Connection, transaction

CHECKED_WHOLE_BYTES: Final = 1 * MIB
"""A file up to this size is checked page by page when it is opened; a larger one where it matters most."""

_CHUNK: Final = 500
"""Events written in one transaction."""
_UNKNOWN: Final = "unknown"
_LOST_COMMITS: Final = 2
"""Commits behind a broken frame that prove later damage to the log: a power cut tears only the last commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """One row of the events table, as it could be read."""

    seq: int
    body: str
    attempt: int | None
    id: str | None
    intact: bool


@dataclass(kw_only=True)
class Contents:
    """What a file holds, except for its events: they are read again, page by page, when they are written."""

    state: Pointers | None = None
    stream: str = _UNKNOWN
    dead: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    sync_events: dict[str, QueuedSyncEvent] = field(default_factory=dict)
    salvaged: dict[tuple[Any, ...], None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    leaves: list[tuple[int, int]] = field(default_factory=list)
    """(lowest seq, page) of each page with events."""


# Noticing that a file is broken


def hidden_damage(path: Path) -> str | None:
    """Return what SQLite would silently ignore, and destroy, when it opens `path`; None if all is well.

    SQLite reads a log up to its first broken frame, ignores the rest, and deletes it when it closes the file. A power
    cut tears only the last commit, which was not acknowledged: more commits behind a broken frame are lost commits.
    Raises OSError.
    """
    log = files.companion(path, "-wal")
    if not log.exists() or log.stat().st_size <= WAL_HEADER:
        return None
    if not path.exists() or path.stat().st_size == 0:
        return "the database file is empty, its log is not"
    header = LogHeader.read(log)
    if header is None or not header.intact:
        return "the log's header is destroyed"
    broken, behind = False, 0
    for frame in frames(log):
        broken = broken or not frame.intact
        behind += broken and frame.commits
    return f"{behind} commits follow a broken frame of the log" if behind >= _LOST_COMMITS else None


def check(connection: Connection, path: Path) -> None:
    """Check an open file where damage is most likely to show; raise BrokenOutbox or the connection's own error."""
    now = pointers.load(connection)
    last, _ = event_rows.last_event(connection, now)
    first = event_rows.first_held(connection, now)
    if not (0 <= now.trimmed <= last and first == now.trimmed + 1 and now.delivered <= last):
        raise BrokenOutbox(f"events {first} to {last} are held, {now.trimmed} were trimmed, {now.delivered} delivered")
    event_rows.read(connection, max(0, last - 10), max_events=10, max_bytes=MIB)
    if path.stat().st_size <= CHECKED_WHOLE_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise BrokenOutbox(found)


# Reading it


def read_file(path: Path) -> Contents:
    """Read a file, broken or not. Raises OSError."""
    found = Contents()
    states: list[Pointers] = []
    with Pages(path) as pages:
        for number in pages.numbers():
            lowest = None
            for row in pages.rows(number):
                if (event := _event(row)) is not None:
                    lowest = event.seq if lowest is None else min(lowest, event.seq)
                else:
                    _sort(row, found, states)
            if lowest is not None:
                found.leaves.append((lowest, number))
    if states:
        found.state = min(states, key=lambda state: state.delivered)
    found.stream = found.state.stream if found.state else found.notes.get("stream", _UNKNOWN)
    found.leaves.sort()
    return found


def _sort(row: Row, found: Contents, states: list[Pointers]) -> None:
    """File a row of any table but events; its shape tells which table it is from."""
    match row.values:
        case (None, str(), int(), int(), int(), int(), int()) as state if checksum(state[1:6]) == state[6]:
            states.append(Pointers.from_row(state[1:]))
        case (None, str(stream), int(seq), str(), str(), str(), int() | None, int()) as dead:
            found.dead.setdefault((stream, seq), dead[1:])
        case (None, str(key), int(), str(), int(), int(), int(), str(), float() | int(), int()) as event:
            try:
                found.sync_events.setdefault(key, sync_event_rows.from_row((row.rowid, *event[1:])))
            except BrokenOutbox:  # damaged: progress events matter more
                return
        case (None, int(), str(), int(), int(), str()) as salvaged:
            found.salvaged.setdefault(salvaged[1:])
        case (str(name), str(value)):
            found.notes.setdefault(name, value)


def _event(row: Row) -> _Found | None:
    """Return the row as an event, intact or not; None if it is from another table."""
    match row.values:
        case (None, int(crc), int(), int() | None as attempt, str() | bytes() | None as id, str() | bytes() as body):
            text = body if isinstance(body, str) else body.decode("utf-8", "replace")
            stated = seq_of(text)
            intact = isinstance(body, str) and zlib.crc32(body.encode()) == crc and stated is not None
            seq = stated if intact and stated is not None else row.rowid
            if not 1 <= seq <= SEQ_MAX:
                return None
            id = id if isinstance(id, str) and id else None
            return _Found(seq=seq, body=text, attempt=attempt, id=id, intact=intact)
    return None


def _events(pages: Pages, contents: Contents) -> Iterator[_Found]:
    """Yield all events, nearly in order; intact events come before damaged events of the same page."""
    for _, number in contents.leaves:
        found = [event for row in pages.rows(number) if (event := _event(row)) is not None]
        yield from sorted(found, key=lambda event: (event.seq, not event.intact))


# Writing the new one


def build(
    path: Path,
    contents: Contents,
    *,
    broken: bool,
    reason: str,
    stream: str,
    key: str,
    stamp: Stamp,
    connect: Connect,
) -> Path:
    """Write `outbox.new.db` beside `path`; return the name under which to set `path` aside."""
    target = swap.aside_path(path, at_ms=stamp.at_ms, stream=contents.stream, broken=broken)
    swap.discard_new(path)
    new = swap.new_path(path)
    files.touch(new)
    connection = connect(new, readonly=False)
    try:
        database.make_durable(connection, new)
        database.migrate(connection, new)
        with transaction(connection):
            begin_stream(connection, stream)
            _write_rest(connection, contents, skip_conflicts=not broken)
            if broken:
                notice = QueuedSyncEvent(key=key, stamp=stamp, files=0, errors={"storage": 1})
                sync_event_rows.add(connection, notice)
        writer = _Writer(connection, contents, conflicts=not broken)
        with Pages(path) as pages:
            writer.write(_events(pages, contents))
        with transaction(connection):
            row = (stamp.at_ms, reason, writer.transferred, writer.damaged, target.name)
            connection.execute(queries()["insert_salvaged"], row)
        # Writes everything into the file and flushes it: `swap` renames it as it is.
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise sqlite3.OperationalError("the new file's log could not be written back")
    finally:
        with contextlib.suppress(*ERRORS):
            connection.close()
    return target


def begin_stream(connection: Connection, stream: str) -> None:
    """Write the first rows of a new file. The stream's name is stored twice: if one copy is lost, the other remains."""
    pointers.insert(connection, Pointers(stream=stream))
    connection.execute(queries()["set_note"], ("stream", stream))


def _write_rest(connection: Connection, contents: Contents, *, skip_conflicts: bool) -> None:
    for letter in contents.dead.values():
        stream, seq, code, detail, body, requeued_as, local = letter
        becomes_an_event = skip_conflicts and code == "conflict" and stream == contents.stream
        if requeued_as is None and not becomes_an_event:
            connection.execute(queries()["insert_dead_letter"], (stream, seq, code, detail, body, local))
    for event in sorted(contents.sync_events.values(), key=lambda event: event.id or 0):
        sync_event_rows.insert(connection, event)
    for row in contents.salvaged:
        connection.execute(queries()["insert_salvaged"], row)
    for name, value in contents.notes.items():
        if name != "stream":
            connection.execute(queries()["set_note"], (name, value))


class _Writer:
    """Writes events under new numbers, each old number once."""

    def __init__(self, connection: Connection, contents: Contents, *, conflicts: bool) -> None:
        self._connection = connection
        self._stream = contents.stream
        self._delivered = contents.state.delivered if contents.state else 0
        here = [(seq, letter) for (stream, seq), letter in contents.dead.items() if stream == contents.stream]
        self._dead = {seq for seq, _ in here}
        self._again = {
            seq: letter[4] for seq, letter in here if conflicts and letter[2] == "conflict" and letter[5] is None
        }
        self._written = _Numbers()
        self._seq = self._offset = 0
        self.transferred = 0
        self.damaged = 0

    def write(self, events: Iterable[_Found]) -> None:
        """Write events in conflict first, because they are the oldest, then `events`."""
        known = [
            _Found(seq=seq, body=body, attempt=None, id=None, intact=True) for seq, body in sorted(self._again.items())
        ]
        self._in_chunks(known, self._transfer)
        self._in_chunks((event for event in events if self._wanted(event)), self._place)

    def _in_chunks(self, events: Iterable[_Found], put: Callable[[_Found], None]) -> None:
        source = iter(events)
        more = True
        while more:
            with transaction(self._connection):
                for _ in range(_CHUNK):
                    event = next(source, None)
                    more = event is not None
                    if event is None:
                        break
                    put(event)

    def _wanted(self, event: _Found) -> bool:
        return event.seq > self._delivered and event.seq not in self._dead and event.seq not in self._written

    def _place(self, event: _Found) -> None:
        if event.intact:
            self._transfer(event)
        else:
            self._move_to_dead_letters(event)

    def _transfer(self, event: _Found) -> None:
        self._written.add(event.seq)
        try:
            origin = Origin(stream=self._stream, seq=event.seq)
            body = renumber(event.body, seq=self._seq + 1, origin=origin)
        except (ValueError, RecursionError):
            self._move_to_dead_letters(event)
            return
        self._seq += 1
        id = event.id
        if id is not None and self._connection.execute(queries()["event_by_id"], (id,)).fetchone():
            id = None
        row = event_rows.event_row(self._seq, self._offset, body, attempt=event.attempt, id=id)
        self._connection.execute(queries()["insert_event"], row)
        self._offset = row[2]
        self.transferred += 1

    def _move_to_dead_letters(self, event: _Found) -> None:
        detail = "the file was broken and the event's text is not what was recorded; the body is what is left of it"
        row = (self._stream, event.seq, "damaged", detail, event.body, 1)
        self.damaged += self._connection.execute(queries()["insert_dead_letter"], row).rowcount


class _Numbers:
    """A set of mostly consecutive numbers, stored as ranges."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []

    def add(self, number: int) -> None:
        if self._ranges and self._ranges[-1][1] == number - 1:
            self._ranges[-1][1] = number
        else:
            self._ranges.append([number, number])

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in reversed(self._ranges))
