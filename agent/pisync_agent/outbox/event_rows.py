"""SQL on the rows of events and dead letters, within the caller's transaction."""

import zlib
from collections.abc import Sequence
from typing import Final

from pisync_agent.errors import AgentError, InvalidEvent
from pisync_agent.outbox.adopted import ADOPTED_BEFORE, Adopted
from pisync_agent.outbox.database import BrokenOutbox, integer, queries, text
from pisync_agent.outbox.events import NewEvent, behind_refused, renumber
from pisync_agent.outbox.models import DeadLetter
from pisync_agent.outbox.pointers import Pointers, load
from pisync_common.models import Origin
from pisync_common.sqlite import Connection

ATTEMPTS_SEARCHED: Final = 100_000
"""How many of the newest events are searched for an event whose answer was lost."""

EventRow = tuple[int, int, int, int | None, str | None, str]
"""seq, crc, end_offset, attempt, id, body."""


def last_event(connection: Connection, pointers: Pointers) -> tuple[int, int]:
    """Return (seq, end_offset) of the newest event ever recorded in this stream."""
    row = connection.execute(queries()["last_event"]).fetchone()
    return (integer(row[0]), integer(row[1])) if row else (pointers.trimmed, pointers.trimmed_offset)


def first_held(connection: Connection, pointers: Pointers) -> int:
    """Return the oldest event held, or the seq of the next event if none is."""
    row = connection.execute(queries()["first_event"]).fetchone()
    return integer(row[0]) if row else pointers.trimmed + 1


def event_row(seq: int, offset: int, body: str, *, attempt: int | None = None, id: str | None = None) -> EventRow:
    """Return the columns of an event that begins at `offset` of the stream."""
    encoded = body.encode()
    return (seq, zlib.crc32(encoded), offset + len(encoded), attempt, id, body)


def record(connection: Connection, events: Sequence[NewEvent]) -> list[int | AgentError]:
    """Insert the events that are new; return a result for each, in order."""
    recording = _Recording(connection, events)
    if recording.rows:
        connection.executemany(queries()["insert_event"], recording.rows)
        recording.adopted.save()
    return recording.results


class _Recording:
    """Turns new events into rows and results."""

    def __init__(self, connection: Connection, events: Sequence[NewEvent]) -> None:
        self._connection = connection
        self._seq, self._offset = last_event(connection, load(connection))
        self._attempts = self._newest_attempts() if any(event.retried for event in events) else {}
        self._ids: dict[str, tuple[int, str]] = {}
        self.adopted = Adopted(connection)
        self.rows: list[EventRow] = []
        self.results: list[int | AgentError] = []
        for event in events:
            self.results += behind_refused([event], self.results) or [self._place(event)]

    def _newest_attempts(self) -> dict[int, int]:
        newest = self._connection.execute(queries()["newest_attempts"], (self._seq - ATTEMPTS_SEARCHED,))
        return dict(newest.fetchall())

    def _place(self, event: NewEvent) -> int | AgentError:
        if event.adopted_from is not None:
            return self._adopt(event, event.adopted_from)
        if event.retried and event.attempt in self._attempts:
            return self._attempts[event.attempt]
        if event.id is not None and (found := self._by_id(event.id)):
            seq, body = found
            return seq if event.same_as(body) else _id_reused(event.id, seq)
        return self._add(event, id=event.id)

    def _adopt(self, event: NewEvent, place: Origin) -> int | AgentError:
        try:
            if not self.adopted.add(place):
                return ADOPTED_BEFORE
        except InvalidEvent as error:
            return error
        # Apps of two devices may use one id for two events; the receiver compares what they say.
        taken = event.id is not None and self._by_id(event.id) is not None
        return self._add(event, id=None if taken else event.id)

    def _by_id(self, id: str) -> tuple[int, str] | None:
        row = self._connection.execute(queries()["event_by_id"], (id,)).fetchone()
        return (integer(row[0]), text(row[1])) if row else self._ids.get(id)

    def _add(self, event: NewEvent, *, id: str | None) -> int:
        self._seq += 1
        body = event.body(self._seq)
        row = event_row(self._seq, self._offset, body, attempt=event.attempt, id=id)
        self._offset = row[2]
        self.rows.append(row)
        if id is not None:
            self._ids[id] = (self._seq, body)
        if event.attempt is not None:
            self._attempts[event.attempt] = self._seq
        return self._seq


def read(connection: Connection, after: int, *, max_events: int, max_bytes: int) -> list[tuple[int, str]]:
    """Return (seq, text) of the events after `after`: at most `max_bytes`, but at least one event if there is any.

    Raises BrokenOutbox if a text is not what was recorded.
    """
    found: list[tuple[int, str]] = []
    size = 0
    cursor = connection.execute(queries()["events_after"], (after, max_events))
    try:
        for seq, crc, body in cursor:
            encoded = text(body).encode()
            if zlib.crc32(encoded) != crc:
                raise BrokenOutbox(f"event {seq} is not what was recorded")
            size += len(encoded) + 1
            if found and size > max_bytes:
                break
            found.append((seq, body))
    finally:
        cursor.close()
    return found


def event(connection: Connection, seq: int) -> str | None:
    """Return the text of a held event."""
    row = connection.execute(queries()["event"], (seq,)).fetchone()
    return None if row is None else text(row[0])


def event_or_dead_letter(connection: Connection, stream: str, seq: int) -> str | None:
    """Return the text of a held event, or of its dead letter."""
    body = event(connection, seq)
    if body is None and (letter := dead_letter(connection, stream, seq)):
        return letter.body
    return body


# Dead letters


def move_to_dead_letters(connection: Connection, stream: str, seq: int, code: str, detail: str, *, local: bool) -> None:
    """Copy a held event to the dead letters; an event that is dead already, or not held, changes nothing."""
    body = event(connection, seq)
    if body is not None:
        connection.execute(queries()["insert_dead_letter"], (stream, seq, code, detail, body, int(local)))


def dead_letters(connection: Connection, skip: int, limit: int) -> list[DeadLetter]:
    return [_dead_letter(row) for row in connection.execute(queries()["dead_letters"], (limit, skip)).fetchall()]


def dead_letter(connection: Connection, stream: str, seq: int) -> DeadLetter | None:
    row = connection.execute(queries()["dead_letter"], (seq, stream)).fetchone()
    return None if row is None else _dead_letter(row)


def requeue(connection: Connection, letter: DeadLetter) -> int:
    """Record a dead letter's event again; return its new seq. Raises InvalidEvent if it cannot be sent at all."""
    if letter.requeued_as is not None:
        return letter.requeued_as
    seq, offset = last_event(connection, load(connection))
    try:
        body = renumber(letter.body, seq=seq + 1, origin=Origin(stream=letter.stream, seq=letter.seq))
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"dead letter {letter.seq} is damaged and cannot be sent") from error
    connection.execute(queries()["insert_event"], event_row(seq + 1, offset, body))
    connection.execute(queries()["mark_requeued"], (seq + 1, letter.stream, letter.seq))
    return seq + 1


def _id_reused(id: str, seq: int) -> InvalidEvent:
    return InvalidEvent(
        f"id {id!r} was used for event {seq}, which has other content; an id names one event for ever: use a new id"
    )


def _dead_letter(row: Sequence[object]) -> DeadLetter:
    stream, seq, code, detail, body, requeued_as = row
    return DeadLetter(
        stream=text(stream),
        seq=integer(seq),
        code=text(code),
        detail=text(detail),
        body=text(body),
        requeued_as=None if requeued_as is None else integer(requeued_as),
    )
