"""Salvage: what an outbox file still holds is transferred into a new file with a new stream.

Of a broken file: every event that can be read and was not delivered yet, its dead letters, pending sync events and
notes. If the row of pointers cannot be read, what was delivered is unknown, and all readable events are transferred:
each has its `origin`, so the receiver recognises what it has. An event whose text is not what was recorded becomes a
dead letter `damaged`. One sync event with `errors {"storage": 1}` tells the receiver.

Of an intact file (a new stream after a conflict) the same, without the sync event; events in conflict are transferred
too.

An event's origin is where it was *first* recorded: an event that was transferred before keeps its origin.
`contents` reads the old file; `swap` puts the new file in its place.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pisync_agent.outbox import database, event_rows, files, pointers, sync_event_rows
from pisync_agent.outbox.database import BrokenOutbox, queries
from pisync_agent.outbox.events import renumber
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.numbers import Numbers
from pisync_agent.outbox.pointers import Pointers
from pisync_agent.outbox.recovery import swap
from pisync_agent.outbox.recovery.contents import Contents, Found, events
from pisync_agent.outbox.recovery.log import WAL_HEADER, committed_by_index, read_log
from pisync_agent.outbox.recovery.sqlite_pages import Pages
from pisync_common import sqlite
from pisync_common.limits import MIB
from pisync_common.models import Origin, Stamp
from pisync_common.sqlite import ERRORS, Connect, Connection, transaction

CHECKED_WHOLE_BYTES: Final = 1 * MIB
"""A file up to this size is checked page by page when it is opened; a larger one where it matters most."""

_CHUNK: Final = 500
"""Events written in one transaction."""
_LOST_COMMITS: Final = 2
"""Commits behind a broken frame that prove later damage to the log: a power cut tears only the last commit."""


# Noticing that a file is broken


def hidden_damage(path: Path) -> str | None:
    """Return what SQLite would silently ignore, and destroy, when it opens `path`; None if all is well.

    SQLite reads a log up to its first broken frame, ignores the rest, and deletes it when it closes the file. A power
    cut tears only the last commit, which was not acknowledged: more commits behind a broken frame are lost commits, and
    so are frames that the index beside the log counts as committed. Raises OSError.
    """
    log = read_log(files.companion(path, "-wal"))
    if log is None:
        return None
    if not path.exists() or path.stat().st_size == 0:
        return "the database file is empty, its log is not"
    if not log.header_intact:
        return "the log's header is destroyed"
    lost = committed_by_index(files.companion(path, "-shm"), log.salt) - log.readable
    if lost > 0:
        return f"{lost} committed frames of the log are destroyed or missing"
    broken, behind = False, 0
    for frame in log.frames:
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
    newest = _newest_without_log(path)
    if newest > last:
        raise BrokenOutbox(f"the log is cut or old: it ends at event {last}, the file without it at event {newest}")
    event_rows.read(connection, max(0, last - 10), max_events=10, max_bytes=MIB)
    if path.stat().st_size <= CHECKED_WHOLE_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise BrokenOutbox(found)


def _newest_without_log(path: Path) -> int:
    """Return the newest event that the file holds without its log; 0 if there is none, or no log.

    The log is written to the file bit by bit, so what the file holds was in the log once, and SQLite reads an intact
    log over the file without noticing that it ends earlier.
    """
    log = files.companion(path, "-wal")
    if not log.exists() or log.stat().st_size <= WAL_HEADER:
        return 0
    try:
        with contextlib.closing(sqlite.connect(path, readonly=True, immutable=True)) as file:
            row = file.execute(queries()["last_event"]).fetchone()
            return row[0] if row is not None and type(row[0]) is int else 0
    except ERRORS:  # half of a commit may be written to the file; that is no damage
        return 0


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
            writer.write(events(pages, contents))
        with transaction(connection):
            told = f"{reason}; {writer.losses(whole=contents.whole)}" if broken else reason
            row = (stamp.at_ms, told, writer.transferred, writer.damaged, target.name)
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
        self._known = contents.state is not None
        self._delivered = contents.state.delivered if contents.state else 0
        here = [(seq, letter) for (stream, seq), letter in contents.dead.items() if stream == contents.stream]
        self._dead = {seq for seq, _ in here}
        self._again = {
            seq: letter[4] for seq, letter in here if conflicts and letter[2] == "conflict" and letter[5] is None
        }
        self._written = Numbers()
        self._seq = self._offset = 0
        self.transferred = 0
        self.damaged = 0

    def write(self, found: Iterable[Found]) -> None:
        """Write events in conflict first, because they are the oldest, then `found`."""
        known = [
            Found(seq=seq, body=body, attempt=None, id=None, intact=True) for seq, body in sorted(self._again.items())
        ]
        self._in_chunks(known, self._transfer)
        self._in_chunks((event for event in found if self._wanted(event)), self._place)

    def losses(self, *, whole: bool) -> str:
        """Return what is known to be lost, for the reason that `pisync status` shows."""
        newest = max(self._delivered, self._written.highest or 0)
        first = self._delivered if self._known else (self._written.lowest or 1) - 1
        dead = sum(1 for seq in self._dead if first < seq <= newest and seq not in self._written)
        missing = newest - first - self._written.count_above(first) - dead
        words = [f"the newest event found is {newest}"]
        if missing > 0:
            words.append(f"{missing} before it cannot be read")
        if not whole:
            words.append("events recorded after it may be missing")
        return ", ".join(words)

    def _in_chunks(self, events: Iterable[Found], put: Callable[[Found], None]) -> None:
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

    def _wanted(self, event: Found) -> bool:
        return event.seq > self._delivered and event.seq not in self._dead and event.seq not in self._written

    def _place(self, event: Found) -> None:
        if event.intact:
            self._transfer(event)
        else:
            self._move_to_dead_letters(event)

    def _transfer(self, event: Found) -> None:
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

    def _move_to_dead_letters(self, event: Found) -> None:
        detail = "the file was broken and the event's text is not what was recorded; the body is what is left of it"
        self._dead.add(event.seq)
        row = (self._stream, event.seq, "damaged", detail, event.body, 1)
        self.damaged += self._connection.execute(queries()["insert_dead_letter"], row).rowcount
