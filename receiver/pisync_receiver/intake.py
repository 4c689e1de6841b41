"""Group commit: a request hands its work in and waits; a writer commits everything that waits at once.

No group waits to grow: what arrives while a writer is busy is its next group. A group is one transaction of the store,
however many requests wait for it.

A store that blocks is written by one thread. One that an event loop can write is written here, and may have several
writers: the second begins only for a large submission, or when something has waited for `PATIENCE_S`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Protocol, overload

from pisync_common.limits import KIB, MIB
from pisync_common.models import Receipt
from pisync_receiver.backlog import Backlog
from pisync_receiver.errors import Overloaded
from pisync_receiver.health import ALARM
from pisync_receiver.logs import fields
from pisync_receiver.store import (
    Enroll,
    Enrolled,
    EventBatch,
    LoopStore,
    Store,
    StoredSyncEvent,
    Submission,
    SyncReport,
)

log = logging.getLogger(__name__)

LARGE: Final = 16 * KIB
"""Bytes of a submission that takes about as long to store as a hundred sync events: worth another writer's while."""
PATIENCE_S: Final = 0.03
"""How long something waits for a busy writer, or up to twice as long, before another begins. Longer than most groups
take: two small groups cost the database more than one that is twice as large."""
ON_LOOP_BYTES: Final = 1 * MIB
"""Of one group that is written on the event loop, where nothing else is answered while its rows are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeLimits:
    """What may wait and for how long, and how much of it is one group. Bytes are those of the decoded bodies."""

    waiting: int = 10_000
    waiting_bytes: int = 64 * MIB
    waiting_s: float = 30.0
    group: int = 1_000
    group_bytes: int = 8 * MIB


class Watcher(Protocol):
    """Hears of every group and every refusal, on the event loop; must be quick and must not raise."""

    def group(self, size: int, waited: float, writing: float) -> None:
        """`size` submissions were answered; the oldest had waited `waited` seconds, `writing` of them for the store."""

    def refused(self, reason: str) -> None:
        """A submission was refused: `stopping`, `waiting` (too many), `bytes` (too much) or `time` (too long)."""


class _Waiting:
    """One submission and the request that waits for its outcome; without a submission, one that asks for readiness."""

    __slots__ = ("arrived", "future", "size", "submission")

    def __init__(self, submission: Submission | None, size: int, future: "asyncio.Future[Any]", arrived: float) -> None:
        self.submission = submission
        self.size = size
        self.future = future
        self.arrived = arrived


class _Group:
    """What a writer takes from the line to store it together, and what became of it."""

    __slots__ = ("outcomes", "started", "taken", "took")

    def __init__(self, taken: list[_Waiting], started: float) -> None:
        self.taken = taken
        self.started = started
        self.took = 0.0
        self.outcomes: Sequence[object] = [None] * len(taken)

    @property
    def submissions(self) -> list[Submission]:
        """What to store; nothing where somebody asks for readiness."""
        return [item.submission for item in self.taken if item.submission is not None]

    @contextmanager
    def written(self, clock: Callable[[], float]) -> Iterator[None]:
        """Around what stores them: an error is the outcome of them all."""
        try:
            yield
        except Exception as error:
            self.outcomes = [error] * len(self.taken)
        self.took = clock() - self.started


class Intake:
    """The only way to the store's writers. Made anywhere; `start`, `submit`, `ready` and `close` on one event loop."""

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
        self._line: deque[_Waiting] = deque()
        self._waiting = 0
        self._bytes = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_store = store if isinstance(store, LoopStore) else None
        self._writers = 1 if self._loop_store is None else self._loop_store.writers
        self._group_bytes = limits.group_bytes if self._loop_store is None else min(limits.group_bytes, ON_LOOP_BYTES)
        self._busy = 0
        self._impatient: asyncio.TimerHandle | None = None
        self._all_written = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pisync-writer")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Submissions and questions of readiness not yet answered, those that are being committed included."""
        return self._waiting

    def start(self) -> None:
        """From now on what is submitted is written; outcomes come to the running event loop."""
        self._loop = asyncio.get_running_loop()

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

    async def ready(self) -> None:
        """Return when the store has written something, in its turn; however much waits, this is let in.

        Raises StoreUnusable, or Overloaded when that turn comes too late or the intake is closed.
        """
        if self._closed:
            raise Overloaded("the receiver is stopping", retry_after=1)
        await self._put(None, 0)

    async def close(self) -> None:
        """Take nothing more, finish what waits, and let the writers go. Harmless twice."""
        self._closed = True
        if self._busy:
            await self._all_written.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()
        if self._loop_store is not None:
            await self._loop_store.aclose()

    def _overloaded(self) -> Overloaded:
        after = self._backlog.retry_after(self._waiting)
        return Overloaded(f"the receiver is overloaded; nothing was stored; wait {after} s", retry_after=after)

    def _refused(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.refused(reason)

    def _put(self, submission: Submission | None, size: int) -> "asyncio.Future[Any]":
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[Any] = self._loop.create_future()
        item = _Waiting(submission, size, future, self._clock())
        self._waiting += 1
        self._bytes += size
        self._line.append(item)
        if not self._busy or (size >= LARGE and self._busy < self._writers):
            self._begin()
        elif self._impatient is None and self._busy < self._writers:
            self._impatient = self._loop.call_later(PATIENCE_S, self._look, item)
        return future

    # Writers: each takes one group after another until nothing waits.

    def _begin(self) -> None:
        """Let one more begin when the loop has handled what is ready: what came together is committed together."""
        assert self._loop is not None
        self._busy += 1
        if self._loop_store is None:
            self._loop.call_soon(self._thread.submit, self._write_in_thread)
        else:
            # In a context of its own: what it logs is no part of the request that came first.
            self._keep(self._loop.create_task(self._write_on_loop(self._loop_store), context=Context()))

    def _look(self, oldest: _Waiting) -> None:
        """Let another begin if what was the oldest then waits still."""
        assert self._loop is not None
        self._impatient = None
        if not self._line or self._busy == self._writers:
            return
        if self._line[0] is oldest:
            self._begin()
        self._impatient = self._loop.call_later(PATIENCE_S, self._look, self._line[0])

    async def _write_on_loop(self, store: LoopStore) -> None:
        try:
            while (group := self._next_group()) is not None:
                with group.written(self._clock):
                    if submissions := group.submissions:
                        group.outcomes = await store.awrite(submissions)
                    else:
                        await store.aready()
                self._finish(group)
        finally:
            self._ended()

    def _write_in_thread(self) -> None:
        try:
            while (group := self._next_group()) is not None:
                with group.written(self._clock):
                    if submissions := group.submissions:
                        group.outcomes = self._store.write(submissions)
                    else:
                        self._store.ready()
                self._back_on_loop(self._finish, group)
        finally:
            self._back_on_loop(self._ended)

    def _back_on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.warning("the event loop ended before a writer did; nobody can be told what became of its requests")

    def _next_group(self) -> _Group | None:
        """What waits, up to one group, but for what has waited too long; who asks for readiness is one alone."""
        now = self._clock()
        taken: list[_Waiting] = []
        late: list[_Waiting] = []
        size = 0
        while self._line and len(taken) < self._limits.group:
            item = self._line[0]
            if taken and (item.submission is None or size + item.size > self._group_bytes):
                break
            self._line.popleft()
            if item.arrived < now - self._limits.waiting_s:
                late.append(item)
                continue
            taken.append(item)
            size += item.size
            if item.submission is None:
                break
        if late:
            self._back_on_loop(self._give_up, late)
        return _Group(taken, now) if taken else None

    # On the event loop again.

    def _give_up(self, late: list[_Waiting]) -> None:
        for item in late:
            if item.submission is not None:
                self._refused("time")
        self._settle(late, [self._overloaded() for _ in late])

    def _finish(self, group: _Group) -> None:
        if not group.submissions:
            self._settle(group.taken, group.outcomes)
            return
        self._backlog.drained(len(group.taken), group.took)
        if self._watcher is not None:
            waited = group.started - group.taken[0].arrived + group.took
            self._watcher.group(len(group.taken), waited, group.took)
        _call_out(group.outcomes)
        if self._committed is None:
            self._settle(group.taken, group.outcomes)
        else:
            self._keep(asyncio.ensure_future(self._tell(self._committed, group)))

    def _ended(self) -> None:
        """A writer found nothing more. What came since then may have relied on it."""
        self._busy -= 1
        if self._line and not self._busy:
            self._begin()
        elif self._closed and not self._busy:
            self._all_written.set()

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, committed: Callable[[Sequence[object]], Awaitable[None]], group: _Group) -> None:
        try:
            await committed(group.outcomes)
        finally:
            self._settle(group.taken, group.outcomes)

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
