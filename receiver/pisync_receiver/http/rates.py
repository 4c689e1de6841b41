"""How often a device, an address or all callers together may do something."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pisync_receiver.errors import Problem

DEVICE_BURST_S: Final = 5
"""Seconds' worth of a device's calls that may come at once."""
REMEMBERED: Final = 200_000
"""How many names one process remembers: some 50 MB at most."""
RETRY_AFTER_MAX: Final = 3600
"""Seconds; a device asked to wait longer would look dead."""
_ROUNDING: Final = 1e-9
"""Seconds: the error of sums of floating point numbers."""


class Rates:
    """Bounds how often each name may do something. Used on the event loop.

    GCRA: one number is kept for each name, the moment at which it will have paid for all its calls. Memory is bounded:
    the name that called least recently is forgotten, which lets it in and never shuts one out.
    """

    def __init__(
        self,
        *,
        every_s: float,
        at_once: int,
        clock: Callable[[], float],
        random: Callable[[], float],
        remembered: int = REMEMBERED,
    ) -> None:
        """One call `every_s` seconds, `at_once` of them at a time. `clock` gives seconds and never goes back, `random`
        0 to 1."""
        self._every_s = every_s
        self._tolerance_s = every_s * (at_once - 1)
        self._clock = clock
        self._random = random
        self._remembered = remembered
        self._paid: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paid)

    def spend(self, name: str) -> None:
        """Count a call. Raises Problem 429 when there were too many; then nothing was counted."""
        now = self._clock()
        paid = max(self._paid.get(name, now), now)
        wait_s = paid - now - self._tolerance_s
        if wait_s > _ROUNDING:
            raise self._refusal(wait_s)
        self._paid[name] = paid + self._every_s
        self._paid.move_to_end(name)
        if len(self._paid) > self._remembered:
            self._paid.popitem(last=False)

    def _refusal(self, wait_s: float) -> Problem:
        """Spread Retry-After: never too early, up to as long again, so that callers refused together come apart."""
        after = min(math.ceil(max(wait_s, 1.0) * (1 + self._random())), RETRY_AFTER_MAX)
        detail = f"too many requests; nothing of this request was stored; wait {after} s and send it again"
        return Problem(429, "rate_limited", detail, headers={"Retry-After": str(after)})


def device_rates(calls_per_s: int, *, clock: Callable[[], float], random: Callable[[], float]) -> Rates:
    """Return the rates of devices: `calls_per_s`, and DEVICE_BURST_S times as many at once."""
    return Rates(every_s=1 / calls_per_s, at_once=calls_per_s * DEVICE_BURST_S, clock=clock, random=random)
