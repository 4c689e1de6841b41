"""What `decide` needs to know, and what it decides. An engine fetches a `Plan`, then `Details` if there are any, and
writes `Changes`.

    plan(submissions) -> Plan            fetch it, locking the devices                  -> Facts
    details(facts, submissions)          fetch it, only for what is no plain continuation; None: nothing more is needed
    decide(facts, submissions) -> Decision(outcomes, changes)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pisync_receiver.domain.audit import AuditEntry
from pisync_receiver.domain.rows import (
    Carried,
    Device,
    EarlierEvent,
    EnrollmentCode,
    EventKey,
    Gap,
    Rejected,
    Repaired,
    StoredEvent,
    StoredSyncEvent,
    Stream,
    Sums,
    Token,
)
from pisync_receiver.domain.submissions import Outcome

StreamName = tuple[str, str]
"""Device and stream."""
Place = tuple[str, str, int]
"""Device, stream and seq of a stored event."""
Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows to fetch first. Sorted and distinct, so that two groups lock devices in one order."""

    devices: Sequence[str] = ()
    """Devices of batches and sync events: made if there is no row, and locked until the commit."""
    known_devices: Sequence[str] = ()
    """Devices of administrative acts and enrollments: locked if there is a row, never made."""
    streams: Sequence[StreamName] = ()
    sync_keys: Sequence[tuple[str, str]] = ()
    """Device and idempotency key."""
    event_keys: Sequence[tuple[str, bytes]] = ()
    sync_event_ids: int = 0
    """How many ids of sync events to take."""
    token_hashes: Sequence[str] = ()
    token_ids: Sequence[int] = ()
    tokens_of: Sequence[str] = ()
    """Devices whose tokens that are not revoked are needed."""
    code_hashes: Sequence[str] = ()
    code_ids: Sequence[int] = ()
    learners: bool = False
    """Whether events may name learners: the keys of erased learners are needed, if any was erased."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """Rows to fetch in a second exchange. Each is bounded by the size of the batches it serves."""

    versions: Sequence[tuple[str, str, Sequence[int]]] = ()
    """Device, stream, and seqs of which every stored, carried and rejected version is needed."""
    gaps: Sequence[tuple[str, str, int, Sequence[int]]] = ()
    """Device, stream, how many of the first gaps, and seqs whose own gap is needed (the last gap that begins at or
    before the seq)."""
    neighbours: Sequence[tuple[str, str, int, int]] = ()
    """Device, stream, first and last seq: the best times of the stored events before and after."""
    late_successes: Sequence[tuple[str, int]] = ()
    """Device and effective time: the failures after it."""
    event_keys: Sequence[tuple[str, bytes]] = ()
    known_devices: Sequence[str] = ()
    """Devices that enrollment codes name: locked if there is a row, never made."""
    tokens_of: Sequence[str] = ()
    sessions_of: Sequence[int] = ()
    """Tokens whose sessions that are not revoked are needed; after `plan` locked the tokens, so that none is missed."""
    earlier: Sequence[tuple[str, str, int, str, int]] = ()
    """Device, stream, seq, boot, limit: the events before that seq, newest first; none unless the newest is of that
    boot."""
    learners: Sequence[str] = ()
    """Hashes of learners' ids: those of erased learners are needed."""


STORED: Final = "stored"
CARRIED: Final = "carried"
CONFLICT: Final = "conflict"
"""Kinds of versions, beside the codes of rules that an event broke."""


@dataclass(frozen=True, slots=True)
class Version:
    """What stands under a seq: `stored`, `carried`, or the code of a rejection."""

    kind: str
    content: bytes
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failures:
    """A device's failures after a moment: how many (FAILURES_COUNTED at most are counted), and the oldest's time."""

    count: int
    oldest_ms: int | None


@dataclass(kw_only=True, slots=True)
class Facts:
    """What was fetched. A key that is missing was not stored."""

    devices: dict[str, Device] = field(default_factory=dict)
    streams: dict[StreamName, Stream] = field(default_factory=dict)
    sync_events: dict[tuple[str, str], StoredSyncEvent] = field(default_factory=dict)
    event_keys: dict[tuple[str, bytes], Place] = field(default_factory=dict)
    sync_event_ids: list[int] = field(default_factory=list)
    """Ascending, one for each that the plan asked for."""
    tokens: list[Token] = field(default_factory=list)
    codes: list[EnrollmentCode] = field(default_factory=list)
    versions: dict[Place, list[Version]] = field(default_factory=dict)
    """In the order of arrival, a stored or carried one first."""
    gaps: dict[StreamName, list[Range]] = field(default_factory=dict)
    """Ascending and distinct."""
    neighbours: dict[StreamName, tuple[int | None, int | None]] = field(default_factory=dict)
    failures_after: dict[tuple[str, int], Failures] = field(default_factory=dict)
    earlier: dict[Place, list[EarlierEvent]] = field(default_factory=dict)
    """By device, stream and the seq before which they are."""
    erasure_keys: list[bytes] = field(default_factory=list)
    """Empty unless a learner was erased."""
    keys_asked: Sequence[bytes] = ()
    """Keys with which the engine has asked for the group's learners already."""
    erased: set[str] = field(default_factory=set)
    """Hashes of erased learners with an id that the group has."""


@dataclass(kw_only=True, slots=True)
class Changes:
    """Rows to write in one transaction. Lists named after a table hold rows to insert or, for `devices`, `streams`,
    `tokens_changed` and `codes_changed`, rows to replace by their key."""

    devices: list[Device] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    events: list[StoredEvent] = field(default_factory=list)
    repaired: list[Repaired] = field(default_factory=list)
    """Better times of events that were stored before."""
    event_keys: list[EventKey] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    gaps_closed: list[Gap] = field(default_factory=list)
    """To delete, before `gaps` is inserted."""
    gaps: list[Gap] = field(default_factory=list)
    sync_events: list[StoredSyncEvent] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    """What to add to daily sums, each once."""
    tokens: list[Token] = field(default_factory=list)
    tokens_changed: list[Token] = field(default_factory=list)
    codes: list[EnrollmentCode] = field(default_factory=list)
    codes_changed: list[EnrollmentCode] = field(default_factory=list)
    sessions_before_ms: int | None = None
    """Sessions that ended before this moment are deleted."""
    audit: list[AuditEntry] = field(default_factory=list)
    """The engine numbers and chains them, and completes their targets with the ids of new tokens and codes."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome for each submission, in their order, and what to write before any of them is handed out.

    New tokens and codes get their ids from the database: the engine replaces `Token` and `EnrollmentCode` outcomes
    with id 0 (also inside `Enrolled`) by the inserted row, found by its hash.
    """

    outcomes: list[Outcome]
    changes: Changes
