"""Deadlines for what cannot be interrupted: resolving a name, or reading a disk that fails."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadline:
    """The end of an examination."""

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self._until = monotonic() + seconds

    def left(self, most: float = float("inf")) -> float:
        """Return how long a step may take: `most` seconds, or what is left; never less than 0."""
        return max(0.0, min(most, self._until - self.monotonic()))


class Pending(Generic[T]):
    """A call that goes on in a thread of its own, which does not keep the process from ending."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._done = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def result(self, seconds: float) -> T:
        """Return what the call returned. Raises its error, or TimeoutError after `seconds`."""
        if not self._done.wait(seconds):
            raise TimeoutError("no answer in time")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._ask())
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, or raise what it raises; raise TimeoutError after `seconds`."""
    return Pending(ask).result(seconds)
