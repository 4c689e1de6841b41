"""Which sync events a device sends about its sync runs, and when.

- A failure, and the recovery from it, is sent at once; so is a run that was asked for.
- While a link is up, successful runs are merged into one sync event a quarter of an hour.
- Being offline is not a failure and makes no sync event. Successes not sent by then are queued under their own time.
- Sync events wait in the outbox and are sent in order, each with the time of its run and a key made once. Unlike
  progress events they may be dropped: a sync event that the receiver itself declines for good is dropped with a log
  line, so that it does not block the others.

`decide` is the whole policy and depends only on its arguments; `SyncEventSender` keeps its state and sends.
"""

import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from pisync_agent.client import ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import Declined, DeliveryError, Refused, Unreachable
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.sync.progress import mbit
from pisync_common.models import Stamp, SyncEvent
from pisync_common.times import format_ms, parse_ms
from pisync_common.wire import encode_sync_event

log = logging.getLogger(__name__)

QUARTER_MS: Final = 15 * 60 * 1000
EARLIEST_MS: Final = 1_577_836_800_000
LATEST_MS: Final = 4_102_444_800_000
"""The years 2020 to 2099: a receiver's clock that shows another year proves nothing."""
STATE_NOTE: Final = "sync_events"
"""The note in the outbox under which the state is stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a sync run did, or several in a row."""

    stamp: Stamp
    files: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    """Of the transfers that were measured."""
    seconds: float = 0.0
    offline: bool = False
    contact: bool = True
    """Whether the receiver was reached at all."""

    @property
    def failed(self) -> bool:
        return any(self.errors.values())

    @property
    def speed(self) -> float:
        """Mbit/s."""
        return mbit(self.bytes, self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What is remembered from one run to the next."""

    failing: bool = False
    success_sent: Stamp | None = None
    """When the last success was queued; None if the link has been away since, or a run failed."""
    unsent: RunSummary | None = None
    """Successful runs without a sync event yet."""


def decide(state: State, run: RunSummary, *, forced: bool) -> tuple[list[RunSummary], State]:
    """Return what to send after a run, oldest first, and the next state."""
    unsent = [] if state.unsent is None else [state.unsent]
    if run.failed:
        return [*unsent, run], State(failing=True)
    if run.offline:
        # What got through before the link went away is a success of that time.
        return [merged(state.unsent, run)] if unsent or run.files else [], State(failing=state.failing)
    if not run.contact:
        return (unsent, State(success_sent=run.stamp)) if unsent and _due(state, run.stamp) else ([], state)
    whole = merged(state.unsent, run)
    if forced or state.failing or _due(state, run.stamp):
        return [whole], State(success_sent=run.stamp)
    return [], replace(state, unsent=whole)


def merged(earlier: RunSummary | None, later: RunSummary) -> RunSummary:
    """Return two summaries as one, at the time of the later."""
    if earlier is None:
        return later
    return replace(
        later,
        stamp=later.stamp if later.contact else earlier.stamp,
        files=earlier.files + later.files,
        errors=dict(Counter(earlier.errors) + Counter(later.errors)),
        bytes=earlier.bytes + later.bytes,
        seconds=earlier.seconds + later.seconds,
    )


def worth_trying(failure: DeliveryError | None, *, reached: bool) -> bool:
    """Return whether a sync event may get through after a run that ended so; `reached`: bytes were sent in it.

    Where no byte was accepted, or the receiver refuses this device, a sync event would fare no better.
    """
    if failure is None:
        return True
    if isinstance(failure, Refused) or failure.retry_after:
        return False
    return reached and not (isinstance(failure, Unreachable) and failure.kind in ("dns", "tls", "clock"))


def true_ms(stamp: Stamp, now: Stamp, *, now_ms: int | None) -> int:
    """Return the best estimate of when `stamp` was taken; `now_ms` is the true time of `now` where that is known.

    A synchronised time stands. Any other of this boot is counted back from now by boot time.
    """
    if stamp.clock_synced or now_ms is None or stamp.boot_id != now.boot_id:
        return stamp.at_ms
    return now_ms - (now.boottime_ms - stamp.boottime_ms)


@dataclass(kw_only=True)
class SyncEventSender:
    """Decides, remembers, sends. Used by one thread."""

    queue: Outbox
    client: ReceiverClient
    clock: Clock
    random_hex: Callable[[int], str] = secrets.token_hex
    _not_before: float = 0.0
    _server: tuple[int, Stamp] | None = None

    @property
    def failing(self) -> bool:
        """Whether the last sync event was a failure."""
        return self._state().failing

    @property
    def pending(self) -> bool:
        """Whether there is anything to send."""
        return self.queue.next_sync_event() is not None

    def learn_time(self, server_time: str) -> int | None:
        """Remember the receiver's clock of a moment ago, for devices whose own is wrong; None if it proves nothing."""
        try:
            ms = parse_ms(server_time)
        except ValueError:
            return None
        if not EARLIEST_MS <= ms < LATEST_MS:
            return None
        self._server = (ms, self.clock.stamp())
        return ms

    def add(self, run: RunSummary, *, forced: bool) -> None:
        """Queue the sync event of a run, or keep it for a later one."""
        before = self._state()
        summaries, after = decide(before, run, forced=forced)
        if after != before:
            self.queue.set_note(STATE_NOTE, dump(after), later=True)
        if summaries:
            self.queue.add_sync_event(*map(self._queued, summaries))

    def send(self, *, forced: bool = False, stopping: Callable[[], bool] = lambda: False) -> int:
        """Send what is pending, oldest first, until one fails; return how many the receiver answered for.

        Not before a time that the receiver named, unless `forced`.
        """
        answered = 0
        if not forced and self.clock.monotonic() < self._not_before:
            return answered
        while not stopping() and (event := self.queue.next_sync_event()) is not None:
            try:
                self.client.post_sync_event(self._body(event), key=event.key)
            except Declined as error:
                log.warning("a sync event was declined and is dropped: %s", error)
            except DeliveryError as error:
                self.put_off(error)
                log.info("sync events stay queued for the next run: %s", error)
                break
            assert event.id is not None
            self.queue.delete_sync_event(event.id)
            answered += 1
        return answered

    def put_off(self, failure: DeliveryError) -> None:
        """Wait with sync events too if a batch was answered with a time to wait."""
        if failure.retry_after:
            self._not_before = self.clock.monotonic() + failure.retry_after

    def _queued(self, summary: RunSummary) -> QueuedSyncEvent:
        return QueuedSyncEvent(
            key=self.random_hex(16),
            stamp=summary.stamp,
            files=summary.files,
            errors=dict(summary.errors),
            speed=summary.speed,
        )

    def _body(self, event: QueuedSyncEvent) -> bytes:
        return encode_sync_event(
            SyncEvent(
                device_id=self.client.device_id,
                timestamp=format_ms(self._true_ms(event.stamp)),
                total_files_synced=event.files,
                total_errors=sum(event.errors.values()),
                internet_speed=event.speed,
                errors=event.errors,
            )
        )

    def _true_ms(self, stamp: Stamp) -> int:
        now = self.clock.stamp()
        if now.clock_synced:
            return true_ms(stamp, now, now_ms=now.at_ms)
        if self._server is not None:
            at_ms, then = self._server
            return true_ms(stamp, then, now_ms=at_ms)
        return true_ms(stamp, now, now_ms=None)

    def _state(self) -> State:
        return load(self.queue.note(STATE_NOTE))


def dump(state: State) -> str:
    """Return a state as a note."""
    return json.dumps(asdict(state), separators=(",", ":"))


def load(note: str | None) -> State:
    """Return a state from its note; a new one if there is none, or it cannot be read."""
    try:
        stored = json.loads(note or "{}")
        sent, unsent = stored.get("success_sent"), stored.get("unsent")
        return State(
            failing=bool(stored.get("failing", False)),
            success_sent=None if sent is None else Stamp(**sent),
            unsent=None if unsent is None else RunSummary(**{**unsent, "stamp": Stamp(**unsent["stamp"])}),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return State()


def _due(state: State, now: Stamp) -> bool:
    """Return whether the quarter of an hour has passed, by boot time; after a boot it has."""
    before = state.success_sent
    return before is None or before.boot_id != now.boot_id or not 0 <= now.boottime_ms - before.boottime_ms < QUARTER_MS
