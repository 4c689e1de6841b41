"""What goes into the outbox and what it tells about itself. Frozen, keyword-only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pisync_common.limits import MIB
from pisync_common.models import Stamp


@dataclass(frozen=True, kw_only=True)
class OutboxLimits:
    """How much of the disk the outbox may use."""

    max_bytes: int = 256 * MIB
    """The database file; never more than half of the disk that is free beside it."""
    keep_delivered_bytes: int = 32 * MIB
    """Delivered events kept for a receiver that was restored from an older copy: the newest so many bytes."""


class EventState(StrEnum):
    """Where an event in the outbox stands."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """An event that will not be delivered under its seq: kept until someone deals with it."""

    stream: str
    seq: int
    code: str
    """`invalid_event` or `conflict` from the receiver; `too_large` or `damaged` from the device itself."""
    detail: str
    body: str
    """The event's JSON text; for a damaged one, what could still be read of it."""
    requeued_as: int | None
    """Its new seq, once it was queued again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Salvaged:
    """A broken or superseded outbox file that was set aside."""

    at_ms: int
    reason: str
    carried: int
    """Events carried into the stream that followed."""
    damaged: int
    """Events that could be read in part only; they are dead letters now."""
    file: str
    """The name of the file set aside, in the same folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxState:
    """The outbox at one moment."""

    stream: str
    last_seq: int
    """The newest event's seq; 0 if the stream has none."""
    delivered: int
    """Events 1 to this number were accounted for by the receiver, as far as the device knows."""
    watermark: int
    """What the receiver last said."""
    waiting: int
    dead: int
    """Dead letters that were not queued again."""
    kept_from: int
    """The oldest event still held is this one; last_seq + 1 when none is."""
    bytes_used: int
    bytes_max: int
    salvaged: tuple[Salvaged, ...]
    """Files set aside, oldest first."""
    reports_waiting: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one sync run (or several, folded) has to say; sent as a sync event."""

    key: str
    """Its idempotency key, made once."""
    stamp: Stamp
    files: int
    errors: Mapping[str, int] = field(default_factory=dict)
    speed: float = 0.0
    """Mbit/s."""
    folded: int = 1
    """How many reports it stands for."""
    id: int | None = None
    """Its place in the queue; None until it is queued."""

    @property
    def failed(self) -> bool:
        return any(self.errors.values())
