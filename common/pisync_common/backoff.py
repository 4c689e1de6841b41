"""How long to wait after failures in a row: full jitter, on the device and in the cloud.

The formula is the one that Fluent Bit uses for its retries.
"""

from collections.abc import Callable
from dataclasses import dataclass

Uniform = Callable[[float, float], float]


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """random(base, min(cap, base·2ⁿ)) seconds after n failures in a row. It looks at no clock."""

    base: float
    cap: float
    random: Uniform

    def delay(self, failures: int) -> float:
        """Seconds to wait after the n-th failure."""
        ceiling = min(self.cap, self.base * 2.0 ** min(failures, 64))
        return self.random(min(self.base, ceiling), ceiling)
