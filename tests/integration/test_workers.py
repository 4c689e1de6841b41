"""`serve --workers 2`: one address, several processes, as hard to lose as one."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.postgres import fresh_database, needs_postgres
from tests.support.receiver_process import ReceiverProcess, wait_until

pytestmark = needs_postgres

REPORT = {"timestamp": "2026-11-23T10:00:00Z", "total_files_synced": 3, "total_errors": 0, "internet_speed": 2.5}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    with (
        fresh_database() as url,
        ReceiverProcess(tmp_path / "receiver", "--workers", "2", "--device-rate", "0", database_url=url) as running,
    ):
        yield running


def workers(receiver: ReceiverProcess) -> list[int]:
    return children(receiver.pid)


def children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def device(receiver: ReceiverProcess) -> httpx.Client:
    answer = httpx.post(
        receiver.url + "/api/enroll", json={"code": receiver.enrollment_code(), "device_id": "pibook-1"}
    )
    return httpx.Client(
        base_url=receiver.url, headers={"Authorization": f"Bearer {answer.json()['token']}"}, timeout=60
    )


def test_it_says_once_that_it_listens_and_both_processes_answer(receiver: ReceiverProcess) -> None:
    assert len(workers(receiver)) == 2
    admin = {"Authorization": f"Bearer {receiver.admin_token()}"}
    counted = 0
    for _ in range(40):  # a connection each, so that the kernel deals them out
        assert httpx.get(receiver.url + "/healthz", headers={"Connection": "close"}).status_code == 200
        counted += 1
    shown = httpx.get(receiver.url + "/metrics", headers=admin).text
    (total,) = re.findall(r'^pisync_requests_total\{.*"/healthz".*\} ([0-9.]+)$', shown, re.MULTILINE)
    assert float(total) == counted
    assert receiver.stop() == -signal.SIGTERM
    log = receiver.log()
    assert log.count('"message":"started"') == 3  # each worker, and all together
    assert log.count('"message":"stopped"') == 3


def test_a_worker_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(receiver: ReceiverProcess) -> None:
    acknowledged = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal acknowledged
        with device(receiver) as client:
            seq = 1
            while not stop.is_set():
                events = [{"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z"}]
                batch = {"device_id": "pibook-1", "stream": "stream-1", "events": events}
                try:
                    answer = client.post("/api/events", json=batch)
                except httpx.TransportError:
                    continue  # the worker that had this connection was killed; the same batch goes again
                assert answer.status_code == 200, answer.text
                acknowledged = answer.json()["watermark"]
                seq = acknowledged + 1

    sender = threading.Thread(target=load)
    sender.start()
    for _ in range(3):
        count = acknowledged
        wait_until(lambda count=count: acknowledged > count + 5, "batches are taken")  # type: ignore[misc]
        before = workers(receiver)
        os.kill(before[0], signal.SIGKILL)
        wait_until(
            lambda before=before: len(now := workers(receiver)) == 2 and before[0] not in now,  # type: ignore[misc]
            "another worker takes its place",
        )
    stop.set()
    sender.join()
    viewer = {"Authorization": f"Bearer {receiver.admin_token('viewer')}"}
    (stream,) = httpx.get(receiver.url + "/api/devices/pibook-1/completeness", headers=viewer).json()["streams"]
    assert (stream["stored"], stream["missing"]) == (acknowledged, [])


def test_workers_end_when_their_parent_is_killed(receiver: ReceiverProcess) -> None:
    orphans = workers(receiver)
    receiver.kill()
    wait_until(lambda: not any(alive(pid) for pid in orphans), "the workers end")
