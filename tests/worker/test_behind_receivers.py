"""Two receivers commit at once and two workers publish: every acknowledged event, once and in order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import ReceiverProcess, WorkerProcess, wait_until
from tests.worker.broker import URL, Queue, needs_rabbitmq
from tests.worker.database import WorkerDatabase

pytestmark = [needs_postgres, needs_rabbitmq]
DEVICES, BATCHES, EVENTS = 8, 12, 5


@pytest.fixture
def receivers(tmp_path: Path) -> Iterator[tuple[str, list[ReceiverProcess]]]:
    """Give a database's URL and two receivers on it."""
    with fresh_database() as url, ExitStack() as closing:
        both = []
        for number in range(2):
            receiver = ReceiverProcess(tmp_path / f"receiver-{number}", "--auth", "off", database_url=url)
            if not number:
                receiver.command("migrate")
            both.append(closing.enter_context(receiver))
        yield url, both


def batch(device: str, number: int) -> dict[str, Any]:
    first = number * EVENTS + 1
    events = [
        {"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:12:09.120Z", "clock_synced": True}
        for seq in range(first, first + EVENTS)
    ]
    return {"device_id": device, "stream": "s1", "agent": "pisync/0.1.0", "events": events}


def school_day(device: str, urls: list[str]) -> None:
    """Send batches to the receivers in turn, as a gateway does."""
    with httpx.Client(timeout=60) as client:
        for number in range(BATCHES):
            answer = client.post(urls[number % len(urls)] + "/api/events", json=batch(device, number))
            assert answer.status_code == 200, answer.text


def test_acknowledged_events_reach_the_broker_once_and_in_order(
    receivers: tuple[str, list[ReceiverProcess]], queue: Queue, tmp_path: Path
) -> None:
    database_url, both = receivers
    urls = [receiver.url for receiver in both]
    chosen = {
        "database_url": database_url,
        "amqp_url": URL,
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
    }
    devices = [f"pibook-{number}" for number in range(DEVICES)]
    database = WorkerDatabase(database_url)
    with (
        WorkerProcess(tmp_path / "one", **chosen) as one,
        WorkerProcess(tmp_path / "two", **chosen) as two,
        ThreadPoolExecutor(DEVICES) as pool,
    ):
        wait_until(lambda: "started" in one.log() and "started" in two.log(), "both started")
        list(pool.map(school_day, devices, [urls] * DEVICES))
        wait_until(lambda: database.position("rabbitmq") == DEVICES * BATCHES * EVENTS, "everything is published")
    database.close()

    taken = queue.take()
    for device in devices:
        seqs = [event["seq"] for message in taken for event in message.events if event["device_id"] == device]
        assert seqs == list(range(1, BATCHES * EVENTS + 1))
