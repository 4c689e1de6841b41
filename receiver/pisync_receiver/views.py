"""What the receiver answers with: the documented types, and how the store's rows become them."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Raw, Struct, field

from pisync_common.models import Receipt, Rejection
from pisync_common.times import format_ms
from pisync_receiver.store import DeviceRow, EventRow, FailureRow, Quality, StoredSyncEvent, StreamRow
from pisync_receiver.wire import Count, Time, documented

Range = tuple[int, int]
ErrorsByCode = dict[str, Count]


class SyncEventRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored sync event: the five fields as they were sent."""

    id: int
    device_id: str
    timestamp: Time
    total_files_synced: int
    total_errors: int
    internet_speed: int | float
    received_at: Time
    errors: ErrorsByCode = {}


class RejectedEvent(Struct, frozen=True, kw_only=True):
    """An event that will never be stored under this seq."""

    seq: int
    code: str
    detail: str


class ReceiptRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every event of the batch is stored, a duplicate, or rejected; 1 to `watermark` are all accounted for."""

    device_id: str
    stream: str
    stored: int
    duplicates: int
    rejected: list[RejectedEvent]
    watermark: int
    server_time: Time
    missing: list[Range] = []


class FailingDevice(Struct, frozen=True, kw_only=True):
    """A device that keeps failing."""

    device_id: str
    site: str | None
    consecutive_failures: int
    total_failures: int
    failing_since: Time | None
    last_sync_at: Time | None
    last_success_at: Time | None
    last_errors: ErrorsByCode


class DeviceRecord(Struct, frozen=True, kw_only=True):
    """A device: when it was last heard, refused, and how its sync runs go."""

    device_id: str
    site: str | None
    agent: str | None
    enrolled_at: Time | None
    last_contact: Time | None
    last_refused: Time | None
    consecutive_failures: int
    total_failures: int
    failing_since: Time | None
    last_sync_at: Time | None
    last_success_at: Time | None
    last_errors: ErrorsByCode
    cloned_since: Time | None
    conflicts: int


class StreamRecord(Struct, frozen=True, kw_only=True):
    """One stream, complete when nothing up to `highest`, the highest seq seen, is missing:
    stored + carried + rejected + missing_count = highest."""

    stream: str
    complete: bool
    watermark: int
    highest: int
    stored: int
    carried: int
    rejected: int
    conflicts: int
    missing: list[Range]
    missing_count: int
    rejections: list[RejectedEvent]
    first_received_at: Time
    last_received_at: Time


class EventRecord(Struct, frozen=True, kw_only=True):
    """A stored progress event. `estimated_at` is the receiver's best estimate of when it happened."""

    id: int
    device_id: str
    site: str | None
    stream: str
    seq: int
    type: str
    learner_id: str | None
    object_id: str | None
    occurred_at: Time
    boot_id: str | None
    boottime_ms: int | None
    clock_synced: bool
    estimated_at: Time
    quality: Quality
    received_at: Time
    data: Annotated[Raw, documented(type=["object", "null"])] = field(default_factory=lambda: Raw(b"null"))


class Identity(Struct, frozen=True, kw_only=True):
    """A device's identity. The token is shown this once."""

    device_id: str
    token: str


class Health(Struct, frozen=True, kw_only=True):
    """All is well."""

    status: Literal["ok"]


class Completeness(Struct, frozen=True, kw_only=True):
    """Every stream of a device. A cloned card shows as conflicts."""

    device_id: str
    complete: bool
    cloned_since: Time | None
    streams: list[StreamRecord]


def sync_event_record(row: StoredSyncEvent) -> SyncEventRecord:
    return SyncEventRecord(
        id=row.id,
        device_id=row.device_id,
        timestamp=row.timestamp,
        total_files_synced=row.total_files_synced,
        total_errors=row.total_errors,
        internet_speed=row.internet_speed,
        received_at=format_ms(row.received_ms),
        errors=dict(row.errors),
    )


def receipt_record(receipt: Receipt) -> ReceiptRecord:
    return ReceiptRecord(
        device_id=receipt.device_id,
        stream=receipt.stream,
        stored=receipt.stored,
        duplicates=receipt.duplicates,
        rejected=_rejections(receipt.rejected),
        watermark=receipt.watermark,
        server_time=receipt.server_time,
        missing=list(receipt.missing),
    )


def failing_device(row: FailureRow) -> FailingDevice:
    return FailingDevice(
        device_id=row.device_id,
        site=row.site,
        consecutive_failures=row.consecutive_failures,
        total_failures=row.total_failures,
        failing_since=_time(row.failing_since_ms),
        last_sync_at=_time(row.last_sync_ms),
        last_success_at=_time(row.last_success_ms),
        last_errors=dict(row.last_errors),
    )


def device_record(row: DeviceRow) -> DeviceRecord:
    return DeviceRecord(
        device_id=row.device_id,
        site=row.site,
        agent=row.agent,
        enrolled_at=_time(row.enrolled_ms),
        last_contact=_time(row.last_contact_ms),
        last_refused=_time(row.last_refused_ms),
        consecutive_failures=row.consecutive_failures,
        total_failures=row.total_failures,
        failing_since=_time(row.failing_since_ms),
        last_sync_at=_time(row.last_sync_ms),
        last_success_at=_time(row.last_success_ms),
        last_errors=dict(row.last_errors),
        cloned_since=_time(row.cloned_since_ms),
        conflicts=row.conflicts,
    )


def completeness_record(device: DeviceRow, streams: Sequence[StreamRow]) -> Completeness:
    return Completeness(
        device_id=device.device_id,
        complete=all(row.missing_count == 0 for row in streams),
        cloned_since=_time(device.cloned_since_ms),
        streams=[_stream_record(row) for row in streams],
    )


def _stream_record(row: StreamRow) -> StreamRecord:
    return StreamRecord(
        stream=row.stream,
        complete=row.missing_count == 0,
        watermark=row.watermark,
        highest=row.highest,
        stored=row.stored,
        carried=row.carried,
        rejected=row.rejected,
        conflicts=row.conflicts,
        missing=list(row.missing),
        missing_count=row.missing_count,
        rejections=_rejections(row.rejections),
        first_received_at=format_ms(row.first_ms),
        last_received_at=format_ms(row.last_ms),
    )


def _rejections(rows: Sequence[Rejection]) -> list[RejectedEvent]:
    return [RejectedEvent(seq=row.seq, code=row.code, detail=row.detail) for row in rows]


def event_record(row: EventRow) -> EventRecord:
    return EventRecord(
        id=row.id,
        device_id=row.device_id,
        site=row.site,
        stream=row.stream,
        seq=row.seq,
        type=row.type,
        learner_id=row.learner_id,
        object_id=row.object_id,
        occurred_at=row.occurred_at,
        boot_id=row.boot_id,
        boottime_ms=row.boottime_ms,
        clock_synced=row.clock_synced,
        estimated_at=format_ms(row.best_ms),
        quality=row.quality,
        received_at=format_ms(row.received_ms),
        data=Raw(b"null") if row.data is None else Raw(one_line(row.data).encode()),
    )


def one_line(text: str) -> str:
    """JSON text without line breaks between its tokens: an NDJSON row is one line."""
    if "\n" in text or "\r" in text:
        return msgspec.json.format(text, indent=-1)
    return text


def _time(ms: int | None) -> str | None:
    return None if ms is None else format_ms(ms)
