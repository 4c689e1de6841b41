"""What callers send, and answers that are not the store's records, as msgspec types for decoder and document."""

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from pisync_common import rules
from pisync_common.limits import (
    BATCH_EVENTS,
    EVENT_ID_CHARS,
    ID_CHARS,
    LEARNER_ID_CHARS,
    OBJECT_ID_CHARS,
    SEQ_MAX,
    SITE_CHARS,
)
from pisync_common.models import ERROR_CODES
from pisync_receiver.domain.acts import NOTE_CHARS, NOTE_PATTERN
from pisync_receiver.domain.records import CodeRecord, Count, Time, TokenRecord
from pisync_receiver.domain.submissions import Scope
from pisync_receiver.http.params import DURATION_PATTERN, text_schema

ErrorCode = Literal[
    "dns", "connect", "timeout", "tls", "clock", "portal", "auth", "rejected", "http_4xx", "http_5xx", "storage"
]

CODES_MAX: Final = 200
"""Enrollment codes of a single call."""
SPEED_MAX: Final = 10**9
"""Mbit/s; more is a mistake, and a number that no database column holds as it was sent."""


def documented(**schema: object) -> Meta:
    """A rule that the document states and `rules` checks: distinct values once each, not every value by regex."""
    return Meta(extra_json_schema=schema)


Id = Annotated[str, documented(pattern=rules.ID_PATTERN)]
EventType = Annotated[str, documented(pattern=rules.TYPE_PATTERN, maxLength=ID_CHARS)]
LearnerId = Annotated[str, documented(**text_schema(LEARNER_ID_CHARS))]
ObjectId = Annotated[str, documented(**text_schema(OBJECT_ID_CHARS))]
EventId = Annotated[str, documented(**text_schema(EVENT_ID_CHARS))]
Site = Annotated[str, documented(**text_schema(SITE_CHARS))]
Label = Site
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
Speed = Annotated[int, Meta(ge=0, le=SPEED_MAX)] | Annotated[float, Meta(ge=0, le=SPEED_MAX)]
ErrorCounts = Annotated[dict[ErrorCode, Count], documented(propertyNames={"enum": list(ERROR_CODES)})]
Agent = Annotated[str, Meta(max_length=ID_CHARS, extra_json_schema={"pattern": text_schema(ID_CHARS)["pattern"]})]
Data = Annotated[Raw, documented(type=["object", "null"])]
AnyEvent = Annotated[
    Raw,
    documented(
        anyOf=[
            {"$ref": "#/components/schemas/ProgressEvent"},
            {
                "description": "An event that breaks a rule: answered as rejected; its neighbours are stored.",
                "type": "object",
                "properties": {"seq": {"type": "integer", "minimum": 1, "maximum": SEQ_MAX}},
                "required": ["seq"],
            },
        ]
    ),
]


class Sent(Struct, frozen=True, kw_only=True):
    """The device's clocks at the moment it sent this batch."""

    at: Time
    boot_id: Id | None = None
    boottime_ms: Count | None = None
    clock_synced: bool = False


class CarriedFrom(Struct, frozen=True, kw_only=True, gc=False):
    """Where an event stood before it was carried into this stream."""

    stream: Id
    seq: Seq
    device_id: Id | None = None
    """Whose stream it is, if that is another device's."""


class ProgressEvent(Struct, frozen=True, kw_only=True, gc=False):
    """Something a learner did."""

    seq: Seq
    type: EventType
    occurred_at: Time
    recorded_at: Time | None = None
    """The moment of recording by the device's clock, where it is not `occurred_at`."""
    id: EventId | None = None
    """The app's own key: the same key with the same content is stored once, across devices if it is a UUID."""
    learner_home: LearnerId | None = None
    """What `learner_id` belongs to; the event's site unless it is given."""
    learner_id: LearnerId | None = None
    object_id: ObjectId | None = None
    boot_id: Id | None = None
    boottime_ms: Count | None = None
    clock_synced: bool = False
    data: Data = field(default_factory=Raw)
    origin: CarriedFrom | None = None


class Batch(Struct, frozen=True, kw_only=True):
    """Progress events of one stream in one request. A batch with a bad event is a good batch."""

    device_id: Id
    stream: Id
    events: Annotated[list[AnyEvent], documented(maxItems=BATCH_EVENTS)]
    sent: Sent | None = None
    agent: Agent | None = None


