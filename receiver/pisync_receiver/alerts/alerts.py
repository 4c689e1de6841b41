"""The background task of alerts: from crossings to notices, and from notices to services.

Every receiver on PostgreSQL runs it. A lock that ends with its transaction lets one at a time make notices, and one at
a time send to a service. Notices and the marks of their crossings commit together, so each crossing is in one notice.
"""

import asyncio
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
from pisync_receiver.alerts.notices import notices
from pisync_receiver.alerts.rules import Crossing, Rules
from pisync_receiver.alerts.services import AppriseService, Service
from pisync_receiver.background import AGAIN, Shutdown, Step, repeat
from pisync_receiver.logs import fields
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database, Transaction

log = logging.getLogger("pisync_receiver.alerts")

LOG: Final = "log"
"""The target that every notice has: the record of what was sent."""
POLL_SECONDS: Final = 2.0
_DAY_SECONDS: Final = 86_400.0
_DAY_MS: Final = 86_400_000
_NOTICE_DAYS: Final = 30
"""How long a notice is offered to a service that refuses it; the log has it."""
_CROSSING_DAYS: Final = 90


class AlertMetrics:
    """Gauges that are the same in every receiver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.alerts_pending = Gauge("pisync_alerts_pending", "Devices' alerts in no notice yet.", registry=registry)
        self.notices_pending = Gauge("pisync_notices_pending", "Notices not yet accepted.", registry=registry)
        self.lag = Gauge(
            "pisync_worker_lag_events", "Stored events not yet published.", ("consumer",), registry=registry
        )


class Alerts:
    """`run` until `stop`. `now_ms` is milliseconds since 1970."""

    def __init__(
        self,
        database: Database,
        services: Sequence[Service],
        *,
        rules: Rules,
        now_ms: Callable[[], int],
        uniform: Uniform,
        metrics: AlertMetrics,
    ) -> None:
        self._database = database
        self._targets = [LOG, *(service.target for service in services)]
        self._rules = rules
        self._now_ms = now_ms
        self._metrics = metrics
        self._shutdown = Shutdown()
        near, far = Backoff(base=1.0, cap=60.0, random=uniform), Backoff(base=5.0, cap=900.0, random=uniform)
        self._steps: list[tuple[str, Step, Backoff]] = [
            ("alerts", self.make_notices, near),
            ("alerts clean-up", self.clean_up, near),
            *((f"send to {each.name}", partial(self.send_next, each), far) for each in services),
        ]

    @classmethod
    def create(cls, url: PostgresUrl, settings: Settings, registry: CollectorRegistry) -> Self:
        """Raises MissingExtra if Apprise is needed and not installed, SettingError for a URL it does not know."""
        alert_urls: tuple[str, ...] = settings[config.ALERT_URLS]
        return cls(
            Database(url),
            [AppriseService(url, number) for number, url in enumerate(alert_urls, 1)],
            rules=Rules(quiet_hours=settings[config.QUIET_HOURS], zone=settings[config.TIME_ZONE]),
            now_ms=now_ms,
            uniform=random.uniform,
            metrics=AlertMetrics(registry),
        )

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for name, step, backoff in self._steps:
                    group.create_task(repeat(name, step, backoff=backoff, shutdown=self._shutdown))
        finally:
            await self._database.close()

    async def stop(self) -> None:
        """Let `run` return after the steps in progress."""
        self._shutdown.set()

    async def make_notices(self) -> float:
        """Put pending crossings into notices if they are due, and measure the backlog. Raises DatabaseUnavailable."""
        async with self._database.transaction() as transaction:
            if await transaction.lock("alerts"):
                await self._make_notices(transaction)
            ((pending, unsent),) = await transaction.rows("count_pending", targets=self._targets)
            lags = await transaction.rows("lags")
        self._metrics.alerts_pending.set(pending)
        self._metrics.notices_pending.set(unsent)
        self._metrics.lag.clear()  # of consumers that are no more
        for consumer, lag in lags:
            self._metrics.lag.labels(consumer).set(lag)
        return POLL_SECONDS

    async def send_next(self, service: Service) -> float:
        """Send a service its next notice. Raises ServiceUnavailable, DatabaseUnavailable.

        The notice is marked in the transaction that is open while it is sent. It is sent again only if this process
        dies or loses PostgreSQL between the service's answer and the commit: reading it twice is better than never.
        """
        async with self._database.transaction() as transaction:
            if not await transaction.lock(f"notices {service.target}"):
                return POLL_SECONDS
            row = await transaction.row("next_notice", target=service.target, long_ago=self._now_ms() - _DAY_MS)
            if row is None:
                return POLL_SECONDS
            number, title, body = row
            await service.send(title, body)
            await transaction.rows("mark_sent", id=number, now=self._now_ms())
        return AGAIN

    async def clean_up(self) -> float:
        """Delete notices and crossings of long ago. Raises DatabaseUnavailable."""
        now = self._now_ms()
        async with self._database.transaction() as transaction:
            row = await transaction.row("delete_old_notices", before=now - _NOTICE_DAYS * _DAY_MS)
            await transaction.rows("delete_old_crossings", before=now - _CROSSING_DAYS * _DAY_MS)
        if row and row[0]:
            log.error("deleted notices that no service accepted", extra=fields(notices=row[0], days=_NOTICE_DAYS))
        return _DAY_SECONDS

    async def _make_notices(self, transaction: Transaction) -> None:
        now = self._now_ms()
        pending = [Crossing.from_row(row) for row in await transaction.rows("pending_crossings")]
        row = await transaction.row("last_digest", since=now - round(self._rules.digest_every * 1000))
        if not self._rules.is_due(pending, now_ms=now, last_digest_ms=None if row is None else row[0]):
            return
        digest = self._rules.is_digest(pending)
        for notice in notices(pending, digest=digest, zone=self._rules.zone):
            values = {"digest": digest, "title": notice.title, "body": notice.body, "now": now}
            for target in self._targets:
                await transaction.rows("add_notice", target=target, **values)
            log.warning(notice.title, extra=fields(alert=notice.body))  # before the commit: may repeat, is never lost
        await transaction.rows("mark_notified", now=now, ids=[crossing.id for crossing in pending])
