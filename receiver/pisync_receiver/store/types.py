"""What goes into a store and what comes out of it. Frozen; times are whole milliseconds since 1970 (UTC).

A *submission* goes to `Store.write`; each has one kind of *outcome*. *Rows* are what queries return.

What is made for every request is a msgspec struct: making a frozen dataclass takes ten times as long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from pisync_common.models import Origin, Receipt, Rejection, Stamp
from pisync_receiver.health import Crossing

Role = Literal["device", "admin", "viewer"]
Quality = Literal["synced", "corrected", "estimated"]
Mode = Literal["consecutive", "total"]
Row = TypeVar("Row")

OVERLAP_MS: Final = 24 * 3600 * 1000
"""How long a device's old tokens still work after it was enrolled again."""


# --- submissions ---


class IncomingEvent(NamedTuple):
    """One valid progress event as it arrived. A tuple, not a dataclass: it is built a thousand times a batch."""

    seq: int
    type: str
    occurred_at: str
    """The device's claim, as sent."""
    occurred_ms: int
    learner_id: str | None = None
    object_id: str | None = None
    boot_id: str | None = None
    boottime_ms: int | None = None
    clock_synced: bool = False
    data: str | None = None
    """JSON text of an object."""
    origin: Origin | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InvalidEvent:
    """An event that breaks a rule: rejected, accounted for, kept with its body."""

    seq: int
    code: str
    detail: str
    body: str
    """The event's own JSON text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventBatch:
    """Progress events of one stream; outcome: Receipt. Without events it only asks for the watermark."""

    device_id: str
    stream: str
    sent: Stamp | None
    """The device's clocks when it sent this; None where it did not name them all."""
    agent: str | None
    events: Sequence[IncomingEvent]
    invalid: Sequence[InvalidEvent] = ()
    received_ms: int


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of one sync run; outcome: StoredSyncEvent, the first one where the key was used before."""

    device_id: str
    timestamp: str
    """As sent."""
    at_ms: int
    """`timestamp` as milliseconds."""
    total_files_synced: int
    total_errors: int
    internet_speed: float
    """Mbit/s, the number as sent: an int stays an int."""
    errors: Mapping[str, int] = msgspec.field(default_factory=dict)
    idempotency_key: str | None = None
    received_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCreate:
    """A new token, by its hash alone; outcome: TokenRow."""

    role: Role
    token_hash: str
    created_ms: int
    device_id: str | None = None
    """Whose it is; required for the role device."""
    expires_ms: int | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRevoke:
    """End a token now; outcome: TokenRow (unchanged if it was revoked before), or UnknownToken."""

    token_id: str
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenExpire:
    """Let a token end at `expires_ms`, unless it ends before; outcome: TokenRow as it stands then, or UnknownToken.
    For rotation with an overlap."""

    token_id: str
    expires_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRefused:
    """A token that had ended was used again; outcome: None. An unknown token is ignored."""

    token_id: str
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrollmentCreate:
    """A new enrollment code, by its hash alone; outcome: EnrollmentRow."""

    code_hash: str
    created_ms: int
    expires_ms: int
    uses: int = 1
    site: str | None = None
    device_id: str | None = None
    """The one device this code is for; it may exist already: making the code is the admin's consent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Enroll:
    """A code for an identity; outcome: Enrolled, or EnrollmentRefused, or DeviceIdTaken."""

    code_hash: str
    device_id: str | None
    """What the device would like to be called."""
    fallback_device_id: str
    """A fresh random id, for a device that asks for none with a code that names none."""
    token_hash: str
    at_ms: int
    overlap_ms: int = OVERLAP_MS


Submission = (
    EventBatch | SyncReport | TokenCreate | TokenRevoke | TokenExpire | TokenRefused | EnrollmentCreate | Enroll
)


# --- outcomes and rows ---


class StoredSyncEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A sync event as stored."""

    id: int
    device_id: str
    timestamp: str
    at_ms: int
    total_files_synced: int
    total_errors: int
    internet_speed: float
    errors: Mapping[str, int]
    """Empty where none were sent."""
    received_ms: int
    crossing: Crossing | None = None
    """Whether this report made the device's streak of failures reach the alarm, or ended it. Only in the outcome of
    the write that stored it: None for a repeat, and in every query."""
    consecutive_failures: int = 0
    """The device's streak after this report; only in the outcome of the write that stored it."""
    streak_before: int = 0
    """And before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """A token; its secret is known to nobody here."""

    id: str
    role: Role
    token_hash: str = field(repr=False)
    device_id: str | None
    label: str | None
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    last_refused_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrollmentRow:
    """An enrollment code; the code is known to nobody here."""

    id: str
    created_ms: int
    expires_ms: int
    uses_left: int
    site: str | None
    device_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolled:
    """A device and its new token."""

    device_id: str
    token: TokenRow
    ending: tuple[TokenRow, ...] = ()
    """The device's earlier tokens, as they stand now: with an end."""


Outcome = Receipt | StoredSyncEvent | TokenRow | EnrollmentRow | Enrolled | None | Exception
"""What `Store.write` returns for one submission. An exception: nothing of that submission was stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[Row]):
    """Some rows, and the cursor of those that follow."""

    rows: tuple[Row, ...]
    next: str | None
    """Give it as `cursor` for the next page; None at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRow:
    """A device and how it is doing. `last_sync_ms` and the like are by the sync events' own timestamps."""

    device_id: str
    site: str | None
    agent: str | None
    """The program's version, as the newest batch named it."""
    enrolled_ms: int | None
    last_contact_ms: int | None
    """When a batch or a sync event last arrived."""
    last_refused_ms: int | None
    """When a token of it that had ended was last used."""
    cloned_since_ms: int | None
    """When it was first seen to be two devices with one identity."""
    conflicts: int
    """Versions of events kept beside another under the same seq."""
    consecutive_failures: int
    total_failures: int
    failing_since_ms: int | None
    last_sync_ms: int | None
    last_success_ms: int | None
    last_errors: Mapping[str, int]
    """The error counts of the newest failure; empty where it named none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRow:
    """A device that keeps failing."""

    device_id: str
    site: str | None
    consecutive_failures: int
    total_failures: int
    """In mode `total` with `since`: those since then."""
    failing_since_ms: int | None
    last_sync_ms: int | None
    last_success_ms: int | None
    last_errors: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRow:
    """How complete one stream is: stored + carried + rejected + missing_count = highest."""

    stream: str
    watermark: int
    highest: int
    """The highest seq seen."""
    stored: int
    carried: int
    """Accounted for because the same event is stored under another seq or stream (see `Origin`)."""
    rejected: int
    """Accounted for without being stored."""
    conflicts: int
    """Further versions kept of a seq that already had one."""
    missing: tuple[tuple[int, int], ...]
    """Inclusive ranges, the first MISSING_RANGES of them."""
    missing_count: int
    """Events missing, in all ranges."""
    rejections: tuple[Rejection, ...]
    """The newest REJECTIONS of the rejected and the conflicts."""
    first_ms: int
    last_ms: int
    """When something of it first and last arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Every device and stream, counted."""

    well: int
    """Devices that were heard of and do not keep failing."""
    failing: int
    """Devices whose streak of failures has reached the alarm."""
    unheard: int
    """Devices of which nothing ever came."""
    streams_behind: int
    """Streams of which something is missing."""
    events_missing: int
    """Events above their streams' watermarks that are missing, or wait for one that is."""


MISSING_RANGES: Final = 1000
REJECTIONS: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedRow:
    """An event that was rejected, with what was sent."""

    device_id: str
    stream: str
    seq: int
    code: str
    detail: str
    body: str
    received_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    """A stored progress event."""

    id: int
    """Counts up in the order of arrival."""
    device_id: str
    site: str | None
    stream: str
    seq: int
    type: str
    learner_id: str | None
    object_id: str | None
    occurred_at: str
    """The device's claim, as sent."""
    boot_id: str | None
    boottime_ms: int | None
    clock_synced: bool
    data: str | None
    """JSON text of an object."""
    received_ms: int
    best_ms: int
    """The best estimate of when it happened."""
    quality: Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class EventFilter:
    """Which events; None does not filter. `since` (included) and `until` (excluded) are by arrival."""

    device_id: str | None = None
    stream: str | None = None
    type: str | None = None
    learner_id: str | None = None
    object_id: str | None = None
    site: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