class SyncEventRequest(Struct, frozen=True, kw_only=True):
    """The record of one sync run."""

    device_id: Id
    timestamp: Time
    total_files_synced: Count
    total_errors: Count
    internet_speed: Speed
    errors: ErrorCounts = {}


class Enrollment(Struct, frozen=True, kw_only=True):
    """A code from an admin; the id the device would like, or none; the site it was prepared for."""

    code: Annotated[str, Meta(min_length=1, max_length=ID_CHARS)]
    device_id: Id | None = None
    site: Site | None = None
    """Taken if neither the code nor the device has a site; refused if the code is for another."""


class Identity(Struct, frozen=True, kw_only=True):
    """A device's identity. The token is shown this once."""

    device_id: str
    token: str


Seconds = Annotated[int, Meta(ge=0, le=10 * 365 * 86_400)]
"""Ten years at most."""


class TokenRequest(Struct, frozen=True, kw_only=True):
    """A token to create."""

    scope: Scope
    label: Label | None = None
    sites: Annotated[list[Site], Meta(min_length=1, max_length=1000)] | None = None
    """The only sites that a viewer or admin sees; all without it."""
    device_id: Id | None = None
    """For the scope device: whose it is."""
    expires_in_s: Seconds | None = None


class Rotation(Struct, frozen=True, kw_only=True):
    """A token to take over from another."""

    overlap_s: Seconds = 86_400
    """How long the replaced token works on."""
    label: Label | None = None
    """The replaced token's without it."""


class NewToken(Struct, frozen=True, kw_only=True):
    """A token's secret, shown this once, and its record."""

    token: str
    record: TokenRecord


class CodeRequest(Struct, frozen=True, kw_only=True):
    """An enrollment code to create."""

    uses: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    expires_in_s: Seconds = 7 * 86_400
    site: Site | None = None
    device_id: Id | None = None
    """The only device the code is for; it may be enrolled already."""
    label: Label | None = None
    count: Annotated[int, Meta(ge=1, le=CODES_MAX)] | None = None
    """How many such codes to create, all or none; the answer is then a list."""


class NewCode(Struct, frozen=True, kw_only=True):
    """An enrollment code, shown this once, and its record."""

    code: str
    enroll_file: str | None
    """The text of `pisync-enroll.toml`, with which a device enrolls without a person; null where the receiver does not
    know the address at which devices reach it: set `public_url`."""
    record: CodeRecord


class DeviceChanges(Struct, frozen=True, kw_only=True):
    """What to change of a device; what is left out stays."""

    site: Site | None = None
    site_since: Time | None = None
    """When it moved; now without it. Events and sync events keep the site of the time they happened."""
    label: Label | None = None
    retired: bool | None = None
    """True retires it and revokes its tokens, false brings it back."""


class NewNote(Struct, frozen=True, kw_only=True):
    """What to write about a device or a site."""

    text: Annotated[str, documented(minLength=1, maxLength=NOTE_CHARS, pattern=NOTE_PATTERN)]


class SiteChanges(Struct, frozen=True, kw_only=True):
    """What to change of a site; what is left out stays."""

    silent_after: Annotated[str, documented(pattern=DURATION_PATTERN)] | UnsetType | None = UNSET
    """When its devices count as silent, as 12h, 30d or 8w; null: as the receiver's setting says."""


class RetentionRequest(Struct, frozen=True, kw_only=True):
    """Which events and sync events to delete: those that arrived at least this long ago."""

    older_than_s: Annotated[int, Meta(ge=86_400, le=100 * 365 * 86_400)]
    type: EventType | None = None
    """Only events of this type, and no sync events."""
    after: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Of the answer before, to go on."""
    dry_run: bool = False


class ErasureRequest(Struct, frozen=True, kw_only=True):
    """A learner to erase."""

    learner_id: LearnerId
    learner_home: LearnerId | None = None
    """What `learner_id` belongs to: a site, unless the app names another. Without it, every home that the id occurs
    under."""
    dry_run: bool = False


class Health(Struct, frozen=True, kw_only=True):
    """All is well."""

    status: Literal["ok"]
    version: str
    """The receiver's."""
