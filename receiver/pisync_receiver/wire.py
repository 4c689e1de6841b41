"""What callers send, as msgspec types: the decoder's and the document's."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Raw, Struct, field

from pisync_common import rules
from pisync_common.limits import BATCH_EVENTS, ID_CHARS, OBJECT_ID_CHARS, SEQ_MAX
from pisync_common.models import ERROR_CODES

ErrorCode = Literal[
    "dns", "connect", "timeout", "tls", "clock", "portal", "auth", "rejected", "http_4xx", "http_5xx", "storage"
]

SPEED_MAX: Final = 10**9
"""Mbit/s; more is a mistake, and a number no database column holds as it was sent."""

OBJECT_ID_SCHEMA: Final = {
    "minLength": 1,
    "maxLength": OBJECT_ID_CHARS,
    # The pattern of `rules` without surrogates: alone they are no text, and many a regex engine refuses to name them.
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$",
}


def documented(**schema: object) -> Meta:
    """A rule that the document states and `rules` checks: distinct values once each, not every value by regex."""
    return Meta(extra_json_schema=schema)


Id = Annotated[str, documented(pattern=rules.ID_PATTERN)]
EventType = Annotated[str, documented(pattern=rules.TYPE_PATTERN, maxLength=ID_CHARS)]
ObjectId = Annotated[str, documented(**OBJECT_ID_SCHEMA)]
Time = Annotated[str, documented(format="date-time")]
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
Count = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Speed = Annotated[int, Meta(ge=0, le=SPEED_MAX)] | Annotated[float, Meta(ge=0, le=SPEED_MAX)]
ErrorCounts = Annotated[dict[ErrorCode, Count], documented(propertyNames={"enum": list(ERROR_CODES)})]
Agent = Annotated[str, Meta(max_length=ID_CHARS)]
Data = Annotated[Raw, documented(type=["object", "null"])]
AnyEvent = Annotated[
    Raw,
    documented(
        anyOf=[
            {"$ref": "#/components/schemas/ProgressEvent"},
            {
                "description": "An event that breaks a rule. It is answered as rejected, and spoils no neighbour.",
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


class ProgressEvent(Struct, frozen=True, kw_only=True, gc=False):
    """Something a learner did."""

    seq: Seq
    type: EventType
    occurred_at: Time
    learner_id: Id | None = None
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


class SyncEvent(Struct, frozen=True, kw_only=True):
    """The report of one sync run."""

    device_id: Id
    timestamp: Time
    total_files_synced: Count
    total_errors: Count
    internet_speed: Speed
    errors: ErrorCounts = {}


class Enrollment(Struct, frozen=True, kw_only=True):
    """A code from an admin; the id the device would like, or none."""

    code: Annotated[str, Meta(min_length=1, max_length=ID_CHARS)]
    device_id: Id | None = None
