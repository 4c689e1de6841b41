"""What callers hand to the store. Frozen; times are whole milliseconds since 1970 (UTC).

Each kind of submission has one kind of outcome, named in its docstring; an exception as outcome means that nothing of
that submission was stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from msgspec import Struct, field

from pisync_common.models import Origin, Receipt, Stamp
from pisync_receiver.domain.rows import Device, EnrollmentCode, StoredSyncEvent, Token

Scope = Literal["device", "viewer", "admin", "metrics"]
T = TypeVar("T")

OVERLAP_MS: Final = 24 * 3600 * 1000
"""How long a device's earlier tokens still work after it enrolled again."""


class Actor(Struct, frozen=True, kw_only=True):
    """Who does something, as the audit log names them."""

    name: str
    token_id: int | None = None
    """The token that was used; of a session, the token that opened it."""
    address: str | None = None
    """Where the request came from."""


class Event(Struct, frozen=True, gc=False):
    """One valid progress event of a batch. Built by position, a thousand times a batch."""

    seq: int
    type: str
    occurred_at: str
    """The claimed time, as sent."""
    occurred_ms: int
    content: bytes
    """`content.event_hash`: equal for two versions of an event that say the same."""
    recorded_at: str | None = None
    """When it was recorded by the device's clock, as sent; None if that is `occurred_at`."""
    recorded_ms: int | None = None
    learner_home: str | None = None
    learner_id: str | None = None
    object_id: str | None = None
    event_id: str | None = None
    """The app's own key, `id` on the wire."""
    boot_id: str | None = None
    boottime_ms: int | None = None
    clock_synced: bool = False
    data: str | None = None
    """JSON text of an object."""
    origin: Origin | None = None


class InvalidEvent(Struct, frozen=True, kw_only=True):
    """An event that breaks a rule: rejected, accounted for, kept with its body."""

    seq: int
    code: str
    detail: str
    body: str
    """The event's own JSON text."""
    content: bytes
    """`content.body_hash`."""


class EventBatch(Struct, frozen=True, kw_only=True):
    """Progress events of one stream; outcome: Receipt. Without events it asks for the watermark only."""

    device_id: str
    stream: str
    sent: Stamp | None
    """The device's clocks when it sent this; None unless it named them all."""
    agent: str | None
    events: Sequence[Event]
    invalid: Sequence[InvalidEvent] = ()
    received_ms: int


