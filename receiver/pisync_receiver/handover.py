"""From the event loop to the writers' threads, at the cost of one wake-up a group.

While every writer is idle, one is woken when the loop has handled everything that was ready in this round, not at the
first item: what came together is committed together. While one is busy, what comes is its next group, and it needs no
waking for that. So groups grow with the load by themselves, and the threads seldom fight for the interpreter. Another
writer has its turn only for a large item, or when the oldest has waited for `PATIENCE_S` because a group takes long.
"""

import asyncio
import queue
import threading
from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

PATIENCE_S: Final = 0.03
"""How long an item waits for a busy writer before it wakes one that is idle. Longer than most groups take: two small
groups cost the database, and the interpreter, more than one that is twice as large."""


class Handover(Generic[T]):
    """A queue with one end on the event loop (`put`, `close`) and the other on the threads of `writers` (`take`)."""

    def __init__(self, *, writers: int) -> None:
        self._items: deque[T] = deque()
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._writers = writers
        self._idle = 0
        self._counting = threading.Lock()
        self._waking = False
        self._watching = False
        self._closed = False

    @property
    def idle(self) -> int:
        """How many writers wait for something to do."""
        return self._idle

    def put(self, item: T, loop: asyncio.AbstractEventLoop, *, large: bool = False) -> None:
        """Add an item; a large one takes a writer long enough to be worth another's while. On the event loop."""
        self._items.append(item)
        if not self._waking and (self._idle == self._writers or (large and self._idle)):
            self._wake(loop)
        if self._idle and not self._watching and self._writers > 1:
            self._watch(loop)

    def close(self) -> None:
        """Let the writers go when they have taken everything."""
        with self._counting:
            self._closed = True
            for _ in range(self._idle):
                self._signal.put(None)

    def take(self, *, wait: bool) -> T | None:
        """The oldest item; None if there is none or, with `wait`, once the queue was closed. On a writer's thread."""
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                if not wait or (self._closed and not self._items):
                    return None
            # In this order, so that an item put meanwhile is either seen here or wakes us.
            self._count(1)
            woken = not self._items and not self._closed
            if woken:
                self._signal.get()
            self._count(-1)
            if woken:
                self._waking = False

    def _count(self, change: int) -> None:
        with self._counting:
            self._idle += change

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake a writer when this round of the loop ends."""
        self._waking = True  # until the woken writer says so
        loop.call_soon(self._signal.put, None)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that the oldest item does not wait for long."""
        self._watching = True
        loop.call_later(PATIENCE_S, self._look, self._oldest(), loop)

    def _look(self, oldest: T | None, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = False
        if (now_oldest := self._oldest()) is None or self._waking or not self._idle:
            return
        if now_oldest is oldest:
            self._wake(loop)
        self._watch(loop)

    def _oldest(self) -> T | None:
        try:
            return self._items[0]
        except IndexError:
            return None
