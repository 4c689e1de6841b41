"""A cap on how fast bytes are sent, so that a classroom's line is left to the class."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Throttle:
    """Spreads bytes evenly over time: `take` waits until those before have had theirs. Thread-safe."""

    rate: float
    """Bytes a second."""
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    _free_at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        with self._lock:
            now = self.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self.rate
        if begin > now:
            self.sleep(begin - now)
