"""Progress and result of a sync run."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pisync_agent.errors import DeliveryError
from pisync_common.limits import KIB
from pisync_common.models import Receipt

SHOWN_S: Final = 0.2
"""The least time between two progress messages of one step."""

MEASURED_BYTES: Final = 64 * KIB
"""Below this, the round trip takes longer than the transfer, and a speed would say nothing about the link."""

SENDING: Final = "sending"
ASKING: Final = "asking"
SYNC_EVENT: Final = "sending sync event"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a sync run is."""

    step: str
    """`sending`, `asking` (for the watermark) or `sending sync event`."""
    events: int
    """Events the receiver has answered for in this run."""
    of: int
    """Events this run has to deliver."""
    bytes: int
    """Sent so far, headers included."""
    speed_mbit: float
    """0 while nothing is measured."""
    seconds_left: float | None

    def fields(self) -> dict[str, Any]:
        """Return it as the socket carries it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncResult:
    """The result of a sync run. Each event answered for was delivered, a duplicate, or rejected."""

    delivered: int
    """Newly stored by the receiver."""
    duplicates: int
    """Already known to the receiver."""
    rejected: int
    """New dead letters."""
    waiting: int
    """Events still pending."""
    errors: dict[str, int] = field(default_factory=dict)
    """By `models.ERROR_CODES`; empty if all went well."""
    seconds: float = 0.0
    bytes_sent: int = 0
    """Headers included."""
    speed_mbit: float = 0.0
    """Of the batches; 0 if nothing was measured."""
    failure: DeliveryError | None = None
    """What ended the run early."""
    offline: bool = False
    """There was no link; that is not a failure."""

    def __str__(self) -> str:
        """Return it as the log's line."""
        speed = f", {self.speed_mbit:.2g} Mbit/s" if self.speed_mbit else ""
        return (
            f"{self.delivered:,} delivered, {self.duplicates:,} duplicates, {self.rejected:,} rejected, "
            f"{self.waiting:,} pending in {self.seconds:.1f} s, {self.bytes_sent / 1000:,.0f} kB{speed}"
        )

    def fields(self) -> dict[str, Any]:
        """Return it as `sync --json` prints it."""
        failure = self.failure
        return {
            "delivered": self.delivered,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
            "waiting": self.waiting,
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            "bytes_sent": self.bytes_sent,
            "speed_mbit": self.speed_mbit,
            "offline": self.offline,
            "failure": failure and {"code": failure.code, "kind": failure.kind, "detail": str(failure)},
        }


Show = Callable[[Progress], None]


@dataclass(kw_only=True)
class ProgressTracker:
    """Counts what a run does, and shows it. `count_sent` and `show` may be called from any thread."""

    of: int
    monotonic: Callable[[], float]
    on_progress: Show
    transfer: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
    """Returns the bytes of bodies that were sent and answered in this run, and in how many seconds."""
    delivered: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    contact: bool = False
    """Whether the receiver itself has answered."""
    _step: str = ""
    _shown_at: float = 0.0
    _answered_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._began = self.monotonic()

    @property
    def events(self) -> int:
        return self.delivered + self.duplicates + self.rejected

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self.monotonic() - self._began

    @property
    def speed_mbit(self) -> float:
        return mbit(*self.measured)

    @property
    def measured(self) -> tuple[int, float]:
        """The bytes and seconds that tell the link's speed; none if they are too few."""
        bytes, seconds = self.transfer()
        return (bytes, seconds) if bytes >= MEASURED_BYTES else (0, 0.0)

    def count_receipt(self, receipt: Receipt) -> None:
        """Count what the receiver has answered for."""
        self.contact = True
        self._answered_at = self.monotonic()
        self.delivered += receipt.stored
        self.duplicates += receipt.duplicates
        self.rejected += len(receipt.rejected)
        if receipt.rejected:
            self.errors["rejected"] += len(receipt.rejected)

    def count_dead_letter(self, kind: str) -> None:
        """Count an event that the device made a dead letter."""
        self.rejected += 1
        self.errors[kind] += 1

    def count_sent(self, number: int) -> None:
        """Count bytes of a request."""
        with self._lock:
            self.bytes += number

    def show(self, step: str) -> None:
        """Show the progress, unless it was shown just now."""
        with self._lock:
            now = self.monotonic()
            if step == self._step and now - self._shown_at < SHOWN_S:
                return
            self._step, self._shown_at = step, now
        self.on_progress(
            Progress(
                step=step,
                events=self.events,
                of=max(self.of, self.events),
                bytes=self.bytes,
                speed_mbit=self.speed_mbit,
                seconds_left=self._left() if step == SENDING else None,
            )
        )

    def _left(self) -> float | None:
        """Estimate the seconds left from the pace up to the newest receipt; None while there is no pace yet."""
        if not self.events or self.of <= self.events:
            return None
        pace = (self._answered_at - self._began) / self.events
        return round(max(0.0, pace * self.of - self.seconds), 1)


def mbit(bytes: int, seconds: float) -> float:
    """Return Mbit/s, to six decimal places."""
    return round(bytes * 8 / 1e6 / seconds, 6) if seconds > 0 else 0.0
