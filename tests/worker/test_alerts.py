"""Each crossing is in one notice, and real services that fail for a while get every notice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry

from pisync_common.quiet_hours import quiet_hours
from pisync_common.times import now_ms
from pisync_receiver.alerts.alerts import POLL_SECONDS, AlertMetrics, Alerts
from pisync_receiver.alerts.rules import Rules
from pisync_receiver.alerts.services import AppriseService, Service, ServiceUnavailable
from pisync_receiver.background import AGAIN
from pisync_receiver.errors import DatabaseUnavailable
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import needs_postgres
from tests.support.processes import wait_until
from tests.worker.database import WorkerDatabase
from tests.worker.webhook import Webhook

# Apprise loads all its services at once, and some use a module that Python will remove.
pytestmark = [
    needs_postgres,
    pytest.mark.filterwarnings("ignore:.* is deprecated and slated for removal:DeprecationWarning"),
]
AT_ONCE: Final = Rules(
    quiet_hours=None, zone=ZoneInfo("Africa/Nairobi"), digest_over=5, digest_window=0.0, digest_every=0.0
)
DAY_MS: Final = 86_400_000


class Fleet:
    """The alerts of several receivers on one database, made as needed and closed at the end."""

    def __init__(self, url: str, closing: AsyncExitStack) -> None:
        self.registry = CollectorRegistry()
        self._metrics = AlertMetrics(self.registry)
        self._url = url
        self._closing = closing

    def alerts(self, *services: Service, rules: Rules = AT_ONCE) -> Alerts:
        database = Database(PostgresUrl(conninfo=self._url))
        self._closing.push_async_callback(database.close)
        return Alerts(
            database, services, rules=rules, now_ms=now_ms, uniform=lambda low, high: low, metrics=self._metrics
        )

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def fleet(database: WorkerDatabase, url: str | None = None) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as closing:
        yield Fleet(url or database.url, closing)


async def send_all(alerts: Alerts, service: Service) -> None:
    while await alerts.send_next(service) == AGAIN:
        pass


def notify(database: WorkerDatabase, *services: Service, rules: Rules = AT_ONCE) -> None:
    """Make the notices that are due and send everything pending, as one receiver does."""

    async def main() -> None:
        async with fleet(database) as receivers:
            alerts = receivers.alerts(*services, rules=rules)
            await alerts.make_notices()
            for service in services:
                await send_all(alerts, service)

    asyncio.run(main())


def service_of(webhook: Webhook) -> Service:
    return AppriseService(webhook.url, 1)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "pisync_receiver.alerts"]


def test_a_device_that_fails_and_recovers_gives_two_notices(
    database: WorkerDatabase, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    database.device("pibook-1", "Nakuru")
    database.crossing("pibook-1", since_ms=1_795_500_000_000)
    notify(database, service_of(webhook))
    database.crossing("pibook-1", "recovered", failures=0, errors=None)
    notify(database, service_of(webhook))
    notify(database, service_of(webhook))

    expected = ["pibook-1 (Nakuru) keeps failing", "pibook-1 (Nakuru) recovered"]
    assert webhook.titles() == logged(caplog) == expected
    assert webhook.received[0]["message"] == (
        "Nakuru: 1 device keeps failing since 2026-11-24 09:00 EAT (dns): pibook-1"
    )
    assert database.pending_crossings() == database.unsent_notices() == 0


def test_many_devices_are_one_notice(database: WorkerDatabase, webhook: Webhook) -> None:
    database.rows(
        "INSERT INTO devices (device_id, site)"
        " SELECT 'pibook-' || n, CASE WHEN n < 3987 THEN 'Nakuru' ELSE 'Kisumu' END FROM generate_series(0, 3999) n"
    )
    database.rows(
        "INSERT INTO crossings (device_id, kind, at_ms, consecutive_failures, failing_since_ms, last_errors)"
        " SELECT device_id, 'failing', 1795500000000, 3, 1795499000000, '{\"timeout\": 2}' FROM devices"
    )

    notify(database, service_of(webhook), rules=replace(AT_ONCE, zone=UTC))

    (notice,) = webhook.received
    assert notice["title"] == "4,000 devices: 4,000 keep failing"
    assert notice["message"].splitlines() == [
        "Nakuru: 3,987 devices keep failing since 2026-11-24 05:43 UTC (timeout)",
        "Kisumu: 13 devices keep failing since 2026-11-24 05:43 UTC (timeout)",
    ]
    assert database.pending_crossings() == 0


def test_quiet_hours_hold_alerts_back(database: WorkerDatabase, webhook: Webhook) -> None:
    now = datetime.now(UTC)
    rules = replace(AT_ONCE, zone=UTC)
    quiet = quiet_hours(f"{now - timedelta(hours=2):%H:%M}-{now + timedelta(hours=2):%H:%M}")
    for device, kind in (("pibook-1", "failing"), ("pibook-2", "failing"), ("pibook-1", "recovered")):
        database.crossing(device, kind)

    notify(database, service_of(webhook), rules=replace(rules, quiet_hours=quiet))
    assert (webhook.received, database.pending_crossings()) == ([], 3)

    # The same crossings the morning after: they arrived in quiet hours that are over now.
    over = quiet_hours(f"{now - timedelta(hours=3):%H:%M}-{now - timedelta(hours=1):%H:%M}")
    database.rows("UPDATE crossings SET at_ms = at_ms - 7200000")
    notify(database, service_of(webhook), rules=replace(rules, quiet_hours=over))

    assert webhook.titles() == ["2 devices: 1 keeps failing, 1 failed and recovered"]
    assert database.pending_crossings() == 0


def test_after_a_digest_the_next_notice_waits(database: WorkerDatabase, webhook: Webhook) -> None:
    rules = replace(AT_ONCE, digest_every=3600.0)
    for number in range(6):
        database.crossing(f"pibook-{number}")
    notify(database, service_of(webhook), rules=rules)
    database.crossing("pibook-7")
    notify(database, service_of(webhook), rules=rules)
    assert len(webhook.received) == 1
    database.rows("UPDATE notices SET made_ms = made_ms - 3600000")
    notify(database, service_of(webhook), rules=rules)
    assert webhook.titles()[1:] == ["pibook-7 (no site) keeps failing"]


@pytest.mark.parametrize("behind_pgbouncer", [False, True], ids=["directly", "behind PgBouncer"])
def test_two_receivers_send_each_alert_once(
    database: WorkerDatabase, webhook: Webhook, caplog: pytest.LogCaptureFixture, behind_pgbouncer: bool
) -> None:
    rules = replace(AT_ONCE, digest_over=1000)
    kinds = ("failing", "recovered")

    def sent(count: int) -> bool:
        return len(webhook.received) >= count and not database.unsent_notices()

    async def main(url: str) -> None:
        async with fleet(database, url) as receivers, asyncio.TaskGroup() as group:
            both = [receivers.alerts(service_of(webhook), rules=rules) for _ in range(2)]
            for alerts in both:
                group.create_task(alerts.run())
            for number, kind in enumerate(kinds, 1):
                for device in range(20):
                    await asyncio.to_thread(database.crossing, f"pibook-{device}", kind)
                await asyncio.to_thread(wait_until, partial(sent, 20 * number), "every alert is sent")
            for alerts in both:
                await alerts.stop()

    if behind_pgbouncer:
        with pgbouncer(*database.server) as port:
            asyncio.run(main(database.through(port)))
    else:
        asyncio.run(main(database.url))

    titles = Counter(webhook.titles())
    assert titles == Counter(logged(caplog))
    assert set(titles.values()) == {1}
    assert len(titles) == 40
    for device in range(20):
        of_device = [title for title in webhook.titles() if title.split()[0] == f"pibook-{device}"]
        assert of_device == [f"pibook-{device} (no site) keeps failing", f"pibook-{device} (no site) recovered"]
    assert "retrying" not in caplog.text


def test_a_failing_service_holds_up_no_other_and_gets_its_notices_later(
    database: WorkerDatabase, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    with Webhook() as other:
        hook, working = AppriseService(webhook.url + "?token=hunter2", 1), AppriseService(other.url, 2)
        webhook.failing = True
        database.crossing("pibook-1")

        async def main() -> None:
            async with fleet(database) as receivers:
                alerts = receivers.alerts(hook, working)
                await alerts.make_notices()
                with pytest.raises(ServiceUnavailable, match="kept and sent again") as caught:
                    await alerts.send_next(hook)
                assert "hunter2" not in str(caught.value)
                await send_all(alerts, working)
                await alerts.make_notices()
                assert receivers.value("pisync_notices_pending") == 1
                webhook.failing = False
                await send_all(alerts, hook)
                await alerts.make_notices()
                assert receivers.value("pisync_notices_pending") == 0

        asyncio.run(main())
    assert webhook.titles() == other.titles() == logged(caplog) == ["pibook-1 (no site) keeps failing"]


def test_without_a_service_the_log_has_the_notice(database: WorkerDatabase, caplog: pytest.LogCaptureFixture) -> None:
    database.crossing("pibook-1")
    notify(database)
    assert logged(caplog) == ["pibook-1 (no site) keeps failing"]
    assert database.pending_crossings() == 0


def test_the_lag_of_each_consumer_is_measured(database: WorkerDatabase) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 6)])
    database.rows("INSERT INTO positions (consumer, event_id, moved_ms) VALUES ('one', 5, 0), ('two', 2, 0)")

    async def main() -> None:
        async with fleet(database) as receivers:
            alerts = receivers.alerts()
            await alerts.make_notices()
            assert receivers.value("pisync_worker_lag_events", consumer="one") == 0
            assert receivers.value("pisync_worker_lag_events", consumer="two") == 3
            database.rows("DELETE FROM positions WHERE consumer = 'two'")
            await alerts.make_notices()
            assert receivers.value("pisync_worker_lag_events", consumer="two") is None

    asyncio.run(main())


def test_old_notices_and_crossings_are_deleted(database: WorkerDatabase, caplog: pytest.LogCaptureFixture) -> None:
    database.crossing("pibook-1")
    notify(database)
    database.crossing("pibook-2")
    database.rows("UPDATE notices SET made_ms = made_ms - 31 * %s::bigint, sent_ms = NULL", DAY_MS)
    database.rows("UPDATE crossings SET notified_ms = notified_ms - 91 * %s::bigint", DAY_MS)

    async def main() -> None:
        async with fleet(database) as receivers:
            await receivers.alerts().clean_up()

    asyncio.run(main())
    assert database.rows("SELECT device_id FROM crossings") == [("pibook-2",)]
    assert database.one("SELECT count(*) FROM notices") == 0
    assert "deleted notices that no service accepted" in caplog.text


class SlowService:
    """Accepts a notice when `let` is set."""

    target = name = "slow"

    def __init__(self, *, let: bool = False) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.accepted: list[str] = []
        if let:
            self.let.set()

    async def send(self, title: str, body: str) -> None:
        self.asked.set()
        if not self.let.is_set():
            await self.let.wait()
        self.accepted.append(title)


@pytest.fixture
def notices(database: WorkerDatabase) -> WorkerDatabase:
    for title in ("first", "second"):
        database.rows(
            "INSERT INTO notices (target, digest, title, body, made_ms) VALUES ('slow', false, %s, 'body', %s)",
            title,
            now_ms(),
        )
    return database


def test_one_receiver_at_a_time_sends_to_a_service(notices: WorkerDatabase) -> None:
    async def main() -> list[str]:
        service, other = SlowService(), SlowService(let=True)
        async with fleet(notices) as receivers:
            first, second = receivers.alerts(service), receivers.alerts(other)
            sending = asyncio.create_task(first.send_next(service))
            await service.asked.wait()
            assert await second.send_next(other) == POLL_SECONDS
            service.let.set()
            assert await sending == AGAIN
            await send_all(second, other)
        return service.accepted + other.accepted

    assert asyncio.run(main()) == ["first", "second"]
    assert notices.unsent_notices() == 0


def test_a_notice_refused_for_a_day_lets_the_others_pass(notices: WorkerDatabase) -> None:
    notices.rows("UPDATE notices SET made_ms = made_ms - %s::bigint WHERE title = 'first'", DAY_MS + 60_000)
    service = SlowService(let=True)

    async def main() -> None:
        async with fleet(notices) as receivers:
            await send_all(receivers.alerts(service), service)

    asyncio.run(main())
    assert service.accepted == ["second", "first"]


def test_a_notice_whose_mark_was_lost_is_sent_again(notices: WorkerDatabase) -> None:
    """PostgreSQL is lost between the service's answer and the commit: sent twice, never lost."""

    async def main() -> list[str]:
        service = SlowService()
        async with fleet(notices) as receivers:
            alerts = receivers.alerts(service)
            sending = asyncio.create_task(alerts.send_next(service))
            await service.asked.wait()
            await asyncio.to_thread(
                notices.rows,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            service.let.set()
            with pytest.raises(DatabaseUnavailable):
                await sending
            await alerts.send_next(service)
        return service.accepted

    assert asyncio.run(main()) == ["first", "first"]
