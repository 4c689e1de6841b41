"""Group commit: requests submit work and wait; a writer commits everything that is pending as one group.

Groups are never delayed to grow: the next group is what arrived while the writer was busy. A group is one transaction
of the store, however many requests it serves.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Protocol, overload

from pisync_common.limits import MIB
from pisync_common.models import Receipt
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import (
    Enroll,
    Enrolled,
    EventBatch,
    Submission,
    SyncAsked,
    SyncEvent,
)
from pisync_receiver.errors import Overloaded, StoreUnusable
from pisync_receiver.store import Store

PATIENCE_S: Final = 0.03
"""How long the oldest item waits for a busy writer before another begins, where the store has several. Longer than most
groups take: two small groups cost the database more than a single one of twice the size."""
TURN_S: Final = 1.0
"""The longest that a refusal takes its turn, however long the store does."""
RETRY_AFTER_MAX: Final = 3600
"""Seconds; a device asked to wait longer would look dead."""
_RATE_MEMORY: Final = 0.2
"""How much the newest group counts in the measured rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeLimits:
    """How much may be pending and for how long, and how much of it is one group. Bytes are those of decoded bodies."""

    waiting: int = 10_000
    waiting_bytes: int = 64 * MIB
    waiting_s: float = 30.0
    group: int = 1_000
    group_bytes: int = 1 * MIB


class Watcher(Protocol):
    """Called for every group and every refusal; must be quick and must not raise."""

    def group(self, size: int, waited: float, writing: float) -> None:
        """`size` submissions were answered; the oldest had waited `waited` seconds, `writing` of them for the store."""

    def refused(self, reason: str) -> None:
        """A submission was refused: `stopping`, `waiting` (too many), `bytes` (too much) or `time` (too long)."""


