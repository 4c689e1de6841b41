"""Getting out of an outbox file what it still holds, into a new file with a new stream.

For a broken file: every event that can be read and was not delivered yet, its dead letters, its waiting reports
and notes. If the row of pointers cannot be read, what was delivered is unknown, and all readable events are
carried: each has its `origin`, so the receiver recognises what it has. An event whose text is not what was
recorded becomes a dead letter `damaged`. One report with `errors {"storage": 1}` tells the receiver.

For a sound file (a new stream after a conflict) the same, without the report; and events in conflict are carried too.

An event's origin is where it was *first* recorded: one that was carried before keeps the origin it has.
How the new file takes the old one's place is said in `files`.
"""

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pisync_agent.outbox import files, ledger, pointers, report_rows, schema
from pisync_agent.outbox.connection import Connect, Connection, make_durable, transaction
from pisync_agent.outbox.events import carry, seq_of
from pisync_agent.outbox.models import Report
from pisync_agent.outbox.pages import WAL_HEADER, LogHeader, Pages, Row, frames
from pisync_agent.outbox.pointers import Pointers, guard
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.sound import BrokenOutbox
from pisync_common.limits import MIB, SEQ_MAX
from pisync_common.models import Origin, Stamp

CHECKED_WHOLE_BYTES: Final = 1 * MIB
"""A file up to this size is checked page by page when it is opened; a larger one where it matters most."""

_GROUP: Final = 500
_UNKNOWN: Final = "unknown"
_CARRIED_ON: Final = 2
"""So many commits behind a broken frame prove that the log was damaged later: a power cut tears the last one only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """One row of the events table, as it could be read."""

    seq: int
    body: str
    attempt: int | None
    key: str | None
    sound: bool


@dataclass(kw_only=True)
class Carried:
    """What a file holds, but for its events: they are read again, page by page, when they are written."""

    state: Pointers | None = None
    stream: str = _UNKNOWN
    dead: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    salvaged: dict[tuple[Any, ...], None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    leaves: list[tuple[int, int]] = field(default_factory=list)
    """(lowest seq, page) of each page with events."""


# Noticing that a file is broken


def hidden_damage(path: Path) -> str | None:
    """What SQLite would pass over in silence, and destroy, when it opens `path`. None if all is well. Raises OSError.

    It reads a log up to its first broken frame, says nothing about the rest, and deletes it when it closes the file.
    A power cut tears the last commit only, and that one was not acknowledged: more commits behind a broken frame
    are lost ones.
    """
    log = files.companion(path, "-wal")
    if not log.exists() or log.stat().st_size <= WAL_HEADER:
        return None
    if not path.exists() or path.stat().st_size == 0:
        return "the database file is empty, its log is not"
    header = LogHeader.read(log)
    if header is None or not header.sound:
        return "the log's header is destroyed"
    broken, behind = False, 0
    for frame in frames(log):
        broken = broken or not frame.sound
        behind += broken and frame.commits
    return f"{behind} commits stand behind a broken frame of the log" if behind >= _CARRIED_ON else None


def check(connection: Connection, path: Path) -> None:
    """Look where a broken file shows; raise BrokenOutbox or the connection's own error."""
    now = pointers.load(connection)
    last, _ = ledger.last_event(connection, now)
    first = ledger.first_held(connection, now)
    if not (0 <= now.trimmed <= last and first == now.trimmed + 1 and now.delivered <= last):
        raise BrokenOutbox(f"events {first} to {last} are held, {now.trimmed} were trimmed, {now.delivered} delivered")
    ledger.read(connection, max(0, last - 10), max_events=10, max_bytes=MIB)
    if path.stat().st_size <= CHECKED_WHOLE_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise BrokenOutbox(found)


# Reading it


def read_file(path: Path) -> Carried:
    """Look through a file, broken or not. Raises OSError."""
    found = Carried()
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


def _sort(row: Row, found: Carried, states: list[Pointers]) -> None:
    """Put a row of any table but events where it belongs; its shape tells which table that is."""
    match row.values:
        case (None, str(), int(), int(), int(), int(), int()) as state if guard(state[1:6]) == state[6]:
            states.append(Pointers.from_row(state[1:]))
        case (None, str(stream), int(seq), str(), str(), str(), int() | None, int()) as dead:
            found.dead.setdefault((stream, seq), dead[1:])
        case (None, str(key), int(), str(), int(), int(), int(), str(), float() | int(), int()) as report:
            try:
                found.reports.setdefault(key, report_rows.from_row((row.rowid, *report[1:])))
            except BrokenOutbox:  # a damaged report: the events matter
                return
        case (None, int(), str(), int(), int(), str()) as salvaged:
            found.salvaged.setdefault(salvaged[1:])
        case (str(name), str(value)):
            found.notes.setdefault(name, value)


def _event(row: Row) -> _Found | None:
    """The row as an event, sound or not; None if it is of another table."""
    match row.values:
        case (None, int(crc), int(), int() | None as attempt, str() | bytes() | None as key, str() | bytes() as body):
            text = body if isinstance(body, str) else body.decode("utf-8", "replace")
            stated = seq_of(text)
            sound = isinstance(body, str) and zlib.crc32(body.encode()) == crc and stated is not None
            seq = stated if sound and stated is not None else row.rowid
            if not 1 <= seq <= SEQ_MAX:
                return None
            key = key if isinstance(key, str) and key else None
            return _Found(seq=seq, body=text, attempt=attempt, key=key, sound=sound)
    return None


