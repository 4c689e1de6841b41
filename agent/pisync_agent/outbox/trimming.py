"""Deletion of delivered events, oldest first; nothing else deletes an event. Within the caller's transaction."""

from collections.abc import Callable
from dataclasses import replace

from pisync_agent.outbox.database import BrokenOutbox, integer, queries
from pisync_agent.outbox.event_rows import first_held, last_event
from pisync_agent.outbox.pointers import Pointers, save
from pisync_common.sqlite import Connection


def trim_piece(connection: Connection, now: Pointers, keep: int, most: int) -> bool:
    """Delete up to `most` bytes of delivered events, keeping the newest `keep` bytes; return whether any was deleted.

    At least one event is deleted where any may be.
    """
    if not trims(connection, now, keep):
        return False
    first, delivered = first_held(connection, now), _newest_delivered(connection, now)
    limit = end_offset(connection, delivered) - keep
    last = _highest(connection, first, delivered, lambda offset: offset <= limit)
    piece = now.trimmed_offset + most
    last = max(first, _highest(connection, first, last, lambda offset: offset <= piece))
    save(connection, _delete_through(connection, now, last))
    return True


def trims(connection: Connection, now: Pointers, keep: int) -> bool:
    """Return whether any delivered event is beyond the newest `keep` bytes."""
    first, delivered = first_held(connection, now), _newest_delivered(connection, now)
    return first <= delivered and end_offset(connection, first) <= end_offset(connection, delivered) - keep


def end_offset(connection: Connection, seq: int) -> int:
    """Return the offset in the stream at which an event ends; raise BrokenOutbox if it should be held and is not."""
    row = connection.execute(queries()["end_offset"], (seq,)).fetchone()
    if row is None:
        raise BrokenOutbox(f"event {seq} is not where it was stored")
    return integer(row[0])


def _newest_delivered(connection: Connection, now: Pointers) -> int:
    return min(now.delivered, last_event(connection, now)[0])


def _delete_through(connection: Connection, pointers: Pointers, last: int) -> Pointers:
    """Delete the events up to `last`; return the pointers to save with it."""
    offset = end_offset(connection, last)
    connection.execute(queries()["delete_events"], (last,))
    return replace(pointers, trimmed=last, trimmed_offset=offset)


def _highest(connection: Connection, first: int, last: int, wanted: Callable[[int], bool]) -> int:
    """Return the highest seq within [first, last] whose end offset is `wanted`; first - 1 if none is.

    `wanted` holds up to some offset and not beyond it, so that halving finds the seq without a scan.
    """
    low, high = first - 1, last
    while low < high:
        middle = (low + high + 1) // 2
        if wanted(end_offset(connection, middle)):
            low = middle
        else:
            high = middle - 1
    return low
