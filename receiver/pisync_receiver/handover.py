"""From the event loop to the writers' threads, at the cost of one wake-up a group.

An idle writer is woken when the loop has handled everything that was ready in this round, not at the first item: what
came together is committed together, and the threads do not fight for the interpreter over every request. There is no
timer: a lone item is handed over in the same round. Of several idle writers one is woken; the next has its turn when
something comes while that one is busy.
"""

import asyncio
import queue
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """A queue with one end on the event loop (`put`, `close`) and the other on the writers' threads (`take`)."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = 0
        self._counting = threading.Lock()
        self._waking = False
        self._closed = False

    def put(self, item: T, loop: asyncio.AbstractEventLoop) -> None:
        """Add an item. On the event loop."""
        self._items.append(item)
        if self._idle and not self._waking:
            self._waking = True
            loop.call_soon(self._wake)

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
            if not self._items and not self._closed:
                self._signal.get()
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._idle += change

    def _wake(self) -> None:
        self._waking = False
        self._signal.put(None)
