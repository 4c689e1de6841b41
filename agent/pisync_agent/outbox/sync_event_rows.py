"""The queue of sync events: at most 500 are pending; beyond that, the newest stands for several runs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from pisync_agent.outbox.database import counts, integer, queries, real, text
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_common.models import Stamp
from pisync_common.sqlite import Connection
from pisync_common.wire import dumps

SYNC_EVENTS_KEPT: Final = 500


def add(connection: Connection, event: QueuedSyncEvent) -> None:
    """Queue a sync event; merge it into the newest one if SYNC_EVENTS_KEPT are pending."""
    if int(connection.execute(queries()["count_sync_events"]).fetchone()[0]) >= SYNC_EVENTS_KEPT:
        # Not the oldest, which may be in flight: what the receiver stored of it cannot change.
        newest = from_row(connection.execute(queries()["newest_sync_event"]).fetchone())
        delete(connection, newest.id or 0)
        event = merged(newest, event)
    insert(connection, event)


def insert(connection: Connection, event: QueuedSyncEvent) -> None:
    stamp = event.stamp
    connection.execute(
        queries()["insert_sync_event"],
        (
            event.key, stamp.at_ms, stamp.boot_id, stamp.boottime_ms, int(stamp.clock_synced),
            event.files, dumps(dict(event.errors)), float(event.speed), event.runs,
        ),
    )  # fmt: skip


def oldest(connection: Connection) -> QueuedSyncEvent | None:
    row = connection.execute(queries()["next_sync_event"]).fetchone()
    return None if row is None else from_row(row)


def delete(connection: Connection, id: int) -> None:
    connection.execute(queries()["delete_sync_event"], (id,))


def from_row(row: Sequence[Any]) -> QueuedSyncEvent:
    """Raises BrokenOutbox."""
    id, key, at_ms, boot_id, boottime_ms, clock_synced, files, errors, speed, runs = row
    return QueuedSyncEvent(
        id=integer(id),
        key=text(key),
        stamp=Stamp(
            at_ms=integer(at_ms),
            boot_id=text(boot_id),
            boottime_ms=integer(boottime_ms),
            clock_synced=bool(clock_synced),
        ),
        files=integer(files),
        errors=counts(errors),
        speed=real(speed),
        runs=integer(runs),
    )


def merged(first: QueuedSyncEvent, second: QueuedSyncEvent) -> QueuedSyncEvent:
    """Return one sync event for both, under the time and key of the newer."""
    return QueuedSyncEvent(
        key=second.key,
        stamp=second.stamp,
        files=first.files + second.files,
        errors=dict(Counter(first.errors) + Counter(second.errors)),
        speed=second.speed or first.speed,
        runs=first.runs + second.runs,
    )
