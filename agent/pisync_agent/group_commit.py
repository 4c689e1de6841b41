"""Group commit among threads: a thread that finds no commit in progress commits everything submitted by then.

No timer and no thread of its own: what arrives while a commit is in progress is the next group, and its first caller
leads it. A single caller commits at once.

Every wait ends at the caller's deadline. A group is committed by its leader's deadline; where that passes first, the
others, whose time is not over, are in the next group.
"""

import copy
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class OutOfTime(Exception):
    """The deadline has passed; `commit` raises it too. `begun`: the commit of the caller's group is in progress."""

    begun = False


class GroupCommit(Generic[T, R]):
    """`commit` takes what several callers submitted, and a deadline, and returns a result for each, in order.

    Thread-safe. Deadlines are in seconds of `monotonic`.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T], float], Sequence[R]],
        *,
        most: int = 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._most = most
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[T, R]] = []
        self._led = False

    def submit(self, item: T, *, deadline: float) -> R:
        """Return the result for `item` once its group is committed; raise what `commit` raised for the whole group.

        Raises OutOfTime at the deadline.
        """
        ticket: _Ticket[T, R] = _Ticket(item, deadline)
        with self._lock:
            self._waiting.append(ticket)
            leads, self._led = not self._led, True
        if not leads:
            leads = self._wait(ticket)
        if leads:
            self._lead(ticket)
        return ticket.result_or_error()

    def _wait(self, ticket: "_Ticket[T, R]") -> bool:
        """Wait for a result, or for a group to lead; return whether it leads. Raises OutOfTime."""
        try:
            woken = ticket.wait(ticket.deadline - self._monotonic())
        except BaseException:  # a signal handler's
            with self._lock:
                self._leave(ticket)
            raise
        with self._lock:
            if woken or ticket.woken:
                return ticket.leads
            late = OutOfTime()
            late.begun = self._leave(ticket)
        raise late

    def _leave(self, ticket: "_Ticket[T, R]") -> bool:
        """Take a caller's ticket out; return whether its group is being committed. Called with the lock held."""
        ticket.left = True
        if ticket not in self._waiting:
            return True
        self._waiting.remove(ticket)
        if ticket.leads:
            self._hand_over()
        return False

    def _lead(self, mine: "_Ticket[T, R]") -> None:
        with self._lock:
            group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        try:
            self._commit_all(group, mine.deadline)
        finally:
            with self._lock:
                again = [ticket for ticket in group if ticket is not mine and self._has_time(ticket)]
                self._waiting[:0] = again
                for ticket in group:
                    if ticket in again:
                        ticket.error = None
                    elif ticket is not mine:
                        ticket.wake(leads=False)
                self._hand_over()

    def _commit_all(self, group: "list[_Ticket[T, R]]", deadline: float) -> None:
        try:
            results = self._commit([ticket.item for ticket in group], deadline)
            for ticket, result in zip(group, results, strict=True):
                ticket.result = result
        except BaseException as error:
            for ticket in group:
                ticket.error = error

    def _has_time(self, ticket: "_Ticket[T, R]") -> bool:
        """Return whether only the leader's time was over, and the caller still waits."""
        return isinstance(ticket.error, OutOfTime) and not ticket.left and ticket.deadline > self._monotonic()

    def _hand_over(self) -> None:
        """Let the first caller lead the next group. Called with the lock held."""
        if self._waiting:
            self._waiting[0].wake(leads=True)
        else:
            self._led = False


class _Ticket(Generic[T, R]):
    """One caller's place in a group."""

    __slots__ = ("_ready", "deadline", "error", "item", "leads", "left", "result", "woken")

    def __init__(self, item: T, deadline: float) -> None:
        self.item = item
        self.deadline = deadline
        self.result: R | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.woken = False
        self.left = False
        """Whether its caller has given up."""
        self._ready = threading.Lock()
        self._ready.acquire()

    def wait(self, seconds: float) -> bool:
        """Wait until it is woken; return whether it was."""
        return self._ready.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))

    def wake(self, *, leads: bool) -> None:
        self.leads, self.woken = leads, True
        self._ready.release()

    def result_or_error(self) -> R:
        if self.error is not None:
            # A copy: each thread writes its own traceback into it.
            raise copy.copy(self.error) from self.error
        return self.result  # type: ignore[return-value]
