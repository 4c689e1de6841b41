"""Group commit among threads: a thread that finds no commit in progress commits everything submitted by then.

No timer and no thread of its own: what arrives while a commit is in progress is the next group, and its first caller
leads it. A single caller commits at once.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """`commit` takes what several callers submitted and returns a result for each, in order. Thread-safe."""

    def __init__(self, commit: Callable[[Sequence[T]], Sequence[R]], *, most: int = 1000) -> None:
        self._commit = commit
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[T, R]] = []
        self._led = False

    def submit(self, item: T) -> R:
        """Return the result for `item` once its group is committed; raise what `commit` raised for the whole group."""
        ticket: _Ticket[T, R] = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            leads, self._led = not self._led, True
        if not leads:
            leads = ticket.wait()
        if leads:
            self._lead(ticket)
        return ticket.result_or_error()

    def _lead(self, mine: "_Ticket[T, R]") -> None:
        with self._lock:
            group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        try:
            self._commit_all(group)
        finally:
            for ticket in group:
                if ticket is not mine:
                    ticket.wake(leads=False)
            self._hand_over()

    def _commit_all(self, group: "list[_Ticket[T, R]]") -> None:
        try:
            results = self._commit([ticket.item for ticket in group])
            for ticket, result in zip(group, results, strict=True):
                ticket.result = result
        except BaseException as error:
            for ticket in group:
                ticket.error = error

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting[0].wake(leads=True)
            else:
                self._led = False


class _Ticket(Generic[T, R]):
    """One caller's place in a group."""

    __slots__ = ("_ready", "error", "item", "leads", "result")

    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | None = None
        self.error: BaseException | None = None
        self.leads = False
        self._ready = threading.Lock()
        self._ready.acquire()

    def wait(self) -> bool:
        """Wait for a result, or for a group to lead; return whether it leads."""
        self._ready.acquire()
        return self.leads

    def wake(self, *, leads: bool) -> None:
        self.leads = leads
        self._ready.release()

    def result_or_error(self) -> R:
        if self.error is not None:
            # A copy: each thread writes its own traceback into it.
            raise copy.copy(self.error) from self.error
        return self.result  # type: ignore[return-value]
