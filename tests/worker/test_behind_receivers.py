"""Two receivers commit at once, two workers hand on and tell: everything that was acknowledged, in order, once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.postgres import fresh_database, needs_postgres
from tests.support.receiver_process import ReceiverProcess, wait_until
from tests.support.worker.broker import URL, Queue
from tests.support.worker.database import WorkerDatabase
from tests.support.worker.process import WorkerProcess
from tests.support.worker.webhook import Webhook

pytestmark = needs_postgres
DEVICES, BATCHES, EVENTS = 8, 12, 5


@pytest.fixture
def receivers(tmp_path: Path) -> Iterator[tuple[str, list[ReceiverProcess]]]:
    """A database's URL and two receivers on it."""
    with fresh_database() as url, ExitStack() as closing:
        both = []
        for number in range(2):
            receiver = ReceiverProcess(
                tmp_path / f"receiver-{number}", "--auth", "off", environ={"PISYNC_RECEIVER_DATABASE_URL": url}
            )
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
    """Batches to the receivers in turn, the way a gateway would have it."""
    with httpx.Client(timeout=60) as client:
        for number in range(BATCHES):
            answer = client.post(urls[number % len(urls)] + "/api/events", json=batch(device, number))
            assert answer.status_code == 200, answer.text


def report(url: str, device: str, minute: int, errors: int) -> None:
    body = {
        "device_id": device,
        "timestamp": f"2026-11-23T10:{minute:02}:00.000Z",
        "total_files_synced": 0,
        "total_errors": errors,
        "internet_speed": 1.5,
        "errors": {"dns": errors} if errors else {},
    }
    assert httpx.post(url + "/api/sync-event", json=body, timeout=60).status_code == 201


def test_what_receivers_acknowledge_reaches_the_broker_once_and_in_order(
    receivers: tuple[str, list[ReceiverProcess]], queue: Queue, tmp_path: Path
) -> None:
    database_url, both = receivers
    urls = [receiver.url for receiver in both]
    chosen = {
        "database_url": database_url,
        "amqp_url": URL,
        "amqp_exchange": queue.name,
        "amqp_queue": queue.name,
        "message_events": "7",
    }
    devices = [f"pibook-{number}" for number in range(DEVICES)]
    database = WorkerDatabase(database_url)
    with (
        WorkerProcess(tmp_path / "one", **chosen) as one,
        WorkerProcess(tmp_path / "two", **chosen) as two,
        ThreadPoolExecutor(DEVICES) as pool,
    ):
        wait_until(lambda: "started" in one.log() and "started" in two.log(), "both work")
        list(pool.map(school_day, devices, [urls] * DEVICES))
        wait_until(lambda: database.position("rabbitmq") == DEVICES * BATCHES * EVENTS, "all is handed on")
    database.close()

    taken = queue.take()
    for device in devices:
        seqs = [event["seq"] for message in taken for event in message.events if event["device_id"] == device]
        assert seqs == list(range(1, BATCHES * EVENTS + 1))


def test_a_streak_is_told_of_and_its_end(
    receivers: tuple[str, list[ReceiverProcess]], webhook: Webhook, tmp_path: Path
) -> None:
    database_url, both = receivers
    chosen = {"database_url": database_url, "alert_urls": webhook.url, "digest_window": "0s"}
    with WorkerProcess(tmp_path / "one", **chosen), WorkerProcess(tmp_path / "two", **chosen):
        for minute in range(5):
            report(both[minute % 2].url, "pibook-1", minute, 2)
        wait_until(lambda: len(webhook.told) == 1, "the streak is told")
        report(both[0].url, "pibook-1", 5, 0)
        wait_until(lambda: len(webhook.told) == 2, "the recovery is told")

    assert webhook.titles() == ["pibook-1 keeps failing", "pibook-1 recovered"]
    assert webhook.told[0]["message"] == "3 sync runs in a row failed since 2026-11-23 10:00 UTC (dns)."
