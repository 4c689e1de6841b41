"""What admins see and write about single devices and sites: notes, conflicts, suspicious devices."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Raw, Struct

from pisync_receiver.domain.records import Time

NOTE_CHARS: Final = 2_000
NOTE_PATTERN: Final = rf"^[^\u0000-\u0009\u000b\u000c\u000e-\u001f\u007f-\u009f\u2028\u2029]{{1,{NOTE_CHARS}}}$"
"""Text without control characters but new lines."""

AnyObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


class Note(Struct, frozen=True, kw_only=True):
    """What a person wrote about a device or a site."""

    id: int
    at: Time
    author: str | None
    text: str


class EventVersion(Struct, frozen=True, kw_only=True):
    """One of several events that were sent under one seq."""

    kept: bool
    """Whether it stands under this seq; the others are kept beside it."""
    received_at: Time
    event: AnyObject
    """As it was sent. `learner_home` of the event that stands is filled in."""


class Conflict(Struct, frozen=True, kw_only=True):
    """A seq with several versions: two devices have used one identity. The version that stands comes first, unless it
    was deleted."""

    stream: str
    seq: int
    versions: list[EventVersion]


class Reason(Struct, frozen=True, kw_only=True):
    """Why a device is suspicious."""

    code: Literal["cloned", "used_after_end", "enrolled_again"]
    at: Time
    """Since when, or when last."""
    detail: str


class Suspicion(Struct, frozen=True, kw_only=True):
    """A device that needs a look."""

    device_id: str
    site: str | None
    reasons: list[Reason]
