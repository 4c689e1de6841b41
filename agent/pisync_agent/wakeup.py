"""What wakes the service's loop from outside: signals, and another thread."""

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Wakeup:
    """A pair of sockets whose reading end is in a selector. `wake` may be called from any thread."""

    def __init__(self, selector: selectors.BaseSelector, woken: Callable[[], None]) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._woken = woken
        selector.register(self._reading, selectors.EVENT_READ, self._ready)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: the loop has not yet noticed the last one; closed: it has ended
            self._writing.send(b"\0")

    def close(self) -> None:
        self._reading.close()
        self._writing.close()

    @contextmanager
    def signals(self, note: Callable[[int], None], numbers: tuple[int, ...]) -> Iterator[None]:
        """Inside the block `note` hears of each of these signals, and the loop wakes. In the main thread only."""

        def handle(number: int, _: FrameType | None) -> None:
            note(number)

        before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ready(self, _: int) -> None:
        with contextlib.suppress(OSError):
            self._reading.recv(4096)
        self._woken()
