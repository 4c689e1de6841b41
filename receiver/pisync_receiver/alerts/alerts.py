"""The background steps of alerts: from states to transitions, from transitions to notices, from notices to services.

Every receiver takes them; locks of the store let one at a time watch, make notices, and send to a service. What is
noted, made or claimed is committed first, so a restart or another receiver goes on where a step ended.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self

from prometheus_client import CollectorRegistry, Gauge

from pisync_common.backoff import Backoff, Uniform
from pisync_common.settings import Settings
from pisync_common.times import now_ms
from pisync_receiver import config
from pisync_receiver.alerts.daily import daily_digest
from pisync_receiver.alerts.notices import Links, Notice, notices, parts_of
from pisync_receiver.alerts.rules import Rules
from pisync_receiver.alerts.services import AppriseService, LogService, Service
from pisync_receiver.background import AGAIN, Shutdown, Step, repeat
from pisync_receiver.domain.fleet import Criteria
from pisync_receiver.domain.notices import ChangedState, Transition, observe
from pisync_receiver.logs import fields
from pisync_receiver.store import Store
from pisync_receiver.store.notices import changed_states
from pisync_receiver.store.running import Query, Row, build

log = logging.getLogger("pisync_receiver.alerts")

WATCH_SECONDS: Final = 30.0
POLL_SECONDS: Final = 2.0
WATCHED_AT_ONCE: Final = 5_000
"""How many changed devices a step notes."""
TOLD_AT_ONCE: Final = 50_000
"""How many transitions notices cover at once."""
CLAIM_MS: Final = 60_000
"""How long a receiver has to send a notice before another may."""
_DAY_SECONDS: Final = 86_400.0
_DAY_MS: Final = 86_400_000
_NOTICE_DAYS: Final = 30
"""How long a notice is offered to a service that refuses it; the log has it."""
_TRANSITION_DAYS: Final = 90


class AlertMetrics:
    """Gauges that are the same in every receiver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.alerts_pending = Gauge("pisync_alerts_pending", "Devices' alerts in no notice yet.", registry=registry)
        self.notices_pending = Gauge("pisync_notices_pending", "Notices not yet accepted.", registry=registry)
        self.lag = Gauge(
            "pisync_worker_lag_events", "Stored events not yet published.", ("consumer",), registry=registry
        )


