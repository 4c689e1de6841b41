"""What the receiver answers with: documented types, which the store's queries return as they are.

Times are RFC 3339 in UTC. Building a record never fails for a stored row (see `times.shown`).
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Final, Generic, Literal, TypeVar

from msgspec import Meta, Raw, Struct, field

from pisync_common.limits import SEQ_MAX
from pisync_receiver.domain.rows import EnrollmentCode, StoredSyncEvent, Token
from pisync_receiver.domain.times import claimed, shown

MISSING_RANGES: Final = 1000
"""Missing ranges that a stream's record lists."""
REJECTIONS: Final = 100
"""Rejected events that a stream's record lists."""
CODE_DEVICES: Final = 100
"""Devices that an enrollment code's record lists."""

Row = TypeVar("Row")
T = TypeVar("T")

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Count = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Quality = Literal["synced", "corrected", "estimated"]
Mode = Literal["consecutive", "total"]
Range = tuple[int, int]
ErrorsByCode = dict[str, Count]


class Page(Struct, Generic[Row], frozen=True, kw_only=True):
    """Rows, and the cursor of the next page; None at the end."""

    rows: list[Row]
    next: str | None
    total: int | None = None
    """How many rows all pages had when the first was read, where that is counted."""


class SyncEventRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored sync event: the five fields as they were sent."""

    id: int
    device_id: str
    timestamp: Time
    total_files_synced: int
    total_errors: int
    internet_speed: int | float
    received_at: Time
    site: str | None = None
    errors: ErrorsByCode = {}


class RejectedEvent(Struct, frozen=True, kw_only=True):
    """An event that will never be stored under this seq."""

    seq: int
    code: str
    detail: str


class RejectedRecord(Struct, frozen=True, kw_only=True):
    """A rejected event or a conflicting version, with what was sent."""

    device_id: str
    stream: str
    seq: int
    code: str
    detail: str
    body: str
    """What was sent; the end of a very long event is left out."""
    received_at: Time


class FailingDevice(Struct, frozen=True, kw_only=True):
    """A device that keeps failing."""

    device_id: str
    site: str | None
    consecutive_failures: int
    total_failures: int
    """With `since`, the failures since then."""
    failing_since: Time | None
    last_sync_at: Time | None
    last_success_at: Time | None
    last_errors: ErrorsByCode


class StreamRecord(Struct, frozen=True, kw_only=True):
    """A stream, complete when nothing up to `highest`, the highest seq seen, is missing:
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
    """The first MISSING_RANGES of them."""
    missing_count: int
    rejections: list[RejectedEvent]
    """The newest REJECTIONS of them."""
    first_received_at: Time
    last_received_at: Time


class Completeness(Struct, frozen=True, kw_only=True):
    """Every stream of a device. A cloned card shows as conflicts."""

    device_id: str
    complete: bool
    cloned_since: Time | None
    streams: list[StreamRecord]


class EventRecord(Struct, frozen=True, kw_only=True):
    """A stored progress event. `estimated_at` is the receiver's best estimate of when it happened."""

    id: int
    """The arrival number: counts up in the order of arrival, over all devices."""
    device_id: str
    site: str | None
    stream: str
    seq: int
    type: str
    event_id: str | None
    """The app's own key, sent as `id`."""
    learner_home: str | None
    learner_id: str | None
    object_id: str | None
    occurred_at: Time
    recorded_at: Time | None
    boot_id: str | None
    boottime_ms: int | None
    clock_synced: bool
    estimated_at: Time
    quality: Quality
    received_at: Time
    data: Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})] = field(
        default_factory=lambda: Raw(b"null")
    )


class TokenRecord(Struct, frozen=True, kw_only=True):
    """A token, without its secret, which is not kept."""

    id: int
    scope: str
    label: str | None
    device_id: str | None
    sites: list[str] | None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_refused: Time | None
    parent_id: int | None = None
    """Of a session: the token that opened it."""
    session_until: Time | None = None
    """Of a session: when it ends, however busy it is. Only sessions have it."""


class CodeRecord(Struct, frozen=True, kw_only=True):
    """An enrollment code, without the code, which is not kept."""

    id: int
    label: str | None
    site: str | None
    device_id: str | None
    uses: int
    uses_left: int
    created_at: Time
    expires_at: Time
    ended_at: Time | None
    devices: list[str]
    """The first CODE_DEVICES of the devices that it let in."""


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which events; None does not filter. `since` (included) and `until` (excluded) are by arrival,
    `occurred_since` and `occurred_until` by the best time."""

    device_id: str | None = None
    stream: str | None = None
    type: str | None = None
    learner_id: str | None = None
    object_id: str | None = None
    site: str | None = None
    sites: tuple[str, ...] | None = None
    """The only sites that the caller may see."""
    since_ms: int | None = None
    until_ms: int | None = None
    occurred_since_ms: int | None = None
    occurred_until_ms: int | None = None


def sync_event_record(row: StoredSyncEvent) -> SyncEventRecord:
    return SyncEventRecord(
        id=row.id,
        device_id=row.device_id,
        timestamp=claimed(row.timestamp, row.at_ms),
        total_files_synced=row.total_files_synced,
        total_errors=row.total_errors,
        internet_speed=row.internet_speed,
        received_at=shown(row.received_ms),
        site=row.site,
        errors=errors_of(row.errors),
    )


def token_record(row: Token) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        scope=row.scope,
        label=row.label,
        device_id=row.device_id,
        sites=None if row.sites is None else _json_of(row.sites, list),
        created_at=shown(row.created_ms),
        expires_at=time_of(row.expires_ms),
        revoked_at=time_of(row.revoked_ms),
        last_refused=time_of(row.last_refused_ms),
        parent_id=row.parent_id,
        session_until=time_of(row.session_until_ms),
    )


def code_record(row: EnrollmentCode, devices: Sequence[str] = ()) -> CodeRecord:
    return CodeRecord(
        id=row.id,
        label=row.label,
        site=row.site,
        device_id=row.device_id,
        uses=row.uses,
        uses_left=row.uses_left,
        created_at=shown(row.created_ms),
        expires_at=shown(row.expires_ms),
        ended_at=time_of(row.ended_ms),
        devices=list(devices),
    )


def time_of(ms: int | None) -> str | None:
    """Return a stored time as text, if there is one."""
    return None if ms is None else shown(ms)


def errors_of(text: str | None) -> ErrorsByCode:
    """Return stored error counts; empty if there are none."""
    return _json_of(text or "{}", dict)


def _json_of(text: str, kind: Callable[[], T]) -> T:
    """Return a stored JSON value; an empty one if the text holds none of this kind."""
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(text), kind):  # type: ignore[arg-type]
            return value  # type: ignore[no-any-return]
    return kind()
