"""The outbox: every progress event, numbered and durable before `append` returns, kept until it is delivered and
longer if there is room.

Thread-safe: one writing connection behind one lock, one reading connection for delivery. The caller of
`open_outbox` holds the writer's lock of the folder, so no other process writes meanwhile. Each method is one
transaction. Errors: OutboxFull, InvalidEvent, StoreUnusable (see `pisync_agent.errors`). A file that turns out
to be broken is set aside and salvaged on the spot (see `salvage`), and the method is done on the file that follows.

How receipts move the delivered pointer, and when events are sent again, is said in `settlement`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pisync_agent.clock import Clock
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull
from pisync_agent.outbox import ledger, pointers, report_rows, space
from pisync_agent.outbox.connection import (
    Connect,
    Connection,
    Error,
    is_full,
    transaction,
)
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.kept_file import KeptFile
from pisync_agent.outbox.models import DeadLetter, OutboxLimits, OutboxState, Report
from pisync_agent.outbox.pointers import Pointers
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.reader import list_events, look
from pisync_agent.outbox.settlement import Held, Rewinds, settled
from pisync_common.limits import KIB, MIB
from pisync_common.models import Receipt, Rejection

T = TypeVar("T")


class Outbox:
    """See the module. Made by `open_outbox`."""

    def __init__(
        self,
        home: Path,
        *,
        limits: OutboxLimits,
        clock: Clock,
        random_hex: Callable[[int], str],
        connect: Connect,
        free_bytes: space.FreeBytes,
    ) -> None:
        self._file = KeptFile(
            home, limits=limits, clock=clock, random_hex=random_hex, connect=connect, free_bytes=free_bytes
        )
        self._limits = limits
        self._rewinds = Rewinds()
        self._unsaved: Pointers | None = None
        self._unsaved_dead: list[Rejection] = []

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
        """Record events in one durable commit; for each its seq, or InvalidEvent where its key was used for another.

        If they do not fit together, those are recorded that do; the others' result is OutboxFull.
        Raises OutboxFull or StoreUnusable if nothing could be recorded.
        """
        return self._file.guarded(lambda: self._append(events))

    def requeue(self, seq: int) -> int:
        """Record a dead letter's event anew; its new seq (the same one again if it was requeued before).

        Raises InvalidEvent if there is no such dead letter, or it is damaged.
        """
        return self._file.guarded(lambda: self._with_room(lambda: self._requeue(seq), needed=0))

    # Delivering

    def begin_run(self) -> None:
        """A sync run begins: events the receiver lacks may be sent again (see `settlement`, rule 6)."""
        with self._file.mutex:
            self._rewinds.begin_run()

    @property
    def delivered(self) -> int:
        """Read on from here: events 1 to this number need not be sent, as far as is known."""
        return self._file.guarded(lambda: self._pointers().delivered)

    def read(self, after: int, *, max_events: int, max_bytes: int, stream: str | None = None) -> list[tuple[int, str]]:
        """(seq, text) of the events that follow `after`: one at least if there is any, none if `stream` is over.

        `max_bytes` counts the texts in UTF-8 and a comma each. A caller that reads batch after batch names the
        stream it began with: the outbox may begin another one at any time.
        """

        def rows(connection: Connection) -> list[tuple[int, str]]:
            return ledger.read(connection, after, max_events=max_events, max_bytes=max_bytes)

        return self._file.read(stream, rows, [])

    def settle(self, upto: int, receipt: Receipt, sent: Sequence[int]) -> int:
        """Take in the receipt for the batch `sent` (its seqs; empty for a probe): delivered and watermark move as
        `settlement` says, rejected events are copied to the dead letters. One commit. Returns the new `delivered`.

        With not a byte left on the disk the pointers are kept in memory until there is room: delivery goes on, and
        what a crash forgets is sent again. A receipt of another stream changes nothing.
        """
        return self._file.guarded(lambda: self._settle([seq for seq in sent if seq <= upto], receipt))

    def set_aside(self, seq: int, code: str, detail: str) -> None:
        """Make a dead letter of an event that cannot be sent; delivery goes on behind it. Again: no change."""
        self._file.guarded(lambda: self._file.room.maintained(lambda: self._set_aside(seq, code, detail)))

    def trim(self) -> int:
        """Delete all but the newest `keep_delivered_bytes` of the delivered events; how many went."""
        return self._file.guarded(lambda: self._trim(self._limits.keep_delivered_bytes))

    def start_new_stream(self, reason: str) -> None:
        """Go on in a new stream: events that wait, and those in conflict, are carried into it with their origin;
        the file so far is set aside, whole. `stream` changes."""

        def renew() -> None:
            self._file.room.maintained(lambda: self._write_all(lambda connection, now: None))
            self._file.renew(reason, broken=False)

        self._file.guarded(renew)

    # Looking

    def dead(self) -> list[DeadLetter]:
        """All dead letters, oldest first."""
        return self._file.guarded(lambda: ledger.dead_letters(self._file.connection))

    def event(self, seq: int) -> str | None:
        """The text of an event that is held, or of its dead letter."""
        return self._file.guarded(lambda: self._event(seq))

    def list_events(self, after: int, limit: int) -> list[tuple[int, str, str]]:
        """(seq, text, state) of the events that follow `after`; the state is an EventState."""
        return self._file.guarded(lambda: list_events(self._file.connection, self._pointers(), after, limit))

    def state(self) -> OutboxState:
        return self._file.guarded(lambda: look(self._file.connection, self._pointers(), self._file.room.most))

    # Reports and notes

    def add_report(self, report: Report) -> None:
        """Queue a report; when over 500 wait, older consecutive failures are folded."""
        self._file.guarded(
            lambda: self._file.room.maintained(lambda: self._file.write(lambda c: report_rows.add(c, report)))
        )

    def next_report(self) -> Report | None:
        """The oldest report that waits."""
        return self._file.guarded(lambda: report_rows.oldest(self._file.connection))

    def drop_report(self, report_id: int) -> None:
        """A report was delivered."""
        self._file.guarded(
            lambda: self._file.room.maintained(lambda: self._file.write(lambda c: report_rows.drop(c, report_id)))
        )

    def note(self, name: str) -> str | None:
        """A small value kept under `name`."""
        row = self._file.guarded(lambda: self._file.connection.execute(queries()["note"], (name,)).fetchone())
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Keep a small value."""
        self._keep(lambda connection: connection.execute(queries()["set_note"], (name, value)))

    def check_writable(self) -> None:
        """Prove that the file can be written, without writing; raise StoreUnusable."""

        def prove() -> None:
            with transaction(self._file.connection):
                pointers.load(self._file.connection)

        self._file.guarded(prove)

    def is_current(self) -> bool:
        """Whether the file in place is still the one that is open (another process may have swapped it)."""
        return self._file.is_current()

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        self._file.close()

    # One transaction each; called with the lock held

    def _keep(self, action: Callable[[Connection], object]) -> None:
        """Bookkeeping of its own, with room or without."""
        self._file.guarded(lambda: self._file.room.maintained(lambda: self._file.write(action)))

    def _pointers(self) -> Pointers:
        now = pointers.load(self._file.connection)
        kept = self._unsaved
        if kept is None or kept.stream != now.stream:
            self._unsaved, self._unsaved_dead = None, []
            return now
        return dataclasses.replace(now, delivered=kept.delivered, watermark=kept.watermark)

    def _write_all(self, action: Callable[[Connection, Pointers], T]) -> T:
        """Write; and what was kept in memory is written with it."""

        def work(connection: Connection) -> T:
            now = self._pointers()
            for rejection in self._unsaved_dead:
                ledger.bury(connection, now.stream, rejection.seq, rejection.code, rejection.detail, local=False)
            if self._unsaved is not None:
                pointers.save(connection, now)
            return action(connection, now)

        result = self._file.write(work)
        self._unsaved, self._unsaved_dead = None, []
        return result

    def _append(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        needed = sum(KIB + len(event.data or "") for event in events)
        try:
            return self._with_room(lambda: self._record(events, needed), needed=needed)
        except OutboxFull as full:
            results = self._append_halves(events, full)
            if all(isinstance(result, OutboxFull) for result in results):
                raise
            return results

    def _record(self, events: Sequence[NewEvent], needed: int) -> list[int | AgentError]:
        """Never so much that the reserve could not hold what still has to be written back."""
        self._file.room.check(needed)
        return self._file.write(functools.partial(ledger.record, events=events))

    def _append_halves(self, events: Sequence[NewEvent], full: OutboxFull) -> list[int | AgentError]:
        """What does not fit together is tried in halves, so that one large event does not refuse its neighbours."""
        if len(events) == 1:
            return [full]
        results: list[int | AgentError] = []
        middle = len(events) // 2
        for half in (events[:middle], events[middle:]):
            try:
                results += self._record(half, sum(KIB + len(event.data or "") for event in half))
            except Error as error:
                if not is_full(error):
                    raise
                results += self._append_halves(half, full)
        return results

    def _event(self, seq: int) -> str | None:
        body = ledger.event(self._file.connection, seq)
        if body is None and (letter := ledger.dead_letter(self._file.connection, self.stream, seq)):
            return letter.body
        return body

    def _requeue(self, seq: int) -> int:
        def work(connection: Connection) -> int:
            letter = ledger.dead_letter(connection, self.stream, seq)
            if letter is None:
                raise InvalidEvent(f"there is no dead letter {seq}; `pisync queue dead` lists them")
            return ledger.requeue(connection, letter)

        return self._file.write(work)

    def _set_aside(self, seq: int, code: str, detail: str) -> None:
        def work(connection: Connection, now: Pointers) -> None:
            ledger.bury(connection, now.stream, seq, code, detail, local=True)
            if seq == now.delivered + 1:
                pointers.save(connection, dataclasses.replace(now, delivered=seq))

        self._write_all(work)

    def _settle(self, sent: Sequence[int], receipt: Receipt) -> int:
        now = self._pointers()
        if receipt.stream != now.stream:
            return now.delivered
        after = self._after(now, sent, receipt)
        if after == now and not receipt.rejected and self._unsaved is None:
            return now.delivered
        # In memory first: should no byte be left on the disk, it stays there until there is one.
        self._unsaved = after
        self._unsaved_dead += receipt.rejected
        try:
            self._file.room.maintained(lambda: self._write_all(lambda connection, now: None))
        except Error as error:
            if not is_full(error):
                raise
        return after.delivered

    def _after(self, now: Pointers, sent: Sequence[int], receipt: Receipt) -> Pointers:
        connection = self._file.connection
        first = ledger.first_held(connection, now)
        aside = connection.execute(queries()["set_aside_here"], (now.stream, first)).fetchall()
        held = Held(
            first=first,
            last=ledger.last_event(connection, now)[0],
            set_aside={row[0] for row in aside},
        )
        batch = [seq for seq in sent if seq <= held.last]
        delivered = settled(now.delivered, now.watermark, batch, receipt, held, self._rewinds.allow)
        return dataclasses.replace(now, delivered=delivered, watermark=receipt.watermark)

    # Room

    def _with_room(self, action: Callable[[], T], *, needed: int) -> T:
        """Do it; if there is no room, delete delivered events and try once more; raise OutboxFull."""
        try:
            return action()
        except Error as error:
            if not is_full(error):
                raise
        self._make_room(needed)
        try:
            return action()
        except Error as error:
            if not is_full(error):
                raise
            raise self._full() from error

    def _make_room(self, needed: int) -> None:
        """Delete the oldest delivered events: what is needed several times over, so that it is not done each time."""
        self._file.room.measure()
        connection, now = self._file.connection, self._pointers()
        first = ledger.first_held(connection, now)
        if first > now.delivered:
            return
        self._file.room.recover()
        kept = ledger.upto(connection, now.delivered) - now.trimmed_upto
        self._trim(max(0, kept - max(4 * needed, self._file.room.most // 16)))

    def _trim(self, keep: int) -> int:
        """Delete delivered events but for the newest `keep` bytes, piece by piece; how many went."""
        before = self._pointers().trimmed
        try:
            while self._file.room.maintained(
                lambda: self._write_all(lambda c, now: ledger.trim_piece(c, now, keep, self._file.room.quarter))
            ):
                pass
        except Error as error:
            if not is_full(error):
                raise
        return self._pointers().trimmed - before

    def _full(self) -> OutboxFull:
        state = look(self._file.connection, self._pointers(), self._file.room.most)
        return OutboxFull(
            f"the outbox is full ({state.bytes_used / MIB:.1f} of {state.bytes_max / MIB:.1f} MiB, "
            f"{state.waiting} events wait): nothing was recorded, all that was recorded before is kept. "
            "Sync this device (`pisync sync`), or free space on its disk, then try again."
        )