class SyncEvent(Struct, frozen=True, kw_only=True):
    """One sync event; outcome: StoredSyncEvent, the first one if the key was used before."""

    device_id: str
    timestamp: str
    """As sent."""
    claimed_ms: int
    """`timestamp` as milliseconds."""
    total_files_synced: int
    total_errors: int
    internet_speed: float
    """Mbit/s, the number as sent: an int stays an int."""
    errors: Mapping[str, int] = field(default_factory=dict)
    idempotency_key: str | None = None
    received_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCreate:
    """A new token, by its hash alone; outcome: Token, or UnknownToken if `replaces` names none.

    Repeating it with the same hash returns the token that is there.
    """

    scope: Scope
    token_hash: str
    at_ms: int
    device_id: str | None = None
    """Required for the scope device."""
    label: str | None = None
    sites: tuple[str, ...] | None = None
    """The only sites that a viewer or admin sees; None for all."""
    expires_ms: int | None = None
    replaces: int | None = None
    """Rotation: the token that ends at `replaced_until_ms`, unless it ends earlier."""
    replaced_until_ms: int | None = None
    by: Actor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRevoke:
    """End a token and its sessions now; outcome: Token (unchanged if it was revoked before), or UnknownToken."""

    token_id: int
    at_ms: int
    by: Actor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRefused:
    """A token that had ended was used again; outcome: None. An unknown token is ignored."""

    token_id: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionOpen:
    """Sign a person in, with a token or as an identity provider says; outcome: Token (the session), or SignInRefused.

    Repeating it with the same hash returns the session that is there.
    """

    token_hash: str
    """Of the session's own secret."""
    at_ms: int
    parent_hash: str | None = None
    """Of the token that opens it; None for a person whom an identity provider vouches for."""
    scope: Scope | None = None
    """Without a token: what the session may do."""
    label: str | None = None
    """Without a token: who it is."""
    address: str | None = None
    """Where the request came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionUse:
    """A session was used; outcome: Token, its idle end moved, or None if it has ended."""

    session_id: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionClose:
    """Sign a person out; outcome: Token, or None if there is no such session."""

    session_id: int
    at_ms: int
    by: Actor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeCreate:
    """A new enrollment code, by its hash alone; outcome: EnrollmentCode."""

    code_hash: str
    at_ms: int
    expires_ms: int
    uses: int = 1
    site: str | None = None
    device_id: str | None = None
    """The one device this code is for; it may exist already: making the code is the admin's consent."""
    label: str | None = None
    by: Actor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeBatch:
    """New enrollment codes, all of them or none; outcome: CodesMade. None of them is for one device."""

    codes: tuple[CodeCreate, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeEnd:
    """End an enrollment code now; outcome: EnrollmentCode, or UnknownCode."""

    code_id: int
    at_ms: int
    by: Actor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Enroll:
    """Exchange a code for an identity; outcome: Enrolled, or EnrollmentRefused, or DeviceIdTaken.

    The same code and device id again, while the code has not expired or ended, give a fresh token and use nothing up:
    the first answer may have been lost. So does the same `token_hash`.
    """

    code_hash: str
    device_id: str | None
    """The id the device asks for."""
    fallback_device_id: str
    """A fresh random id, for a device that asks for none with a code that names none."""
    token_hash: str
    at_ms: int
    site: str | None = None
    """The site that the device was prepared for."""
    overlap_ms: int = OVERLAP_MS
    address: str | None = None
    """Where the request came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceChange:
    """An admin's change of a device; outcome: Device, or UnknownDevice. Fields left None stay as they are."""

    device_id: str
    at_ms: int
    site: str | None = None
    """Move: the site from `site_since_ms` on. Events and sync events keep the site of the time they happened."""
    site_since_ms: int | None = None
    """When the move happened; None for `at_ms`."""
    label: str | None = None
    """Rename: what people call it. The device id never changes."""
    retire: bool | None = None
    """True retires it and revokes its tokens; False brings it back (it must enroll again)."""
    revoke: bool = False
    """Revoke its tokens; it must enroll again."""
    ask_for_sync: bool = False
    """Ask it, in the answer to its next contact, to deliver everything at once."""
    by: Actor | None = None


class AuditNote(Struct, frozen=True, kw_only=True):
    """What was done and changed nothing in the store, such as an export; outcome: None. A repeat is noted again."""

    by: Actor
    act: str
    at_ms: int
    target: str | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodesMade:
    """The rows of a CodeBatch, in its order."""

    codes: tuple[EnrollmentCode, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncAsked(Generic[T]):
    """The outcome of a device's submission whose answer has to ask the device to deliver everything."""

    outcome: T


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolled:
    """A device and its new token; `ending` are its earlier tokens, as they stand now."""

    device_id: str
    token: Token
    ending: tuple[Token, ...] = ()


Act = (
    TokenCreate
    | TokenRevoke
    | TokenRefused
    | SessionOpen
    | SessionUse
    | SessionClose
    | CodeCreate
    | CodeBatch
    | CodeEnd
    | Enroll
    | DeviceChange
    | AuditNote
)
"""What is no delivery of a device."""
Submission = EventBatch | SyncEvent | Act

Outcome = (
    Receipt
    | StoredSyncEvent
    | SyncAsked[Receipt | StoredSyncEvent]
    | Token
    | EnrollmentCode
    | CodesMade
    | Enrolled
    | Device
    | None
    | Exception
)
