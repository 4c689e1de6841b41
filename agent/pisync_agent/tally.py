"""What a sync run tells while it goes on, and what it comes to."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pisync_agent.errors import DeliveryError
from pisync_common.models import Receipt

SHOWN_S: Final = 0.2
"""The least time between two signs of progress in one step."""

SENDING: Final = "sending"
ASKING: Final = "asking"
REPORTING: Final = "reporting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a sync run stands."""

    step: str
    """`sending`, `asking` (what the receiver has) or `reporting`."""
    events: int
    """Events the receiver has answered for in this run."""
    of: int
    """Events this run is about."""
    bytes: int
    """Sent so far, headers included."""
    speed_mbit: float
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncResult:
    """What came of a sync run. An answer to an event counts it as delivered, duplicate or rejected."""

    delivered: int
    """Newly stored by the receiver."""
    duplicates: int
    """Known to the receiver already."""
    rejected: int
    """New dead letters, as the receiver or the way to it would have it."""
    waiting: int
    """Events that still wait."""
    errors: dict[str, int] = field(default_factory=dict)
    """By `models.ERROR_CODES`; empty if all went well."""
    seconds: float = 0.0
    bytes_sent: int = 0
    """Headers included."""
    speed_mbit: float = 0.0
    """Of the batches."""
    failure: DeliveryError | None = None
    """What ended the run early."""
    offline: bool = False
    """There was no link; that is no failure."""


Show = Callable[[Progress], None]


class Tally:
    """Counts what a run does, and shows it."""

    def __init__(self, *, of: int, monotonic: Callable[[], float], show: Show) -> None:
        self.of = of
        self.delivered = self.duplicates = self.rejected = 0
        self.errors: Counter[str] = Counter()
        self.bytes = 0
        self.seconds_sending = 0.0
        self.contact = False
        """Whether the receiver itself has answered."""
        self._monotonic = monotonic
        self._show = show
        self._began = monotonic()
        self._step = ""
        self._shown_at = 0.0

    @property
    def events(self) -> int:
        return self.delivered + self.duplicates + self.rejected

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._monotonic() - self._began

    @property
    def speed_mbit(self) -> float:
        return mbit(self.bytes, self.seconds_sending)

    def receipt(self, receipt: Receipt) -> None:
        """The receiver has answered for a batch."""
        self.contact = True
        self.delivered += receipt.stored
        self.duplicates += receipt.duplicates
        self.rejected += len(receipt.rejected)
        if receipt.rejected:
            self.errors["rejected"] += len(receipt.rejected)

    def set_aside(self, kind: str) -> None:
        """The device has set an event aside."""
        self.rejected += 1
        self.errors[kind] += 1

    def show(self, step: str, *, moving: int = 0, since: float | None = None) -> None:
        """Tell how far it is; `moving` bytes of a request that began at `since` are on their way."""
        now = self._monotonic()
        if step == self._step and now - self._shown_at < SHOWN_S:
            return
        self._step, self._shown_at = step, now
        sent = self.bytes + moving
        spent = self.seconds_sending + (0.0 if since is None else now - since)
        self._show(
            Progress(
                step=step,
                events=self.events,
                of=max(self.of, self.events),
                bytes=sent,
                speed_mbit=mbit(sent, spent),
                seconds_left=self._left() if step == SENDING else None,
            )
        )

    def _left(self) -> float | None:
        """At the pace so far; None where there is none yet."""
        if not self.events or self.of <= self.events:
            return None
        return round(self.seconds / self.events * (self.of - self.events), 1)


def mbit(bytes: int, seconds: float) -> float:
    """Mbit/s, to six digits after the point."""
    return round(bytes * 8 / 1e6 / seconds, 6) if seconds > 0 else 0.0
