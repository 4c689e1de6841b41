"""Repeat a step until shutdown, and retry with back-off while something it needs is unavailable."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from pisync_common.backoff import Backoff
from pisync_common.errors import PiSyncError
from pisync_receiver.errors import SchemaMismatch, StoreUnusable, Unavailable
from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

AGAIN: Final = 0.0
"""Returned by a step that has more to do at once."""

Step = Callable[[], Awaitable[float]]
"""Does a bounded piece of work and returns the seconds to wait before the next one."""


class Shutdown(asyncio.Event):
    """Set when shutdown is requested."""

    async def pause(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as shutdown is requested."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait()


async def repeat(name: str, step: Step, *, backoff: Backoff, shutdown: Shutdown) -> None:
    """Take the step again and again until shutdown is requested. Log the first failure and the recovery, not the
    attempts in between. Raises PiSyncErrors that retrying does not help."""
    failures = 0
    while not shutdown.is_set():
        try:
            seconds = await step()
        except Exception as error:  # a bug must not end a task that runs beside others, and must not flood the log
            if isinstance(error, PiSyncError) and not _may_pass(error):
                raise
            if not failures:
                _log_failure(name, error)
            failures += 1
            seconds = backoff.delay(failures)
        else:
            if failures:
                log.info("available again", extra=fields(task=name, failures=failures))
            failures = 0
        if seconds > 0:
            await shutdown.pause(seconds)


def _may_pass(error: Exception) -> bool:
    """Whether to try again; the database of another program stays as it is."""
    return isinstance(error, Unavailable | StoreUnusable) and not isinstance(error, SchemaMismatch)


def _log_failure(name: str, error: Exception) -> None:
    if isinstance(error, Unavailable | StoreUnusable):
        log.warning("unavailable, retrying: %s", error, extra=fields(task=name, code=error.code))
    else:
        log.error("unexpected error, retrying", exc_info=error, extra=fields(task=name))
