"""Receivers as their users run them: a dead site is one message to a real HTTP service, and one line of the log."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from pisync_common.times import now_ms
from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.store.address import address
from pisync_receiver.store.opening import open_store
from tests.conformance.notices import Receiver, fails, school
from tests.support.blocking import BlockingStore
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import ReceiverProcess, wait_until
from tests.support.submissions import DAY, HOUR
from tests.support.webhook import Webhook

SITE = "Nakuru <script>"
TITLE = f"{SITE} is silent: 34 of 34 devices"


@dataclass(frozen=True)
class Fleet:
    """Receivers on one database, not started yet."""

    receivers: list[ReceiverProcess]
    webhook: Webhook


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """One receiver on SQLite, two on PostgreSQL. The last contact of a site was 8 days ago, which another receiver
    noticed two hours ago."""
    with ExitStack() as closing:
        url = None if request.param == "sqlite" else closing.enter_context(fresh_database())
        webhook = closing.enter_context(Webhook())
        environ = {"PISYNC_RECEIVER_ALERT_URLS": webhook.url, "PISYNC_RECEIVER_PUBLIC_URL": "https://pisync.example"}
        receivers = [
            ReceiverProcess(tmp_path / f"receiver-{number}", "--auth", "off", environ=environ, database_url=url)
            for number in range(1 if url is None else 2)
        ]
        store = BlockingStore(partial(open_store, address(receivers[0].database_url), create=True))
        for device in school(store, "Nakuru", 34, now_ms() - 8 * DAY):
            assert store.write([DeviceChange(device_id=device, at_ms=now_ms() - 8 * DAY, site=SITE)])
        other = Receiver(store)
        other.now_ms = now_ms() - 2 * HOUR
        other.watch()
        store.close()
        for receiver in receivers:
            closing.callback(receiver.kill)
        yield Fleet(receivers, webhook)


def has_looked(receiver: ReceiverProcess, *, pending: int) -> bool:
    """Whether it has looked for notices to make and to send, and found this many changes that wait for others."""
    text = httpx.get(f"{receiver.url}/metrics").text
    return f"pisync_alerts_pending {pending}.0" in text and "pisync_notices_pending 0.0" in text


def test_a_dead_site_is_one_message(fleet: Fleet) -> None:
    for receiver in fleet.receivers:
        receiver.start()
    wait_until(lambda: bool(fleet.webhook.received), "the message")
    for receiver in fleet.receivers:
        wait_until(partial(has_looked, receiver, pending=0), "nothing is left to tell")
        receiver.kill()
    receiver = fleet.receivers[0]
    store = BlockingStore(partial(open_store, address(receiver.database_url)))
    fails(store, "pibook-1", now_ms() - HOUR)
    store.close()
    receiver.start()
    wait_until(partial(has_looked, receiver, pending=1), "what changed is noticed after a restart")
    changed = httpx.get(f"{receiver.url}/api/transitions?device_id=pibook-1").json()
    assert [(row["before"], row["state"]) for row in changed] == [("new", "failing")]

    assert fleet.webhook.titles() == [TITLE]
    body = fleet.webhook.received[0]["message"].splitlines()
    assert body[0].startswith(f"{TITLE} since ")
    assert body[1:] == ["https://pisync.example/sites/Nakuru%20%3Cscript%3E"]
    lines = [json.loads(line) for each in fleet.receivers for line in each.log().splitlines() if TITLE in line]
    assert [(line["level"], line["message"]) for line in lines] == [("WARNING", TITLE)]
    shown = receiver.json("notices")
    assert {row["title"] for row in shown} == {TITLE}
    assert sorted(row["target"] for row in shown) == ["JSON (number 1 of alert_urls)", "log"]
