"""The rows of the outbox: what is done within one transaction. Nothing here begins or ends one."""

import zlib
from collections.abc import Callable, Sequence
from typing import Final

from pisync_agent.errors import AgentError, InvalidEvent
from pisync_agent.outbox.connection import Connection
from pisync_agent.outbox.events import NewEvent, carry
from pisync_agent.outbox.models import DeadLetter
from pisync_agent.outbox.pointers import Pointers, load, save
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.sound import BrokenOutbox, number, text
from pisync_common.models import Origin

ATTEMPTS_SEARCHED: Final = 100_000
"""Among how many of the newest events one whose answer was lost is looked for."""


def last_event(connection: Connection, pointers: Pointers) -> tuple[int, int]:
    """(seq, upto) of the newest event ever recorded in this stream."""
    row = connection.execute(queries()["last_event"]).fetchone()
    return (number(row[0]), number(row[1])) if row else (pointers.trimmed, pointers.trimmed_upto)


def first_held(connection: Connection, pointers: Pointers) -> int:
    """The oldest event held, or the next one to come."""
    row = connection.execute(queries()["first_event"]).fetchone()
    return number(row[0]) if row else pointers.trimmed + 1


class Recording:
    """One group of new events, turned into rows and results."""

    def __init__(self, connection: Connection, events: Sequence[NewEvent]) -> None:
        self._connection = connection
        self._seq, self._upto = last_event(connection, load(connection))
        self._recorded = self._attempts() if any(event.retried for event in events) else {}
        self._keys: dict[str, tuple[int, str]] = {}
        self.rows: list[tuple[int, int, int, int | None, str | None, str]] = []
        self.results = [self._place(event) for event in events]

    def _attempts(self) -> dict[int, int]:
        newest = self._connection.execute(queries()["newest_attempts"], (self._seq - ATTEMPTS_SEARCHED,))
        return dict(newest.fetchall())

    def _place(self, event: NewEvent) -> int | AgentError:
        if event.retried and event.attempt in self._recorded:
            return self._recorded[event.attempt]
        if event.key is not None and (found := self._by_key(event.key)):
            seq, body = found
            return seq if event.same_as(body) else _key_reused(event.key, seq)
        return self._add(event)

    def _by_key(self, key: str) -> tuple[int, str] | None:
        row = self._connection.execute(queries()["event_by_key"], (key,)).fetchone()
        return (number(row[0]), text(row[1])) if row else self._keys.get(key)

    def _add(self, event: NewEvent) -> int:
        self._seq += 1
        body = event.body(self._seq)
        row = event_row(self._seq, self._upto, body, attempt=event.attempt, key=event.key)
        self._upto = row[2]
        self.rows.append(row)
        if event.key is not None:
            self._keys[event.key] = (self._seq, body)
        if event.attempt is not None:
            self._recorded[event.attempt] = self._seq
        return self._seq


def event_row(
    seq: int, upto_before: int, body: str, *, attempt: int | None = None, key: str | None = None
) -> tuple[int, int, int, int | None, str | None, str]:
    """The columns of an event: seq, crc, upto, attempt, key, body."""
    encoded = body.encode()
    return (seq, zlib.crc32(encoded), upto_before + len(encoded), attempt, key, body)


def record(connection: Connection, events: Sequence[NewEvent]) -> list[int | AgentError]:
    """Insert the events that are new; a result for each, in order."""
    recording = Recording(connection, events)
    if len(recording.rows) == 1:
        connection.execute(queries()["insert_event"], recording.rows[0])
    elif recording.rows:
        connection.executemany(queries()["insert_event"], recording.rows)
    return recording.results


def read(connection: Connection, after: int, *, max_events: int, max_bytes: int) -> list[tuple[int, str]]:
    """(seq, text) of the events after `after`, together at most `max_bytes`, one at least if there is any.

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
    """The text of a held event."""
    row = connection.execute(queries()["event"], (seq,)).fetchone()
    return None if row is None else text(row[0])


def bury(connection: Connection, stream: str, seq: int, code: str, detail: str, *, local: bool) -> None:
    """Copy a held event to the dead letters; one that is dead already, or not held, changes nothing."""
    body = event(connection, seq)
    if body is not None:
        connection.execute(queries()["insert_dead"], (stream, seq, code, detail, body, int(local)))


def dead_letters(connection: Connection) -> list[DeadLetter]:
    return [_dead_letter(row) for row in connection.execute(queries()["dead_letters"]).fetchall()]


def dead_letter(connection: Connection, stream: str, seq: int) -> DeadLetter | None:
    row = connection.execute(queries()["dead_letter"], (seq, stream)).fetchone()
    return None if row is None else _dead_letter(row)


def requeue(connection: Connection, letter: DeadLetter) -> int:
    """Record a dead letter's event anew; its new seq. Raises InvalidEvent if it cannot be sent at all."""
    if letter.requeued_as is not None:
        return letter.requeued_as
    seq, upto = last_event(connection, load(connection))
    try:
        body = carry(letter.body, seq=seq + 1, origin=Origin(stream=letter.stream, seq=letter.seq))
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"dead letter {letter.seq} is damaged and cannot be sent") from error
    connection.execute(queries()["insert_event"], event_row(seq + 1, upto, body))
    connection.execute(queries()["mark_requeued"], (seq + 1, letter.stream, letter.seq))
    return seq + 1


def highest_with(connection: Connection, first: int, last: int, wanted: Callable[[int], bool]) -> int:
    """The highest seq within [first, last] whose `upto` is `wanted`; first - 1 if none is.

    `wanted` must hold up to some number and never after it: found by halving, never by a scan.
    """
    low, high = first - 1, last
    while low < high:
        middle = (low + high + 1) // 2
        if wanted(upto(connection, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def upto(connection: Connection, seq: int) -> int:
    """An event's cumulative size; raise BrokenOutbox if it should be held and is not."""
    row = connection.execute(queries()["upto"], (seq,)).fetchone()
    if row is None:
        raise BrokenOutbox(f"event {seq} is not where it was stored")
    return number(row[0])


def forget(connection: Connection, pointers: Pointers, last: int) -> Pointers:
    """Delete the events up to `last`; the pointers to save with it."""
    size = upto(connection, last)
    connection.execute(queries()["delete_events"], (last,))
    return Pointers(
        stream=pointers.stream,
        delivered=pointers.delivered,
        watermark=pointers.watermark,
        trimmed=last,
        trimmed_upto=size,
    )


def trim_piece(connection: Connection, now: Pointers, keep: int, most: int) -> bool:
    """Delete up to `most` bytes of delivered events with `keep` bytes of newer ones behind them; whether any went."""
    first = first_held(connection, now)
    delivered = min(now.delivered, last_event(connection, now)[0])
    if first > delivered:
        return False
    limit = upto(connection, delivered) - keep
    last = highest_with(connection, first, delivered, lambda upto: upto <= limit)
    if last < first:
        return False
    piece = now.trimmed_upto + most
    last = max(first, highest_with(connection, first, last, lambda upto: upto <= piece))
    save(connection, forget(connection, now, last))
    return True


def _key_reused(key: str, seq: int) -> InvalidEvent:
    return InvalidEvent(
        f"id {key!r} was used for event {seq}, which says something else; "
        "an id names one event for ever: take a new one"
    )


def _dead_letter(row: Sequence[object]) -> DeadLetter:
    stream, seq, code, detail, body, requeued_as = row
    return DeadLetter(
        stream=text(stream),
        seq=number(seq),
        code=text(code),
        detail=text(detail),
        body=text(body),
        requeued_as=None if requeued_as is None else number(requeued_as),
    )
