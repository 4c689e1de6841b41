"""Back-off with full jitter after failures in a row, on the device and in the cloud.

The formula is that of Fluent Bit's retries.
"""

from collections.abc import Callable
from dataclasses import dataclass

Uniform = Callable[[float, float], float]


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """random(base, min(cap, base·2ⁿ)) seconds after n failures in a row. It reads no clock."""

    base: float
    cap: float
    random: Uniform

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after the n-th failure."""
        ceiling = min(self.cap, self.base * 2.0 ** min(failures, 64))
        return self.random(min(self.base, ceiling), ceiling)
