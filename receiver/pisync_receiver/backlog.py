"""How long a refused caller is asked to wait."""

import math
from collections.abc import Callable
from typing import Final

_RATE_MEMORY: Final = 0.2
"""How much the newest group counts in the measured drain rate."""
RETRY_AFTER_MAX: Final = 3600
"""Seconds; a device asked to wait longer would look dead."""


class Backlog:
    """Gives each refused caller its turn in a queue that drains at the measured rate.

    Each refusal takes the next turn, so that the refused come back one after the other and not all at once.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._rate = 100.0  # submissions a second until the first group is measured
        self._next_turn = 0.0

    def drained(self, size: int, seconds: float) -> None:
        """`size` submissions took the writer `seconds`."""
        rate = size / max(seconds, 1e-4)
        self._rate += _RATE_MEMORY * (rate - self._rate)

    def retry_after(self, waiting: int) -> int:
        """Whole seconds until the turn of one more caller, with jitter on top: up to as long again."""
        now = self._clock()
        turn = max(now + waiting / self._rate, self._next_turn)
        self._next_turn = min(turn + 1 / self._rate, now + RETRY_AFTER_MAX)
        floor = max(turn - now, 1.0)
        return min(math.ceil(floor * (1 + self._random())), RETRY_AFTER_MAX)
