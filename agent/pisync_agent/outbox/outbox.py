"""The outbox: every progress event, numbered and durable before `append` returns, kept until it is delivered and
longer while there is room.

Thread-safe: one writing connection behind one lock, one reading connection for delivery. The caller of
`open_outbox` holds the writer's lock of the folder, so no other process writes meanwhile. Each method is one
transaction. Errors: OutboxFull, InvalidEvent, StoreUnusable (see `pisync_agent.errors`). A file that turns out
to be broken is set aside and salvaged at once (see `recovery.salvage`), and the method runs again on the new file.

`delivered_pointer` says how receipts move the delivered pointer, and when events are sent again; `trimming` deletes
delivered events.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pisync_agent.clock import Clock, SystemClock
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull
from pisync_agent.outbox import disk, event_rows, files, pointers, space, sync_event_rows, trimming
from pisync_agent.outbox.database import queries
from pisync_agent.outbox.delivered_pointer import Held, Rewinds, settled
from pisync_agent.outbox.events import NewEvent, behind_refused
from pisync_agent.outbox.faults import Fault, explained, is_full
from pisync_agent.outbox.live_file import LiveFile
from pisync_agent.outbox.models import CHECKED, LAST_RUN, OutboxLimits, OutboxState, QueuedSyncEvent
from pisync_agent.outbox.pointers import Pointers
from pisync_agent.outbox.reader import read_state
from pisync_agent.outbox.unsaved import Unsaved
from pisync_common.limits import KIB, MIB
from pisync_common.models import Receipt
from pisync_common.sqlite import ERRORS, Connect, Connection, connect
from pisync_common.times import now_ms

T = TypeVar("T")

TRIMMED_SHARE: Final = 32
"""Delivered events are deleted in ranges of this share (one in 32) of the bytes that are kept."""


def open_outbox(
    home: Path,
    *,
    limits: OutboxLimits | None = None,
    clock: Clock | None = None,
    random_hex: Callable[[int], str] = files.random_hex,
    connect: Connect = connect,
    free_bytes: disk.FreeBytes = space.free_bytes,
) -> "Outbox":
    """Open the outbox of `home`, creating it if there is none. The caller holds the writer's lock (`outbox.lock`).

    Finishes an interrupted swap of files, sets a broken file aside and salvages it, migrates an older schema.
    Raises StoreUnusable (or OutboxFull) if the outbox cannot be used durably; then nothing is thrown away.
    """
    with files.errors(home):
        files.make_folder(home)
    limits = limits or OutboxLimits()
    file = LiveFile(
        home,
        limits=limits,
        clock=clock or SystemClock(),
        random_hex=random_hex,
        connect=connect,
        free_bytes=free_bytes,
    )
    return Outbox(file, limits)


class Outbox:
    """See the module. Opened by `open_outbox`."""

    def __init__(self, file: LiveFile, limits: OutboxLimits) -> None:
        self._file = file
        self._limits = limits
        self._rewinds = Rewinds()
        self._unsaved = Unsaved()

    @property
    def path(self) -> Path:
        """The database file."""
        return self._file.path

    @property
    def stream(self) -> str:
        """Changes when the outbox has to begin another file."""
        return self._file.stream

    # Recording

    def append(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Record events in one durable commit; return for each its seq, or InvalidEvent for an id with other content.

        If they do not fit together, as many as fit are recorded; the result of the others is OutboxFull.
        Raises OutboxFull or StoreUnusable if nothing could be recorded.
        """
        return self._file.guarded(lambda: self._append(events))

    def requeue(self, seq: int) -> int:
        """Record a dead letter's event again; return its new seq (the same again if it was requeued before).

        Raises InvalidEvent if there is no such dead letter, or it is damaged.
        """
        return self._file.guarded(lambda: self._with_room(lambda: self._requeue(seq), needed=0))

    # Delivering

    def begin_run(self) -> None:
        """Begin a sync run: events the receiver misses may be sent again (see `delivered_pointer`, rule 6)."""
        with self._file.mutex:
            self._rewinds.begin_run()

    @property
    def delivered(self) -> int:
        """Where to read on: events 1 to this number need not be sent, as far as is known."""
        return self._file.guarded(lambda: self._pointers().delivered)

    def read(self, after: int, *, max_events: int, max_bytes: int, stream: str | None = None) -> list[tuple[int, str]]:
        """Return (seq, text) of the events after `after`: at least one if there is any, none if `stream` has ended.

        `max_bytes` counts the texts in UTF-8 and a comma each. A caller that reads batch after batch names the
        stream it began with: the outbox may begin another at any time.
        """

        def rows(connection: Connection) -> list[tuple[int, str]]:
            return event_rows.read(connection, after, max_events=max_events, max_bytes=max_bytes)

        return self._file.read(stream, rows, [])

    def settle(self, receipt: Receipt, sent: Sequence[int]) -> int:
        """Apply the receipt for the batch `sent` (its seqs; empty for a probe); return the new `delivered`.

        In one commit, delivered and watermark move as `delivered_pointer` says, and rejected events are copied to the
        dead letters. After the last pending event the pointers stay in memory until `end_run`, which is near; if the
        disk is completely full, until there is room. What a crash forgets is sent again. A receipt of another stream
        changes nothing.
        """
        return self._file.guarded(lambda: self._settle(sent, receipt))

    def move_to_dead_letters(self, seq: int, code: str, detail: str) -> None:
        """Make a dead letter of an event that cannot be sent; delivery goes on behind it. Repeating changes nothing."""

        def work(connection: Connection, now: Pointers) -> None:
            event_rows.move_to_dead_letters(connection, now.stream, seq, code, detail, local=True)
            if seq == now.delivered + 1:
                pointers.save(connection, dataclasses.replace(now, delivered=seq))

        self._file.guarded(lambda: self._file.disk.maintained(lambda: self._write_all(work)))

    def trim(self) -> int:
        """Delete all but the newest `keep_delivered_bytes` of the delivered events; return how many were deleted.

        Not before a good number may be deleted at once: each deletion writes to the card.
        """

        def trim() -> int:
            keep = self._limits.keep_delivered_bytes
            worthwhile = trimming.trims(self._file.connection, self._pointers(), keep + keep // TRIMMED_SHARE)
            return self._trim(keep) if worthwhile else 0

        return self._file.guarded(trim)

    def end_run(self, note: str | None = None) -> None:
        """Commit what a sync run has left to be stored, and its result as the note LAST_RUN; nothing if nothing is."""
        if note is not None:
            self.set_note(LAST_RUN, note, later=True)
        if self._unsaved.any:
            self._maintain(lambda connection: None)

    def start_new_stream(self, reason: str, *, after: int = 0) -> None:
        """Begin a new stream: pending events, and events in conflict, are transferred into it with their origin.

        Only those `after` a seq, where another device delivers the earlier. The file so far is set aside, whole.
        """

        def renew() -> None:
            self._file.disk.maintained(lambda: self._write_all(lambda connection, now: None))
            self._file.renew(reason, broken=False, after=after)

        self._file.guarded(renew)

    def state(self) -> OutboxState:
        return self._file.guarded(lambda: read_state(self._file.connection, self._pointers(), self._file.disk.most))

    # Sync events and notes

    def add_sync_event(self, *events: QueuedSyncEvent) -> None:
        """Queue sync events in one commit; beyond 500 pending each is merged into the newest."""

        def add(connection: Connection) -> None:
            for event in events:
                sync_event_rows.add(connection, event)

        self._maintain(add)

    def next_sync_event(self) -> QueuedSyncEvent | None:
        """Return the oldest pending sync event."""
        return self._file.guarded(lambda: sync_event_rows.oldest(self._file.connection))

    def delete_sync_event(self, id: int) -> None:
        """Delete a sync event that was delivered."""
        self._maintain(lambda connection: sync_event_rows.delete(connection, id))

    def note(self, name: str) -> str | None:
        """Return the small value stored under `name`."""
        with self._file.mutex:
            if name in self._unsaved.notes:
                return self._unsaved.notes[name]
        row = self._file.guarded(lambda: self._file.connection.execute(queries()["note"], (name,)).fetchone())
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str, *, later: bool = False) -> None:
        """Store a small value; `later`, with the next bookkeeping: a crash may forget it."""
        with self._file.mutex:
            self._unsaved.notes[name] = value
        if not later:
            self._maintain(lambda connection: None)

    def check_writable(self) -> None:
        """Prove by a small commit that the disk takes writes; raise StoreUnusable, or OutboxFull where it is full.

        It does not use the reserve, so it fails where recording would.
        """
        note = (CHECKED, str(now_ms()))
        self._file.guarded(lambda: self._file.write(lambda connection: connection.execute(queries()["set_note"], note)))

    def is_current(self) -> bool:
        """Return whether the open file is still the one in place (another process may have swapped it)."""
        return self._file.is_current()

    def close(self) -> None:
        """Store what is in memory, and close the file; harmless when it is closed."""
        with suppress(AgentError):
            self.end_run()
        self._file.close()

    # One transaction each; called with the lock held

    def _maintain(self, action: Callable[[Connection], object]) -> None:
        """Commit bookkeeping, on a full disk too."""

        def work(connection: Connection, now: Pointers) -> None:
            action(connection)

        self._file.guarded(lambda: self._file.disk.maintained(lambda: self._write_all(work)))

    def _pointers(self) -> Pointers:
        return self._unsaved.over(pointers.load(self._file.connection))

    def _write_all(self, action: Callable[[Connection, Pointers], T]) -> T:
        """Write, and with it what was kept in memory."""

        def work(connection: Connection) -> T:
            now = self._pointers()
            self._unsaved.write(connection, now)
            return action(connection, now)

        result = self._file.write(work)
        self._unsaved.clear()
        return result

    def _append(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        try:
            return self._with_room(lambda: self._record(events), needed=_size(events))
        except OutboxFull as full:
            results = self._append_halves(events, full)
            if all(isinstance(result, OutboxFull) for result in results):
                raise
            return results

    def _record(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Record, but never so much that the reserve could not hold what still has to be written back."""
        self._file.disk.check(_size(events))
        return self._file.write(lambda connection: event_rows.record(connection, events))

    def _append_halves(self, events: Sequence[NewEvent], full: OutboxFull) -> list[int | AgentError]:
        """Record what does not fit together in halves, so that a large event does not keep its neighbours out."""
        if len(events) == 1:
            return [full]
        results: list[int | AgentError] = []
        middle = len(events) // 2
        for half in (events[:middle], events[middle:]):
            results += (refused := behind_refused(half, results))
            if not (half := half[len(refused) :]):
                continue
            try:
                results += self._record(half)
            except ERRORS as error:
                if not self._file.disk.is_full(error):
                    raise
                results += self._append_halves(half, full)
        return results

    def _requeue(self, seq: int) -> int:
        def work(connection: Connection) -> int:
            letter = event_rows.dead_letter(connection, self.stream, seq)
            if letter is None:
                raise InvalidEvent(f"there is no dead letter {seq}; `pisync queue dead` lists them")
            return event_rows.requeue(connection, letter)

        return self._file.write(work)

    def _settle(self, sent: Sequence[int], receipt: Receipt) -> int:
        now = self._pointers()
        if receipt.stream != now.stream:
            return now.delivered
        after = self._after(now, sent, receipt)
        if after == now and not receipt.rejected and self._unsaved.pointers is None:
            return now.delivered
        # In memory first: it stays there while the disk is completely full.
        self._unsaved.pointers = after
        self._unsaved.rejections += receipt.rejected
        if after.delivered == event_rows.last_event(self._file.connection, now)[0] and not receipt.rejected:
            return after.delivered
        try:
            self._file.disk.maintained(lambda: self._write_all(lambda connection, now: None))
        except ERRORS as error:
            if not self._file.disk.is_full(error):
                raise
        return after.delivered

    def _after(self, now: Pointers, sent: Sequence[int], receipt: Receipt) -> Pointers:
        connection = self._file.connection
        first = event_rows.first_held(connection, now)
        dead = connection.execute(queries()["local_dead_letters"], (now.stream, first)).fetchall()
        held = Held(first=first, last=event_rows.last_event(connection, now)[0], dead={row[0] for row in dead})
        batch = [seq for seq in sent if seq <= held.last]
        delivered = settled(now.delivered, now.watermark, batch, receipt, held, self._rewinds.allow)
        return dataclasses.replace(now, delivered=delivered, watermark=receipt.watermark)

    # Room

    def _with_room(self, action: Callable[[], T], *, needed: int) -> T:
        """Do it; if there is no room, delete delivered events and do it again; raise OutboxFull."""
        try:
            return action()
        except ERRORS as error:
            if not self._file.disk.is_full(error):
                raise
        self._make_room(needed)
        try:
            return action()
        except ERRORS as error:
            if not self._file.disk.is_full(error):
                raise
            raise self._full(error) from error

    def _make_room(self, needed: int) -> None:
        """Delete the oldest delivered events: several times what is needed, so that it is not done for each event."""
        self._file.disk.measure()
        connection, now = self._file.connection, self._pointers()
        if event_rows.first_held(connection, now) > now.delivered:
            return
        self._file.disk.recover()
        kept = trimming.end_offset(connection, now.delivered) - now.trimmed_offset
        self._trim(max(0, kept - max(4 * needed, self._file.disk.most // 16)))

    def _trim(self, keep: int) -> int:
        """Delete delivered events except the newest `keep` bytes, piece by piece; return how many were deleted."""
        before = self._pointers().trimmed
        guard = self._file.disk

        def piece(connection: Connection, now: Pointers) -> bool:
            return trimming.trim_piece(connection, now, keep, guard.quarter)

        try:
            while guard.maintained(lambda: self._write_all(piece)):
                pass
        except ERRORS as error:
            if not self._file.disk.is_full(error):
                raise
        return self._pointers().trimmed - before

    def _full(self, error: Exception) -> AgentError:
        if not is_full(error):  # a quota
            return explained(self.path, error)
        state = read_state(self._file.connection, self._pointers(), self._file.disk.most)
        full = OutboxFull(
            f"the outbox is full ({state.bytes_used / MIB:.1f} of {state.bytes_max / MIB:.1f} MiB, "
            f"{state.waiting} events pending): nothing was recorded, everything recorded before is kept. "
            "Sync this device (`pisync sync`), or free space on its disk, then try again."
        )
        full.fault = Fault.FULL
        return full


def _size(events: Sequence[NewEvent]) -> int:
    """Return a bound of the bytes that recording these events needs."""
    return sum(KIB + len(event.data or "") for event in events)
