"""One thing that a worker does again and again, and what happens when what it needs is away."""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from pisync_common.backoff import Backoff
from pisync_receiver.errors import Unavailable
from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

AGAIN = 0.0
"""What a step returns when there is more to do at once."""


class Pauses(Protocol):
    """As much of `Stopping` as a duty needs."""

    @property
    def asked(self) -> bool: ...
    async def pause(self, seconds: float) -> None: ...


class Duty:
    """Repeats `step`, which returns how many seconds to rest before the next one, or raises `Unavailable`.

    Says once that something is away and once that it is back, with as many tries in between as the back-off gives.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[float]], *, backoff: Backoff, stopping: Pauses) -> None:
        self.name = name
        self._step = step
        self._backoff = backoff
        self._stopping = stopping
        self._failures = 0

    async def run(self) -> None:
        """Until the end is asked for."""
        while not self._stopping.asked:
            if (rest := await self._try()) > 0:
                await self._stopping.pause(rest)

    async def run_until_it_works(self) -> None:
        """Until `step` has worked once, or the end is asked for."""
        while not self._stopping.asked:
            rest = await self._try()
            if not self._failures:
                return
            await self._stopping.pause(rest)

    async def run_once(self) -> None:
        """Until there is nothing more to do now. Raises what `step` raises."""
        while not self._stopping.asked and await self._step() == AGAIN:
            pass

    async def _try(self) -> float:
        try:
            rest = await self._step()
        except Unavailable as error:
            return self._failed(error)
        self._worked()
        return rest

    def _failed(self, error: Unavailable) -> float:
        self._failures += 1
        if self._failures == 1:
            log.warning("waiting and trying again: %s", error, extra=fields(duty=self.name, code=error.code))
        else:
            log.debug("still waiting: %s", error, extra=fields(duty=self.name, tries=self._failures))
        return self._backoff.delay(self._failures)

    def _worked(self) -> None:
        if self._failures:
            log.info("works again", extra=fields(duty=self.name, failures=self._failures))
            self._failures = 0
