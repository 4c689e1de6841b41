"""Two receivers on one PostgreSQL give the same answers."""

import re
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from pisync_receiver.http.auth import KEEP_S
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import ReceiverProcess, wait_until

pytestmark = needs_postgres

EVENT = {"timestamp": "2026-11-23T10:00:00Z", "total_files_synced": 3, "total_errors": 1, "internet_speed": 2.5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ReceiverProcess, ReceiverProcess]]:
    folder: Path = tmp_path_factory.mktemp("receivers")
    with fresh_database() as url:
        one, other = (ReceiverProcess(folder / name, database_url=url) for name in ("one", "other"))
        with one, other:
            yield one, other


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status(receiver: ReceiverProcess, token: str) -> int:
    return httpx.get(receiver.url + "/api/devices", headers=bearer(token)).status_code


def refuses(receiver: ReceiverProcess, token: str) -> bool:
    return status(receiver, token) == 401


def enroll(receiver: ReceiverProcess, device_id: str) -> str:
    code = receiver.enrollment_code()
    answer = httpx.post(receiver.url + "/api/enroll", json={"code": code, "device_id": device_id})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def test_revoked_token_ends_its_sessions_on_every_receiver(pair: tuple[ReceiverProcess, ReceiverProcess]) -> None:
    one, other = pair
    made = one.run("token", "create", "--scope", "viewer")
    signed_in = httpx.post(other.url + "/sign-in", data={"token": made.stdout.strip()})
    assert signed_in.status_code == 303

    def status_of_page(receiver: ReceiverProcess) -> int:
        return httpx.get(receiver.url + "/devices", cookies=signed_in.cookies).status_code

    def is_closed(receiver: ReceiverProcess) -> bool:
        return status_of_page(receiver) == 303

    assert [status_of_page(one), status_of_page(other)] == [200, 200]
    (number,) = re.findall(r" token (\d+)\.", made.stderr)
    one.command("token", "revoke", number)
    for receiver in pair:
        wait_until(partial(is_closed, receiver), "the session ends", seconds=KEEP_S + 30)


def test_revoked_token_ends_on_every_receiver(
    pair: tuple[ReceiverProcess, ReceiverProcess],
) -> None:
    one, other = pair
    token = one.admin_token()
    assert [status(one, token), status(other, token)] == [200, 200]
    number = next(row["id"] for row in reversed(one.json("token", "list")) if row["revoked_at"] is None)
    one.command("token", "revoke", str(number))
    for receiver in pair:  # each kept it in memory
        wait_until(partial(refuses, receiver, token), "it is refused", seconds=KEEP_S + 30)


def test_repeated_sync_event_gives_the_first_record_on_both(pair: tuple[ReceiverProcess, ReceiverProcess]) -> None:
    one, other = pair
    token, viewer = enroll(one, "pibook-a"), other.admin_token("viewer")
    headers = bearer(token) | {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (
        httpx.post(receiver.url + "/api/sync-event", json={"device_id": "pibook-a", **EVENT}, headers=headers)
        for receiver in pair
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    for receiver in pair:
        history = httpx.get(receiver.url + "/api/sync-event/device/pibook-a/sync-history", headers=bearer(viewer))
        assert [row["id"] for row in history.json()] == [first.json()["id"]]


def test_same_batch_sent_to_both_at_once_is_stored_once(pair: tuple[ReceiverProcess, ReceiverProcess]) -> None:
    one, _ = pair
    token, viewer = enroll(one, "pibook-b"), one.admin_token("viewer")
    events = [
        {"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z", "learner_id": "s-1"}
        for seq in range(1, 201)
    ]
    batch = {"device_id": "pibook-b", "stream": "stream-1", "events": events}
    receipts: list[dict[str, int]] = []

    def send(receiver: ReceiverProcess) -> None:
        answer = httpx.post(receiver.url + "/api/events", json=batch, headers=bearer(token), timeout=60)
        assert answer.status_code == 200, answer.text
        receipts.append(answer.json())

    senders = [threading.Thread(target=send, args=(receiver,)) for receiver in pair * 3]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(receipt["stored"] for receipt in receipts) == [0, 0, 0, 0, 0, 200]
    assert {receipt["watermark"] for receipt in receipts} == {200}
    stored = httpx.get(one.url + "/api/events?device_id=pibook-b&limit=1000", headers=bearer(viewer), timeout=60).json()
    assert [row["seq"] for row in stored] == list(range(1, 201))
