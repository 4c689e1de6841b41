"""What the agent reports about its sync runs, and when.

- A failure, and the recovery from one, is reported at once; so is a run that somebody asked for.
- While a link stays up, successful runs fold into one report a quarter of an hour.
- Being offline is no failure and is not reported. What was held back by then is queued under its own time.
- Reports wait in the outbox and are sent in order, each with the time of its run and a key made once. Unlike learning
  they may be let go: one that the receiver itself declines for good is dropped with a log line, so that it does not
  block the others.

`decide` is the whole policy and looks at nothing but its arguments; `Reporter` keeps its memory and sends.
"""

import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Protocol

from pisync_agent.clock import Clock
from pisync_agent.errors import Declined, DeliveryError, Refused, Unreachable
from pisync_agent.outbox.models import Report
from pisync_agent.tally import mbit
from pisync_common.models import Stamp, SyncEvent
from pisync_common.times import format_ms, parse_ms
from pisync_common.wire import encode_sync_event

log = logging.getLogger(__name__)

QUARTER_MS: Final = 15 * 60 * 1000
MEMORY: Final = "reporting"
"""The note in the outbox under which the memory is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a sync run, or of several in a row."""

    stamp: Stamp
    files: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    offline: bool = False
    contact: bool = True
    """Whether the receiver was spoken to at all."""

    @property
    def failed(self) -> bool:
        return any(self.errors.values())

    @property
    def speed(self) -> float:
        """Mbit/s."""
        return mbit(self.bytes, self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What is remembered from one run to the next."""

    failing: bool = False
    reported: Stamp | None = None
    """When a success was last reported; None if the link has been away since, or a run failed."""
    held: Outcome | None = None
    """Successful runs that were not reported yet."""


def decide(memory: Memory, run: Outcome, *, forced: bool) -> tuple[list[Outcome], Memory]:
    """What to report after a run, oldest first, and what to remember."""
    held = [] if memory.held is None else [memory.held]
    if run.failed:
        return [*held, run], Memory(failing=True)
    if run.offline:
        # What did get through before the link went away is a success of that time.
        return [both(memory.held, run)] if held or run.files else [], Memory(failing=memory.failing)
    if not run.contact:
        return (held, Memory(reported=run.stamp)) if held and _due(memory, run.stamp) else ([], memory)
    whole = both(memory.held, run)
    if forced or memory.failing or _due(memory, run.stamp):
        return [whole], Memory(reported=run.stamp)
    return [], replace(memory, held=whole)


def both(earlier: Outcome | None, later: Outcome) -> Outcome:
    """Two outcomes as one, at the time of the later."""
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
    """Whether a report may get through after a run that ended so; `reached` is whether anything was sent in it.

    Where nobody took a byte, or the receiver wants nothing of this device, a report would fare no better.
    """
    if failure is None:
        return True
    if isinstance(failure, Refused) or failure.retry_after:
        return False
    return reached and not (isinstance(failure, Unreachable) and failure.kind in ("dns", "tls", "clock"))


def true_ms(stamp: Stamp, now: Stamp, *, now_ms: int | None) -> int:
    """When `stamp` was taken, as well as can be told: `now_ms` is the true time of `now` where that is known.

    A time that was synchronised stands. Any other of this boot is counted back from now by boot time.
    """
    if stamp.clock_synced or now_ms is None or stamp.boot_id != now.boot_id:
        return stamp.at_ms
    return now_ms - (now.boottime_ms - stamp.boottime_ms)


class Queue(Protocol):
    """As much of the outbox as a reporter needs."""

    def add_report(self, report: Report) -> None: ...
    def next_report(self) -> Report | None: ...
    def drop_report(self, report_id: int) -> None: ...
    def note(self, name: str) -> str | None: ...
    def set_note(self, name: str, value: str) -> None: ...


class Client(Protocol):
    """As much of the client as a reporter needs."""

    @property
    def device_id(self) -> str: ...
    def post_sync_event(self, body: bytes, *, key: str) -> None: ...


class Reporter:
    """Decides, remembers, sends. Used by one thread."""

    def __init__(
        self,
        queue: Queue,
        client: Client,
        *,
        clock: Clock,
        random_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._queue = queue
        self._client = client
        self._clock = clock
        self._random_hex = random_hex
        self._not_before = 0.0
        self._server: tuple[int, Stamp] | None = None

    @property
    def failing(self) -> bool:
        """Whether the last thing reported was a failure."""
        return self._memory().failing

    @property
    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return self._queue.next_report() is not None

    def learn(self, server_time: str) -> None:
        """The receiver's clock, a moment ago: for devices whose own is wrong."""
        try:
            self._server = (parse_ms(server_time), self._clock.stamp())
        except ValueError:
            return

    def add(self, run: Outcome, *, forced: bool) -> None:
        """Queue what a run has to say, or hold it back."""
        before = self._memory()
        outcomes, after = decide(before, run, forced=forced)
        for outcome in outcomes:
            self._queue.add_report(self._report(outcome))
        if after != before:
            self._queue.set_note(MEMORY, dump(after))

    def send(self, *, forced: bool = False, stopping: Callable[[], bool] = lambda: False) -> int:
        """Send what waits, oldest first, until all is sent or one fails; how many the receiver answered for.

        Not before a time that the receiver named, unless `forced`.
        """
        answered = 0
        if not forced and self._clock.monotonic() < self._not_before:
            return answered
        while not stopping() and (report := self._queue.next_report()) is not None:
            try:
                self._client.post_sync_event(self._body(report), key=report.key)
            except Declined as error:
                log.warning("a report of a sync run was declined and is dropped: %s", error)
            except DeliveryError as error:
                self.put_off(error)
                log.info("reports wait for the next run: %s", error)
                break
            assert report.id is not None
            self._queue.drop_report(report.id)
            answered += 1
        return answered

    def put_off(self, failure: DeliveryError) -> None:
        """A batch was answered with a time to wait: that holds for reports too."""
        if failure.retry_after:
            self._not_before = self._clock.monotonic() + failure.retry_after

    def _report(self, outcome: Outcome) -> Report:
        return Report(
            key=self._random_hex(16),
            stamp=outcome.stamp,
            files=outcome.files,
            errors=dict(outcome.errors),
            speed=outcome.speed,
        )

    def _body(self, report: Report) -> bytes:
        return encode_sync_event(
            SyncEvent(
                device_id=self._client.device_id,
                timestamp=format_ms(self._true_ms(report.stamp)),
                total_files_synced=report.files,
                total_errors=sum(report.errors.values()),
                internet_speed=report.speed,
                errors=report.errors,
            )
        )

    def _true_ms(self, stamp: Stamp) -> int:
        now = self._clock.stamp()
        if now.clock_synced:
            return true_ms(stamp, now, now_ms=now.at_ms)
        if self._server is not None:
            at_ms, then = self._server
            return true_ms(stamp, then, now_ms=at_ms)
        return true_ms(stamp, now, now_ms=None)

    def _memory(self) -> Memory:
        return load(self._queue.note(MEMORY))


def dump(memory: Memory) -> str:
    """A memory as a note."""
    return json.dumps(asdict(memory), separators=(",", ":"))


def load(note: str | None) -> Memory:
    """A memory from its note; a fresh one where there is none, or none that can be read."""
    try:
        kept = json.loads(note or "{}")
        reported, held = kept.get("reported"), kept.get("held")
        return Memory(
            failing=bool(kept.get("failing", False)),
            reported=None if reported is None else Stamp(**reported),
            held=None if held is None else Outcome(**{**held, "stamp": Stamp(**held["stamp"])}),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Memory()


def _due(memory: Memory, now: Stamp) -> bool:
    """Whether the quarter of an hour is over, by boot time; after a boot it is."""
    before = memory.reported
    return before is None or before.boot_id != now.boot_id or not 0 <= now.boottime_ms - before.boottime_ms < QUARTER_MS
