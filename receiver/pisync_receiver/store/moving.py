"""What moves when a receiver changes from SQLite to PostgreSQL: every table, with the names and order of its columns.

Rows are in the order of their keys on both sides (text by its UTF-8 bytes), so that two databases can be compared row
by row without holding either in memory.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A table's columns in PostgreSQL, those of them that make its order, and where SQLite has them."""

    table: str
    columns: tuple[str, ...]
    order: tuple[str, ...]
    source: str
    """What follows FROM in SQLite."""
    there: tuple[str, ...]
    """The same columns in SQLite's words."""


_DEVICE: Final = (
    "device_id", "site", "agent", "enrolled_ms", "last_contact_ms", "last_refused_ms", "cloned_since_ms", "conflicts",
    "consecutive_failures", "total_failures", "failing_since_ms", "last_sync_ms", "last_success_ms", "last_failure_ms",
    "last_errors",
)  # fmt: skip
_COUNTS: Final = ("watermark", "highest", "stored", "carried", "rejected", "conflicts", "first_ms", "last_ms")
_EVENT: Final = (
    "seq", "id", "type", "learner_id", "object_id", "occurred_at", "boot_id", "boottime_ms", "clock_synced", "data",
    "received_ms", "best_ms", "quality",
)  # fmt: skip
_SYNC_EVENT: Final = (
    "device_id", "id", "timestamp", "at_ms", "total_files_synced", "total_errors", "internet_speed", "errors",
    "idempotency_key", "received_ms",
)  # fmt: skip
_TOKEN: Final = (
    "id", "role", "token_hash", "device_id", "label", "created_ms", "expires_ms", "revoked_ms", "last_refused_ms",
)  # fmt: skip
_ENROLLMENT: Final = ("id", "code_hash", "created_ms", "expires_ms", "uses_left", "site", "device_id")


def _plain(table: str, columns: tuple[str, ...], *order: str) -> Moved:
    return Moved(table=table, columns=columns, order=order, source=table, there=columns)


def _of_stream(table: str, columns: tuple[str, ...], *order: str) -> Moved:
    """A table that names its stream by number in SQLite, and by device and name in PostgreSQL."""
    return Moved(
        table=table,
        columns=("device_id", "stream", *columns),
        order=order,
        source=f"streams AS s CROSS JOIN {table} AS t ON t.stream_id = s.id",
        there=("s.device_id", "s.stream", *(f"t.{column}" for column in columns)),
    )


TABLES: Final = (
    _plain("devices", _DEVICE, "device_id"),
    Moved(
        table="streams",
        columns=("device_id", "stream", "number", *_COUNTS),
        order=("device_id", "stream"),
        source="streams",
        there=("device_id", "stream", "id", *_COUNTS),
    ),
    _of_stream("gaps", ("first", "last"), "device_id", "stream", "first"),
    _of_stream("boots", ("boot_id", "epoch_ms", "boottime_ms"), "device_id", "stream", "boot_id"),
    _of_stream("carried", ("seq", "event_id"), "device_id", "stream", "seq"),
    _plain("origins", ("device_id", "stream", "seq", "event_id"), "device_id", "stream", "seq", "event_id"),
    _of_stream("rejected", ("id", "seq", "code", "detail", "body", "received_ms"), "device_id", "stream", "id"),
    _of_stream("events", _EVENT, "device_id", "stream", "seq"),
    _plain("arrivals", ("hour", "first_id", "last_id"), "hour"),
    _plain("sync_events", _SYNC_EVENT, "device_id", "id"),
    _plain("tokens", _TOKEN, "id"),
    _plain("enrollments", _ENROLLMENT, "id"),
)
