"""Notes that a token which ended was used again: for a device that cannot get through, this is what tells."""

import asyncio
import logging
from typing import Final

from pisync_receiver.errors import Overloaded
from pisync_receiver.intake import Intake
from pisync_receiver.store import TokenRefused, TokenRow

log = logging.getLogger(__name__)

_EVERY_MS: Final = 60_000


class Refusals:
    """Hands each refused token to the intake, at most once a minute."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._noted: dict[str, int] = {}

    def note(self, token: TokenRow, now_ms: int) -> None:
        """The token was refused at `now_ms`; returns at once."""
        if 0 <= now_ms - self._noted.get(token.id, -_EVERY_MS) < _EVERY_MS:
            return
        self._noted[token.id] = now_ms
        try:
            future = self._intake.submit(TokenRefused(token_id=token.id, at_ms=now_ms))
        except Overloaded:
            return  # the next refusal is noted instead
        future.add_done_callback(_look)


def _look(future: "asyncio.Future[object]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("a refused token could not be noted", exc_info=error)