class RetryAfter:
    """Gives each refused caller its turn in a queue that drains at the measured rate.

    Each refusal takes the next turn, so that refused callers return one after the other and not all at once.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._rate = 100.0  # submissions a second until the first group is measured
        self._next_turn = 0.0

    def drained(self, size: int, seconds: float) -> None:
        """Note that the writer took `seconds` for `size` submissions."""
        self._rate += _RATE_MEMORY * (size / max(seconds, 1e-4) - self._rate)

    def next(self, waiting: int) -> int:
        """Return whole seconds until the turn of another caller, with jitter on top: up to as long again."""
        now = self._clock()
        turn = max(now + waiting / self._rate, self._next_turn)
        self._next_turn = min(turn + 1 / self._rate, now + RETRY_AFTER_MAX)
        return min(math.ceil(max(turn - now, 1.0) * (1 + self._random())), RETRY_AFTER_MAX)


@dataclass(slots=True, eq=False)
class _Item:
    """A submission and the request that awaits its outcome; a readiness probe has no submission."""

    submission: Submission | None
    size: int
    future: "asyncio.Future[Any]"
    arrived: float


class Intake:
    """The only way to the store's writers. Used on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        limits: IntakeLimits,
        clock: Callable[[], float],
        random: Callable[[], float],
        watcher: Watcher | None = None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._watcher = watcher
        self._retry_after = RetryAfter(clock, random)
        self._line: deque[_Item] = deque()
        self._waiting = 0
        self._bytes = 0
        self._closed = False
        self._busy = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn: asyncio.Future[None] | None = None
        self._impatient: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Submissions and readiness probes not yet answered, those being committed included."""
        return self._waiting

    @overload
    def submit(self, submission: EventBatch, size: int) -> "asyncio.Future[Receipt | SyncAsked[Receipt]]": ...
    @overload
    def submit(
        self, submission: SyncEvent, size: int
    ) -> "asyncio.Future[StoredSyncEvent | SyncAsked[StoredSyncEvent]]": ...
    @overload
    def submit(self, submission: Enroll, size: int = 0) -> "asyncio.Future[Enrolled]": ...
    @overload
    def submit(self, submission: Submission, size: int = 0) -> "asyncio.Future[Any]": ...
    def submit(self, submission: Submission, size: int = 0) -> "asyncio.Future[Any]":
        """Return a future of the outcome, done only after a durable commit. `size` is what it holds in memory.

        Raises Overloaded at once when the intake is full or closed: then nothing was taken. The future raises what the
        store raised, or Overloaded when the submission waited too long: then nothing was stored. Cancelling it does
        not take the submission back.
        """
        if self._closed:
            self._refused("stopping")
            raise Overloaded("the receiver is stopping; nothing was stored", retry_after=self._retry_after.next(0))
        too_many = self._waiting >= self._limits.waiting
        if too_many or self._bytes + size > self._limits.waiting_bytes:
            self._refused("waiting" if too_many else "bytes")
            raise self._overloaded()
        return self._put(submission, size)

    async def ready(self) -> None:
        """Return when the store has written something, in its turn; a full intake accepts this too.

        Raises StoreUnusable, or Overloaded when the turn comes too late or the intake is closed.
        """
        if self._closed:
            raise Overloaded("the receiver is stopping", retry_after=1)
        await self._put(None, 0)

    async def turn(self) -> None:
        """Return when the group under way is committed, at once if there is none, and after `TURN_S` at the latest.

        A caller whose body is refused takes this turn first: refusing is quicker than storing, so a loop of bad bodies
        would otherwise be served three times as often as a loop of good bodies.
        """
        if self._busy and not self._closed:
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._turn,), timeout=TURN_S)

    async def close(self) -> None:
        """Refuse new work and finish what is pending. Harmless twice."""
        self._closed = True
        self._end_turn()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _put(self, submission: Submission | None, size: int) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        item = _Item(submission, size, loop.create_future(), self._clock())
        self._waiting += 1
        self._bytes += size
        self._line.append(item)
        if not self._busy:
            self._begin(loop)
        elif self._impatient is None and self._busy < self._store.writers:
            self._impatient = loop.call_later(PATIENCE_S, self._look, item)
        return item.future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a writer once the loop has handled what is ready: what arrived together is committed together."""
        # In a context of its own: what it logs is no part of the request that came first.
        self._busy += 1
        writer = loop.create_task(self._write(), context=Context())
        self._tasks.add(writer)
        writer.add_done_callback(self._tasks.discard)

    def _look(self, oldest: _Item) -> None:
        """Start another writer if what was the oldest item then still waits."""
        self._impatient = None
        if not self._line or self._busy >= self._store.writers:
            return
        loop = asyncio.get_running_loop()
        if self._line[0] is oldest:
            self._begin(loop)
        self._impatient = loop.call_later(PATIENCE_S, self._look, self._line[0])

    async def _write(self) -> None:
        """Commit group after group until nothing is pending."""
        while group := self._next_group():
            started = self._clock()
            submissions = [item.submission for item in group if item.submission is not None]
            outcomes: Sequence[object] = [None]
            try:
                if submissions:
                    outcomes = await self._store.write(submissions)
                else:
                    await self._store.ready()
            except Exception as error:
                outcomes = [error] * len(group)
            except asyncio.CancelledError:  # without this the writer would end, and all that waits would wait for good
                outcomes = [StoreUnusable("the commit was cancelled")] * len(group)
            if submissions:
                writing = self._clock() - started
                self._retry_after.drained(len(group), writing)
                if self._watcher is not None:
                    self._watcher.group(len(group), started - group[0].arrived + writing, writing)
            self._settle(group, outcomes)
            self._end_turn()
        self._busy -= 1  # in the same step that found nothing pending: the next item starts a writer

    def _next_group(self) -> list[_Item]:
        """Return the next group to commit; refuse items that waited too long. A readiness probe is its own group."""
        limit = self._clock() - self._limits.waiting_s
        group: list[_Item] = []
        size = 0
        while self._line and len(group) < self._limits.group:
            item = self._line[0]
            if group and (item.submission is None or size + item.size > self._limits.group_bytes):
                break
            self._line.popleft()
            if item.arrived < limit:
                if item.submission is not None:
                    self._refused("time")
                self._settle([item], [self._overloaded()])
                continue
            group.append(item)
            size += item.size
            if item.submission is None:
                break
        return group

    def _settle(self, group: Sequence[_Item], outcomes: Sequence[object]) -> None:
        for item, outcome in zip(group, outcomes, strict=True):
            self._waiting -= 1
            self._bytes -= item.size
            if item.future.done():
                continue  # its request was cancelled; the submission is stored all the same
            if isinstance(outcome, Exception):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.set_result(None)
            self._turn = None

    def _refused(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.refused(reason)

    def _overloaded(self) -> Overloaded:
        after = self._retry_after.next(self._waiting)
        return Overloaded(f"the receiver is overloaded; nothing was stored; wait {after} s", retry_after=after)
