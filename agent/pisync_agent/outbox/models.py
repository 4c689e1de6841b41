"""What goes into the outbox and what it says about itself. Frozen, keyword-only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pisync_common.limits import MIB
from pisync_common.models import Stamp


@dataclass(frozen=True, kw_only=True)
class OutboxLimits:
    """How much of the disk the outbox may use."""

    max_bytes: int = 256 * MIB
    """The database file; never more than half of the free space of its disk."""
    keep_delivered_bytes: int = 32 * MIB
    """How many bytes of the newest delivered events are kept, for a receiver restored from an older copy."""


class EventState(StrEnum):
    """The state of an event in the outbox."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """An event that will not be delivered under its seq; kept until a person deals with it."""

    stream: str
    seq: int
    code: str
    """`invalid_event` or `conflict` from the receiver; `too_large`, `declined` or `damaged` from the device."""
    detail: str
    body: str
    """The event's JSON text; for a damaged event, what could still be read of it."""
    requeued_as: int | None
    """Its new seq, once it was queued again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Salvaged:
    """A broken or superseded outbox file that was set aside."""

    at_ms: int
    reason: str
    transferred: int
    """Events transferred into the stream that followed."""
    damaged: int
    """Events that could be read only in part; they are dead letters now."""
    file: str
    """The name of the file set aside, in the same folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxState:
    """The outbox at one moment; by default, one without a stream yet."""

    stream: str = ""
    last_seq: int = 0
    """The newest event's seq; 0 if the stream has none."""
    delivered: int = 0
    """Events 1 to this number were accounted for by the receiver, as far as the device knows."""
    watermark: int = 0
    """The receiver's last watermark."""
    waiting: int = 0
    dead: int = 0
    """Dead letters that were not queued again."""
    kept_from: int = 1
    """The oldest event still held; last_seq + 1 if none is."""
    bytes_used: int = 0
    bytes_max: int = 0
    salvaged: tuple[Salvaged, ...] = ()
    """Files set aside, oldest first."""
    sync_events_waiting: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedSyncEvent:
    """The sync event of one sync run (or of several, merged) until the receiver has it."""

    key: str
    """Its idempotency key, made once."""
    stamp: Stamp
    files: int
    errors: Mapping[str, int] = field(default_factory=dict)
    speed: float = 0.0
    """Mbit/s."""
    runs: int = 1
    """How many sync runs it stands for."""
    id: int | None = None
    """Its place in the queue; None until it is queued."""

    @property
    def failed(self) -> bool:
        return any(self.errors.values())


LAST_RUN: Final = "last_run"
"""The note in the outbox under which the service stores the result of its last sync run."""

CHECKED: Final = "checked"
"""The note that the service's check writes: when it was, in milliseconds."""

DEVICE: Final = "device"
"""The note of the device id under which this stream's events are delivered."""