class Alerts:
    """`run` until `stop`. `now_ms` is milliseconds since 1970. Every step raises StoreUnusable."""

    def __init__(
        self,
        store: Store,
        services: Sequence[Service],
        *,
        rules: Rules,
        silent_after_ms: int,
        links: Links,
        now_ms: Callable[[], int],
        uniform: Uniform,
        metrics: AlertMetrics,
    ) -> None:
        self._store = store
        self.services: Sequence[Service] = [LogService(), *services]
        self._rules = rules
        self._silent_after_ms = silent_after_ms
        self._links = links
        self._now_ms = now_ms
        self._metrics = metrics
        self._watched = False
        self._shutdown = Shutdown()
        near, far = Backoff(base=1.0, cap=60.0, random=uniform), Backoff(base=5.0, cap=900.0, random=uniform)
        self._steps: list[tuple[str, Step, Backoff]] = [
            ("watch devices", self.watch, near),
            ("alerts", self.make_notices, near),
            ("alerts clean-up", self.clean_up, near),
            *((f"send to {each.name}", partial(self.send_next, each), far) for each in self.services),
        ]

    @classmethod
    def create(cls, store: Store, settings: Settings, registry: CollectorRegistry) -> Self:
        """Raises MissingExtra if Apprise is needed and not installed, SettingError for a URL it does not know."""
        alert_urls: tuple[str, ...] = settings[config.ALERT_URLS]
        return cls(
            store,
            [AppriseService(url, number) for number, url in enumerate(alert_urls, 1)],
            rules=Rules(
                quiet_hours=settings[config.QUIET_HOURS],
                zone=settings[config.TIME_ZONE],
                digest_hour=settings[config.DIGEST_HOUR],
            ),
            silent_after_ms=round(settings[config.SILENT_AFTER] * 1000),
            links=Links(settings[config.PUBLIC_URL]),
            now_ms=now_ms,
            uniform=random.uniform,
            metrics=AlertMetrics(registry),
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name, step, backoff in self._steps:
                group.create_task(repeat(name, step, backoff=backoff, shutdown=self._shutdown))

    async def stop(self) -> None:
        """Let `run` return after the steps in progress."""
        self._shutdown.set()

    async def watch(self) -> float:
        """Note the devices whose state changed."""
        now = self._now_ms()
        changed = await self._store.changed_states(self._criteria(now), limit=WATCHED_AT_ONCE)
        if not changed:
            self._watched = True
            return WATCH_SECONDS
        devices = [change.device_id for change in changed]
        again = changed_states(self._criteria(now), limit=WATCHED_AT_ONCE, devices=devices)

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            transitions, watched = observe((ChangedState(*row) for row in found[0]), now)
            lists = (("add_transitions", transitions), ("put_watched", watched))
            return [(name, {"rows": json.dumps(rows)}) for name, rows in lists if rows]

        noted = await self._store.act([again], decide, lock="watch")
        return AGAIN if noted else WATCH_SECONDS

    async def make_notices(self) -> float:
        """Put what changed into notices, and make the daily digest, if they are due; measure the backlog."""
        now = self._now_ms()
        targets = [service.target for service in self.services]
        backlog = await self._store.alert_backlog(targets, now - round(self._rules.every * 1000))
        if self._rules.is_due(
            first_ms=backlog.first_ms,
            first_silent_ms=backlog.first_silent_ms,
            now_ms=now,
            last_notice_ms=backlog.last_notice_ms,
        ):
            await self._tell_changes(now)
        if self._watched and self._rules.is_daily_due(now_ms=now, last_daily_ms=backlog.last_daily_ms):
            await self._tell_day(now)
        self._metrics.alerts_pending.set(backlog.pending)
        self._metrics.notices_pending.set(backlog.unsent)
        self._metrics.lag.clear()  # of consumers that are no more
        for consumer, lag in (await self._store.lags()).items():
            self._metrics.lag.labels(consumer).set(lag)
        return POLL_SECONDS

    async def send_next(self, service: Service) -> float:
        """Send a service its next notice. Raises ServiceUnavailable.

        The notice is claimed for CLAIM_MS, sent, and marked. It is sent a second time only if this process dies or
        loses the database between the service's answer and the mark: reading it twice is better than never.
        """
        now = self._now_ms()
        query = "next_notice", {"target": service.target, "long_ago": now - _DAY_MS}
        found: list[tuple[int, str, str]] = []

        def claim(rows: list[list[Row]]) -> Sequence[Query]:
            found.clear()
            for number, title, body, claimed_until_ms in rows[0]:
                if claimed_until_ms is None or not now < claimed_until_ms <= now + CLAIM_MS:
                    found.append((number, title, body))
                    return [("claim_notice", {"id": number, "until": now + CLAIM_MS})]
            return []

        if not await self._store.has_unsent(service.target):
            return POLL_SECONDS
        await self._store.act([query], claim, lock=f"notices {service.target}")
        if not found:
            return POLL_SECONDS
        ((number, title, body),) = found
        try:
            await service.send(title, body)
        except Exception:
            await self._write("claim_notice", id=number, until=None)
            raise
        await self._write("mark_sent", id=number, now=self._now_ms())
        return AGAIN

    async def clean_up(self) -> float:
        """Delete notices and transitions of long ago."""
        now = self._now_ms()
        notices_before, transitions_before = now - _NOTICE_DAYS * _DAY_MS, now - _TRANSITION_DAYS * _DAY_MS
        unsent = [0]

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            ((unsent[0],),) = found[0]
            return [
                ("delete_notices", {"before": notices_before}),
                ("delete_transitions", {"before": transitions_before}),
            ]

        await self._store.act([("unsent_before", {"before": notices_before})], decide, lock="alerts clean-up")
        if unsent[0]:
            log.error("deleted notices that no service accepted", extra=fields(notices=unsent[0], days=_NOTICE_DAYS))
        return _DAY_SECONDS

    def _criteria(self, now: int) -> Criteria:
        return Criteria(now_ms=now, silent_after_ms=self._silent_after_ms)

    async def _tell_changes(self, now: int) -> None:
        sites = await self._store.sites(criteria=self._criteria(now))
        active = {each.site: each.devices - each.retired for each in sites}

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            pending = [build(Transition, row) for row in found[0]]
            parts = parts_of(pending, active)
            digest = self._rules.is_digest(pending, len(parts))
            made = notices(parts, digest=digest, zone=self._rules.zone, links=self._links) if parts else []
            covered: Query = ("cover_transitions", {"now": now, "ids": [each.id for each in pending]})
            return [*self._additions(made, now), covered] if pending else []  # or another receiver was faster

        await self._store.act([("pending_transitions", {"limit": TOLD_AT_ONCE})], decide, lock="notices")

    async def _tell_day(self, now: int) -> None:
        criteria = self._criteria(now)
        sites, overview = await self._store.sites(criteria=criteria), await self._store.overview(criteria=criteria)
        if not sites:
            return  # no device yet
        made = daily_digest(sites, overview, zone=self._rules.zone, links=self._links)

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            ((last_daily_ms,),) = found[0]
            due = self._rules.is_daily_due(now_ms=now, last_daily_ms=last_daily_ms)
            return self._additions([made], now) if due else []

        await self._store.act([("last_daily", {})], decide, lock="notices")

    def _additions(self, made: Sequence[Notice], now: int) -> list[Query]:
        """Return the statements that add notices for every service."""
        return [
            (
                "add_notice",
                {
                    "target": service.target,
                    "service": service.name,
                    "kind": notice.kind,
                    "title": notice.title,
                    "body": notice.body,
                    "now": now,
                },
            )
            for notice in made
            for service in self.services
        ]

    async def _write(self, name: str, **values: object) -> None:
        await self._store.act([], lambda _: [(name, values)])
