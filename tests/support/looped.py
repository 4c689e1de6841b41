"""A PostgreSQL store whose writes go through an event loop, as the receiver's do, behind calls that block."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from pisync_receiver.store import Outcome, Submission
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import PostgresStore, open_store

T = TypeVar("T")


class LoopedStore(PostgresStore):
    """Its loop runs in a thread of its own."""

    def __init__(self, url: PostgresUrl, **how: Any) -> None:
        super().__init__(url, **how)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        return self.begin(submissions).result()

    def begin(self, submissions: Sequence[Submission]) -> Future[list[Outcome]]:
        """`write`, without waiting for it."""
        return self._start(self.awrite(submissions))

    def beat(self) -> None:
        """Returns when the loop has had a turn. Raises TimeoutError where something blocks it."""
        self._start(asyncio.sleep(0)).result(5)

    def ready(self) -> None:
        self._start(self.aready()).result()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._start(self.aclose()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        super().close()

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


Open = Callable[[str], PostgresStore]
"""Opens a store at an address, making its schema where there is none."""


def open_blocking(url: str) -> PostgresStore:
    return open_store(PostgresUrl(conninfo=url), create=True)


def open_looped(url: str, **how: Any) -> PostgresStore:
    open_blocking(url).close()
    return LoopedStore(PostgresUrl(conninfo=url), **how)
