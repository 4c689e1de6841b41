"""Group commit: a request hands its work in and waits; a writer commits everything that waits at once.

No group waits to grow: what arrives while a writer is busy is its next group. A group is one transaction of the store
and one wake-up of the event loop, however many requests wait for it. A store says how many groups it can write at once.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, overload

from pisync_common.limits import KIB, MIB
from pisync_common.models import Receipt
from pisync_receiver.errors import Overloaded
from pisync_receiver.handover import Handover
from pisync_receiver.health import ALARM
from pisync_receiver.logs import fields
from pisync_receiver.store import Enroll, Enrolled, EventBatch, Store, StoredSyncEvent, Submission, SyncReport

log = logging.getLogger(__name__)

T = TypeVar("T")

_RATE_MEMORY: Final = 0.2
"""How much the newest group counts in the measured drain rate."""
_LARGE: Final = 16 * KIB
"""Bytes of a submission that takes about as long to store as a hundred sync events."""
RETRY_AFTER_MAX: Final = 3600
"""Seconds; a device asked to wait longer would look dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeLimits:
    """What may wait and for how long, and how much of it is one group. Bytes are those of the decoded bodies."""

    waiting: int = 10_000
    waiting_bytes: int = 64 * MIB
    waiting_s: float = 30.0
    group: int = 1_000
    group_bytes: int = 8 * MIB


class Watcher(Protocol):
    """Hears of every group and every refusal; must be quick and must not raise."""

    def group(self, size: int, waited: float, writing: float) -> None:
        """`size` submissions were answered; the oldest had waited `waited` seconds, `writing` of them for the store. On
        a writer's thread."""

    def refused(self, reason: str) -> None:
        """A submission was refused: `stopping`, `waiting` (too many), `bytes` (too much) or `time` (too long). On the
        event loop."""


