"""How often each device came, to all receivers together.

Each receiver decides by itself, at once. Ten times a second it tells Redis what it let in since and hears what each of
these devices has used up altogether, so a device that spreads its calls gets the more out of it the more it sends in a
tenth of a second, and no more. While Redis is away each receiver counts alone.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

from pisync_receiver.limits import Limits
from pisync_receiver.sharing.link import Link

if TYPE_CHECKING:
    from redis.asyncio import Redis

EVERY_S: Final = 0.1
AT_ONCE: Final = 1_000
_SPEND: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local ahead = {}
for number, key in ipairs(KEYS) do
  local paid = math.max(tonumber(redis.call('GET', key) or '') or 0, now) + ARGV[number]
  redis.call('SET', key, string.format('%.0f', paid), 'PX', math.ceil((paid - now) / 1000) + 1)
  ahead[number] = paid - now
end
return ahead
"""
"""Of each key the moment (in microseconds, by Redis's clock) at which it will have paid for what it was let in for, as
in `limits`, moved by what one receiver let in; how far ahead of now it lies then."""


class SharedRates:
    """Keeps one `Limits` in step with those of the other receivers."""

    def __init__(self, limits: Limits, link: Link, *, space: str, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._link = link
        self._prefix = f"pisync:{space}:rate:"
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.exchange()

    async def exchange(self) -> None:
        """Tell what was let in since the last time, and hear of the others."""
        spent = iter(self._limits.untold().items())
        while some := dict(islice(spent, AT_ONCE)):
            began = self._clock()
            ahead = await self._link.ask(lambda redis, some=some: self._spend(redis, some))  # type: ignore[misc]
            if ahead is None:
                return
            for key, micros in zip(some, ahead, strict=True):
                self._limits.told(key, began + micros / 1e6)

    async def _spend(self, redis: "Redis", spent: Mapping[str, float]) -> list[int]:
        keys = [self._prefix + key for key in spent]
        micros = [round(seconds * 1e6) for seconds in spent.values()]
        found: list[int] = await redis.register_script(_SPEND)(keys=keys, args=micros)
        return found