def _events(pages: Pages, carried: Carried) -> Iterator[_Found]:
    """All events, nearly in order; sound ones come before damaged ones of the same page."""
    for _, number in carried.leaves:
        found = [event for row in pages.rows(number) if (event := _event(row)) is not None]
        yield from sorted(found, key=lambda event: (event.seq, not event.sound))


# Writing the new one


def build(
    path: Path,
    carried: Carried,
    *,
    broken: bool,
    reason: str,
    stream: str,
    at_ms: int,
    report_key: str,
    stamp: Stamp,
    connect: Connect,
) -> Path:
    """Write `outbox.new.db` beside `path`; the name `path` is to be set aside under."""
    target = files.aside(path, at_ms=at_ms, stream=carried.stream, broken=broken)
    files.discard_new(path)
    new = files.new(path)
    files.touch(new)
    connection = connect(new, readonly=False)
    try:
        make_durable(connection, new)
        schema.migrate(connection, new)
        with transaction(connection):
            begin_stream(connection, stream)
            _write_rest(connection, carried, skip_conflicts=not broken)
            if broken:
                report_rows.add(connection, Report(key=report_key, stamp=stamp, files=0, errors={"storage": 1}))
        writer = _Writer(connection, carried, conflicts=not broken)
        with Pages(path) as pages:
            writer.write(_events(pages, carried))
        with transaction(connection):
            row = (at_ms, reason, writer.carried, writer.damaged, target.name)
            connection.execute(queries()["insert_salvaged"], row)
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise sqlite3.OperationalError("the new file's log could not be written back")
    finally:
        files.close(connection)
    return target


def begin_stream(connection: Connection, stream: str) -> None:
    """The first rows of a new file. The stream's name stands twice: should one be lost, the other tells the origin."""
    pointers.begin(connection, Pointers(stream=stream))
    connection.execute(queries()["set_note"], ("stream", stream))


def _write_rest(connection: Connection, carried: Carried, *, skip_conflicts: bool) -> None:
    for letter in carried.dead.values():
        stream, seq, code, detail, body, requeued_as, local = letter
        becomes_an_event = skip_conflicts and code == "conflict" and stream == carried.stream
        if requeued_as is None and not becomes_an_event:
            connection.execute(queries()["insert_dead"], (stream, seq, code, detail, body, local))
    for report in sorted(carried.reports.values(), key=lambda report: report.id or 0):
        report_rows.insert(connection, report)
    for row in carried.salvaged:
        connection.execute(queries()["insert_salvaged"], row)
    for name, value in carried.notes.items():
        if name != "stream":
            connection.execute(queries()["set_note"], (name, value))


class _Writer:
    """Writes carried events under new numbers, each old number once."""

    def __init__(self, connection: Connection, carried: Carried, *, conflicts: bool) -> None:
        self._connection = connection
        self._stream = carried.stream
        self._delivered = carried.state.delivered if carried.state else 0
        here = [(seq, letter) for (stream, seq), letter in carried.dead.items() if stream == carried.stream]
        self._dead = {seq for seq, _ in here}
        self._again = {
            seq: letter[4] for seq, letter in here if conflicts and letter[2] == "conflict" and letter[5] is None
        }
        self._written = _Numbers()
        self._seq = self._upto = 0
        self.carried = 0
        self.damaged = 0

    def write(self, events: Iterable[_Found]) -> None:
        """Conflicts first: they are the oldest."""
        known = [
            _Found(seq=seq, body=body, attempt=None, key=None, sound=True) for seq, body in sorted(self._again.items())
        ]
        self._in_groups(known, self._carry)
        self._in_groups((event for event in events if self._wanted(event)), self._place)

    def _in_groups(self, events: Iterable[_Found], put: Callable[[_Found], None]) -> None:
        source = iter(events)
        more = True
        while more:
            with transaction(self._connection):
                for _ in range(_GROUP):
                    event = next(source, None)
                    more = event is not None
                    if event is None:
                        break
                    put(event)

    def _wanted(self, event: _Found) -> bool:
        return event.seq > self._delivered and event.seq not in self._dead and event.seq not in self._written

    def _place(self, event: _Found) -> None:
        if event.sound:
            self._carry(event)
        else:
            self._bury(event)

    def _carry(self, event: _Found) -> None:
        self._written.add(event.seq)
        try:
            origin = Origin(stream=self._stream, seq=event.seq)
            body = carry(event.body, seq=self._seq + 1, origin=origin)
        except (ValueError, RecursionError):
            self._bury(event)
            return
        self._seq += 1
        key = event.key
        if key is not None and self._connection.execute(queries()["event_by_key"], (key,)).fetchone():
            key = None
        row = ledger.event_row(self._seq, self._upto, body, attempt=event.attempt, key=key)
        self._connection.execute(queries()["insert_event"], row)
        self._upto = row[2]
        self.carried += 1

    def _bury(self, event: _Found) -> None:
        detail = "the file was broken and the event's text is not what was recorded; see what is left of it"
        row = (self._stream, event.seq, "damaged", detail, event.body, 1)
        self.damaged += self._connection.execute(queries()["insert_dead"], row).rowcount


class _Numbers:
    """A set of numbers that mostly follow one another: kept as runs."""

    def __init__(self) -> None:
        self._runs: list[list[int]] = []

    def add(self, number: int) -> None:
        if self._runs and self._runs[-1][1] == number - 1:
            self._runs[-1][1] = number
        else:
            self._runs.append([number, number])

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in reversed(self._runs))
