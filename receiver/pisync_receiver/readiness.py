"""Whether the receiver can store just now, found out by storing something."""

import asyncio

from pisync_receiver.errors import Overloaded
from pisync_receiver.intake import Intake


class Readiness:
    """Asks the writer; however many ask at once, it writes once."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._asked: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        """From now on say no: the receiver still answers, and is about to stop."""
        self._draining = True

    async def check(self) -> None:
        """Return when a durable write has succeeded. Raises StoreUnusable or Overloaded."""
        if self._draining:
            raise Overloaded("the receiver is about to stop; ask another", retry_after=1)
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._intake.ready())
        await asyncio.shield(self._asked)
