"""A cap on how fast bytes are sent, so that a classroom's line is left to the class."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True)
class Throttle:
    """Spreads bytes evenly over time: `take` waits until those before have had theirs. For one thread."""

    rate: float
    """Bytes a second."""
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    _free_at: float = float("-inf")

    def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        now = self.monotonic()
        begin = max(now, self._free_at)
        self._free_at = begin + size / self.rate
        if begin > now:
            self.sleep(begin - now)
