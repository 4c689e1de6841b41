"""A service's notices go one after another, by one worker at a time."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry

from pisync_receiver.errors import DatabaseUnavailable
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.alerts.sender import LOOK_SECONDS, Sender
from pisync_receiver.worker.duty import AGAIN
from pisync_receiver.worker.errors import ServiceUnavailable
from pisync_receiver.worker.metrics import WorkerMetrics
from tests.support.worker.database import WorkerDatabase


class SlowService:
    """Takes a notice when it is let."""

    target = "slow"

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.told: list[str] = []

    async def send(self, title: str, body: str) -> None:
        self.asked.set()
        await self.let.wait()
        self.told.append(title)


class FailingService(SlowService):
    async def send(self, title: str, body: str) -> None:
        raise ServiceUnavailable("it did not take a notice")


class Senders:
    """Workers that send to one service."""

    def __init__(self, database: WorkerDatabase, closing: AsyncExitStack) -> None:
        self.registry = CollectorRegistry()
        self._metrics = WorkerMetrics(self.registry)
        self._database = database
        self._closing = closing

    def one(self, service: SlowService) -> Sender:
        database = Database(PostgresUrl(conninfo=self._database.url))
        self._closing.push_async_callback(database.close)
        return Sender(database, service, now_ms=lambda: 5_000, metrics=self._metrics)


@pytest.fixture
def notices(database: WorkerDatabase) -> WorkerDatabase:
    for title in ("first", "second"):
        database.rows(
            "INSERT INTO notices (target, digest, title, body, made_ms) VALUES ('slow', false, %s, 'body', 1)", title
        )
    return database


def test_while_one_worker_sends_no_other_does(notices: WorkerDatabase) -> None:
    async def main() -> list[str]:
        service, other = SlowService(), SlowService()
        other.let.set()
        async with AsyncExitStack() as closing:
            senders = Senders(notices, closing)
            sending = asyncio.create_task(senders.one(service).step())
            await service.asked.wait()
            assert await senders.one(other).step() == LOOK_SECONDS
            service.let.set()
            assert await sending == AGAIN
            assert await senders.one(other).step() == AGAIN
            assert await senders.one(other).step() == LOOK_SECONDS
        return service.told + other.told

    assert asyncio.run(main()) == ["first", "second"]
    assert notices.rows("SELECT title, sent_ms FROM notices ORDER BY id") == [("first", 5000), ("second", 5000)]


def test_what_was_not_taken_stays_first(notices: WorkerDatabase) -> None:
    async def main() -> list[str]:
        async with AsyncExitStack() as closing:
            senders = Senders(notices, closing)
            with pytest.raises(ServiceUnavailable):
                await senders.one(FailingService()).step()
            service = SlowService()
            service.let.set()
            await senders.one(service).step()
            assert senders.registry.get_sample_value("pisync_worker_alerts_sent_total", {"outcome": "failed"}) == 1
            assert senders.registry.get_sample_value("pisync_worker_alerts_sent_total", {"outcome": "sent"}) == 1
            return service.told

    assert asyncio.run(main()) == ["first"]


def test_a_notice_that_nobody_takes_does_not_hold_up_the_others_for_ever(notices: WorkerDatabase) -> None:
    notices.rows("UPDATE notices SET made_ms = 1 - 86400000 WHERE title = 'first'")

    async def main() -> list[str]:
        service = SlowService()
        service.let.set()
        async with AsyncExitStack() as closing:
            sender = Senders(notices, closing).one(service)
            while await sender.step() == AGAIN:
                pass
        return service.told

    assert asyncio.run(main()) == ["second", "first"]


def test_a_mark_that_could_not_be_made_sends_again(notices: WorkerDatabase) -> None:
    """PostgreSQL goes away between the service's answer and the commit: told twice, never lost."""

    async def main() -> list[str]:
        service = SlowService()
        async with AsyncExitStack() as closing:
            sender = Senders(notices, closing).one(service)
            sending = asyncio.create_task(sender.step())
            await service.asked.wait()
            await asyncio.to_thread(
                notices.rows,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            service.let.set()
            with pytest.raises(DatabaseUnavailable):
                await sending
            await sender.step()
        return service.told

    assert asyncio.run(main()) == ["first", "first"]