class Backlog:
    """How long a refused caller is asked to wait: its turn in a queue that drains at the measured rate.

    Each refusal takes the next turn, so that the refused come back one after the other and not all at once.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._rate = 100.0  # submissions a second until the first group is measured
        self._next_turn = 0.0

    def drained(self, size: int, seconds: float) -> None:
        """`size` submissions took the writer `seconds`."""
        rate = size / max(seconds, 1e-4)
        self._rate += _RATE_MEMORY * (rate - self._rate)

    def retry_after(self, waiting: int) -> int:
        """Whole seconds until the turn of one more caller, with jitter on top: up to as long again."""
        now = self._clock()
        turn = max(now + waiting / self._rate, self._next_turn)
        self._next_turn = min(turn + 1 / self._rate, now + RETRY_AFTER_MAX)
        floor = max(turn - now, 1.0)
        return min(math.ceil(floor * (1 + self._random())), RETRY_AFTER_MAX)


class _Waiting:
    """One submission and the request that waits for its outcome."""

    __slots__ = ("arrived", "future", "size", "submission")

    def __init__(
        self, submission: Submission | Callable[[], object], size: int, future: "asyncio.Future[object]", arrived: float
    ) -> None:
        self.submission = submission
        self.size = size
        self.future = future
        self.arrived = arrived


class Intake:
    """The only way to the store's writers. Made anywhere; `start`, `submit`, `run` and `close` on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        limits: IntakeLimits,
        clock: Callable[[], float],
        random: Callable[[], float],
        watcher: Watcher | None = None,
        committed: Callable[[Sequence[object]], Awaitable[None]] | None = None,
    ) -> None:
        """`committed` hears of every group's outcomes, and only then do those who wait for them. It must not raise."""
        self._store = store
        self._limits = limits
        self._clock = clock
        self._watcher = watcher
        self._committed = committed
        self._backlog = Backlog(clock, random)
        self._queue: Handover[_Waiting]  # made by `start`
        self._waiting = 0
        self._bytes = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Submissions handed in and not answered, the group being committed included."""
        return self._waiting

    def start(self) -> None:
        """Start the writers; outcomes come back to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._queue = Handover(writers=self._store.writers)
        for number in range(1, self._store.writers + 1):
            thread = threading.Thread(target=self._write_groups, name=f"pisync-writer-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @overload
    def submit(self, submission: EventBatch, size: int) -> "asyncio.Future[Receipt]": ...
    @overload
    def submit(self, submission: SyncReport, size: int) -> "asyncio.Future[StoredSyncEvent]": ...
    @overload
    def submit(self, submission: Enroll, size: int = 0) -> "asyncio.Future[Enrolled]": ...
    @overload
    def submit(self, submission: Submission, size: int = 0) -> "asyncio.Future[Any]": ...
    def submit(self, submission: Submission, size: int = 0) -> "asyncio.Future[Any]":
        """A future of the outcome, done only after a durable commit. `size` is what it holds in memory, in bytes.

        Raises Overloaded at once when the intake is full or closed: then nothing was taken. The future raises what
        the store raised, or Overloaded when the submission's turn came too late: then nothing was stored. Cancelling
        it does not take the submission back.
        """
        if self._closed:
            self._refused("stopping")
            raise Overloaded("the receiver is stopping; nothing was stored", retry_after=self._backlog.retry_after(0))
        if self._waiting >= self._limits.waiting or self._bytes + size > self._limits.waiting_bytes:
            self._refused("waiting" if self._waiting >= self._limits.waiting else "bytes")
            raise self._overloaded()
        return self._put(submission, size)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` on a writer's thread between two of its groups: for what must not meet the only writer's."""
        if self._closed:
            raise Overloaded("the receiver is stopping", retry_after=1)
        return await self._put(function, 0)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Take nothing more, finish what waits, and stop the writers. Harmless twice."""
        self._closed = True
        if self._loop is not None:
            self._queue.close()
            for thread in self._threads:
                await asyncio.to_thread(thread.join)
            await asyncio.gather(*self._telling)

    def _overloaded(self) -> Overloaded:
        after = self._backlog.retry_after(self._waiting)
        return Overloaded(f"the receiver is overloaded; nothing was stored; wait {after} s", retry_after=after)

    def _refused(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.refused(reason)

    def _put(self, submission: Submission | Callable[[], object], size: int) -> "asyncio.Future[Any]":
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting += 1
        self._bytes += size
        self._queue.put(_Waiting(submission, size, future, self._clock()), self._loop, large=size >= _LARGE)
        return future

    # On the writers' threads.

    def _write_groups(self) -> None:
        while (first := self._queue.take(wait=True)) is not None:
            group, calls = self._group(first)
            late, group = self._late(group)
            if late:
                self._on_loop(self._give_up, late)
            if group:
                self._commit(group)
            for call in calls:
                self._call(call)

    def _group(self, first: _Waiting) -> tuple[list[_Waiting], list[_Waiting]]:
        """What waits, up to one group: submissions, and functions for after their commit."""
        group: list[_Waiting] = []
        calls: list[_Waiting] = []
        size, item = 0, first
        while True:
            (calls if callable(item.submission) else group).append(item)
            size += item.size
            if len(group) >= self._limits.group or size >= self._limits.group_bytes:
                return group, calls
            if (following := self._queue.take(wait=False)) is None:
                return group, calls
            item = following

    def _late(self, group: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        """Those that have waited too long, whose callers may be gone already, and the others."""
        oldest = self._clock() - self._limits.waiting_s
        late = [item for item in group if item.arrived < oldest]
        return late, [item for item in group if item.arrived >= oldest] if late else group

    def _commit(self, group: list[_Waiting]) -> None:
        started = self._clock()
        try:
            outcomes: Sequence[object] = self._store.write([item.submission for item in group])  # type: ignore[misc]
        except Exception as error:
            outcomes = [error] * len(group)
        finished = self._clock()
        self._backlog.drained(len(group), finished - started)
        if self._watcher is not None:
            self._watcher.group(len(group), finished - group[0].arrived, finished - started)
        self._wake(group, outcomes)
        _call_out(outcomes)

    def _call(self, call: _Waiting) -> None:
        try:
            outcome = call.submission()  # type: ignore[operator]
        except Exception as error:
            outcome = error
        self._wake([call], [outcome])

    def _wake(self, group: list[_Waiting], outcomes: Sequence[object]) -> None:
        if not self._on_loop(self._finish, group, outcomes):
            log.warning("the event loop ended before %d requests could be answered; they are stored", len(group))

    def _on_loop(self, function: Callable[..., None], *arguments: object) -> bool:
        """Whether there is a loop still."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    # On the event loop again.

    def _give_up(self, late: list[_Waiting]) -> None:
        for _ in late:
            self._refused("time")
        self._settle(late, [self._overloaded() for _ in late])

    def _finish(self, group: list[_Waiting], outcomes: Sequence[object]) -> None:
        if self._committed is None:
            self._settle(group, outcomes)
            return
        task = asyncio.ensure_future(self._tell(self._committed, group, outcomes))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(
        self,
        committed: Callable[[Sequence[object]], Awaitable[None]],
        group: list[_Waiting],
        outcomes: Sequence[object],
    ) -> None:
        try:
            await committed(outcomes)
        finally:
            self._settle(group, outcomes)

    def _settle(self, group: list[_Waiting], outcomes: Sequence[object]) -> None:
        for item, outcome in zip(group, outcomes, strict=True):
            self._waiting -= 1
            self._bytes -= item.size
            if item.future.done():
                continue  # its request was cancelled; what it handed in is stored all the same
            if isinstance(outcome, Exception):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)


def _call_out(outcomes: Sequence[object]) -> None:
    """One WARNING where a device's streak of failures reaches the alarm, and one where it ends."""
    for outcome in outcomes:
        if isinstance(outcome, StoredSyncEvent) and outcome.crossing is not None:
            detail = fields(device_id=outcome.device_id, consecutive_failures=outcome.consecutive_failures)
            if outcome.crossing == "failing":
                log.warning("a device keeps failing: at least %d sync events in a row", ALARM, extra=detail)
            else:
                log.warning("a device that kept failing has recovered", extra=detail)
