"""How often one caller may come: a rate for each key, in the memory of one process, which others may add to.

GCRA: of each key only one number is kept, the moment at which it will have paid for everything it was let in for. A
key whose moment has passed is as good as one never seen and may be forgotten.
"""

import math
import random as random_module
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pisync_receiver.errors import Problem

KEYS: Final = 200_000
"""How many callers one process remembers: some 50 MB at most."""
RETRY_AFTER_MAX: Final = 3600
"""Seconds; a device asked to wait longer would look dead."""
_NOTHING: Final = 1e-9
"""Seconds: what sums of floating point numbers may be wrong by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """`burst` calls at once, and on the long run `count` in every `period_s` seconds. Raises ValueError."""

    count: int
    period_s: float
    burst: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.burst < 1 or not 0 < self.period_s < math.inf:
            raise ValueError(f"not a rate: {self.count} in {self.period_s} s, {self.burst} at once")

    @property
    def interval_s(self) -> float:
        """What one call costs, in seconds."""
        return self.period_s / self.count

    @property
    def tolerance_s(self) -> float:
        """How far ahead of now a key may have spent before its next call is refused."""
        return self.interval_s * (self.burst - 1)


class Limits:
    """One rate, kept for each key by itself. Used on the event loop.

    Memory is bounded: with more than `keys` of them the one not let in for the longest is forgotten, which lets a
    caller in and never shuts one out.
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float], keys: int = KEYS, shared: bool = False) -> None:
        """`clock` gives seconds and never goes back. `shared`: somebody takes what is `untold`, again and again."""
        self._rate = rate
        self._clock = clock
        self._keys = keys
        self._paid: OrderedDict[str, float] = OrderedDict()
        self._shared = shared
        self._untold: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._paid)

    def take(self, key: str) -> float:
        """Let `key` in and return 0; or the seconds until it may come again, and then nothing was counted."""
        now = self._clock()
        paid = max(self._paid.get(key, now), now)
        wait = paid - now - self._rate.tolerance_s
        if wait > _NOTHING:
            return wait
        self._pay(key, paid + self._rate.interval_s)
        if self._shared and (key in self._untold or len(self._untold) < self._keys):
            self._untold[key] = self._untold.get(key, 0) + 1
        return 0.0

    def untold(self) -> dict[str, float]:
        """What keys were let in for since this was last asked, in seconds."""
        calls, self._untold = self._untold, {}
        return {key: count * self._rate.interval_s for key, count in calls.items()}

    def told(self, key: str, paid: float) -> None:
        """All together let `key` in for what it will have paid for at `paid`; what is untold comes on top."""
        mine = self._untold.get(key, 0) * self._rate.interval_s
        self._pay(key, max(self._paid.get(key, paid), paid + mine))

    def _pay(self, key: str, paid: float) -> None:
        self._paid[key] = paid
        self._paid.move_to_end(key)
        if len(self._paid) > self._keys:
            self._paid.popitem(last=False)


BURST_S: Final = 5
"""Seconds' worth of calls that may come at once."""


def each_device(calls_a_second: int, *, clock: Callable[[], float], shared: bool = False) -> Limits | None:
    """The limits of devices; None where 0 says that there are none."""
    if calls_a_second == 0:
        return None
    rate = Rate(count=calls_a_second, period_s=1, burst=calls_a_second * BURST_S)
    return Limits(rate, clock=clock, shared=shared)


def spending(limits: Limits | None, random: Callable[[], float] = random_module.random) -> Callable[[str], None]:
    """What counts a caller's call, and raises Problem 429 when there were too many."""
    if limits is None:
        return lambda key: None

    def spend(key: str) -> None:
        if (wait_s := limits.take(key)) > 0:
            raise rate_limited(wait_s, random=random)

    return spend


def rate_limited(wait_s: float, *, random: Callable[[], float]) -> Problem:
    """The answer for a caller that came too often; `random` gives 0 to 1.

    Retry-After is never too early (but for a wait over RETRY_AFTER_MAX), and up to as long again later, so that those
    refused together do not come back together.
    """
    after = min(math.ceil(max(wait_s, 1.0) * (1 + random())), RETRY_AFTER_MAX)
    detail = f"too many requests; nothing of this request was stored; wait {after} s and send it again"
    return Problem(429, "rate_limited", detail, headers={"Retry-After": str(after)})
