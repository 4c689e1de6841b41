"""Two receivers on one PostgreSQL watch, make notices and send them at the same time: each change is in one notice."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

from prometheus_client import CollectorRegistry

from pisync_receiver.alerts.alerts import AlertMetrics, Alerts
from pisync_receiver.alerts.notices import Links
from pisync_receiver.background import AGAIN
from pisync_receiver.domain.submissions import SyncEvent
from tests.conformance.notices import AT_ONCE, Hook
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop, opened
from tests.support.submissions import DAY, HOUR, MINUTE, NOON, sync_event

pytestmark = needs_postgres
RECEIVERS, ROUNDS, DEVICES = 3, 5, 25


class SlowHook(Hook):
    """Another receiver has time to look while this accepts a notice."""

    async def send(self, title: str, body: str) -> None:
        await super().send(title, body)
        await asyncio.sleep(0)


def runs(number: int) -> list[SyncEvent]:
    """Each device begins to fail in odd rounds, and recovers in the others after the first."""
    at_ms, failed = NOON + number * HOUR, number % 2 == 1
    return [
        sync_event(at_ms + minute * MINUTE, device=f"d{device}", failed=failed, received_ms=at_ms + minute * MINUTE)
        for device in range(DEVICES)
        for minute in range(3)
    ]


@on_a_loop
async def test_receivers_that_race_tell_each_change_once() -> None:
    now_ms, hook = [NOON], SlowHook()
    rules = replace(AT_ONCE, digest_over=1000, digest_hour=12)
    with fresh_database() as url:
        async with AsyncExitStack() as closing:
            stores = [await closing.enter_async_context(opened(url)) for _ in range(RECEIVERS)]
            fleet = [
                Alerts(
                    store,
                    [hook],
                    rules=rules,
                    silent_after_ms=7 * DAY,
                    links=Links(),
                    now_ms=lambda: now_ms[0],
                    uniform=lambda low, high: low,
                    metrics=AlertMetrics(CollectorRegistry()),
                )
                for store in stores
            ]

            async def live(alerts: Alerts) -> None:
                while await alerts.watch() == AGAIN:
                    pass
                await alerts.make_notices()
                while await alerts.send_next(hook) == AGAIN:
                    pass

            for number in range(ROUNDS):
                await stores[0].write(runs(number))
                now_ms[0] = NOON + number * HOUR + 30 * MINUTE
                await asyncio.gather(*map(live, fleet))
                await live(fleet[0])  # what was locked or claimed when the others looked
            now_ms[0] += 20 * HOUR
            await asyncio.gather(*map(live, fleet))
            await live(fleet[0])
            transitions = (await stores[0].transitions(limit=1000)).rows
    assert Counter(hook.titles) == {
        **{f"d{device} (no site) keeps failing": ROUNDS // 2 for device in range(DEVICES)},
        **{f"d{device} (no site) recovered": ROUNDS // 2 for device in range(DEVICES)},
        f"All is well: {DEVICES} devices at 0 sites": 2,
    }
    assert len(transitions) == (ROUNDS - 1) * DEVICES
