"""What has to be done once a day: room for the months to come, and old notices forgotten."""

import logging
from collections.abc import Callable
from typing import Final

from pisync_receiver.logs import fields
from pisync_receiver.store.postgres.transactions import Database

log = logging.getLogger(__name__)

DAY_SECONDS: Final = 86400.0
NOTICE_DAYS: Final = 30
"""A notice that no service took within so many days is given up; the log had it."""

CROSSING_DAYS: Final = 90


class Upkeep:
    """The same whichever worker does it, and however often."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms

    async def step(self) -> float:
        """Do it; seconds until the next time. Raises DatabaseUnavailable."""
        async with self._database.transaction() as transaction:
            await transaction.do("hurry")
            await transaction.do("make_months")
        async with self._database.transaction() as transaction:
            row = await transaction.row("forget_notices", before=self._days_ago(NOTICE_DAYS))
            await transaction.do("forget_crossings", before=self._days_ago(CROSSING_DAYS))
            await transaction.do("forget_marks")
        await self._database.close()  # not held for a day
        if row is not None and row[0]:
            log.error("notices that no service took are given up", extra=fields(notices=row[0], days=NOTICE_DAYS))
        return DAY_SECONDS

    def _days_ago(self, days: int) -> int:
        return self._now_ms() - days * 86_400_000
