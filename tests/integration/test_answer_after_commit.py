"""An answer never comes before the commit, and never without one."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pisync_receiver import intake
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import Store
from tests.support.live_receiver import DEVICE, live_receiver

REPORT = {
    "device_id": DEVICE,
    "timestamp": "2026-11-23T08:00:00Z",
    "total_files_synced": 1,
    "total_errors": 0,
    "internet_speed": 1,
}
EVENT = {"seq": 1, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z"}
BATCH = {"device_id": DEVICE, "stream": "s1", "events": [EVENT]}
CALLS = [("/api/sync-event", REPORT, 201), ("/api/events", BATCH, 200)]


class Gate:
    """Stands before a store's writes: lets them through after `open`, or fails them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.entered = threading.Event()
        self.open = threading.Event()
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, submissions: Sequence[Any]) -> list[Any]:
        if self.error is not None:
            raise self.error
        self.entered.set()
        assert await asyncio.to_thread(self.open.wait, 60)
        return await self._store.write(submissions)

    async def ready(self) -> None:
        if self.error is not None:
            raise self.error
        await self._store.ready()


@pytest.mark.parametrize(("path", "body", "status"), CALLS)
def test_no_answer_before_the_commit_returns(tmp_path: Path, path: str, body: dict[str, Any], status: int) -> None:
    gates: list[Gate] = []

    def wrap(store: Store) -> Gate:
        gates.append(Gate(store))
        return gates[0]

    with live_receiver(tmp_path, wrap=wrap) as live, ThreadPoolExecutor() as pool:
        (gate,) = gates
        client = live.client("device")
        asking = pool.submit(client.post, path, json=body)
        assert gate.entered.wait(60)
        # Other requests are answered meanwhile; the first is not.
        for _ in range(20):
            assert live.client(None).get("/healthz").status_code == 200
        assert not asking.done()
        gate.open.set()
        assert asking.result(60).status_code == status


@pytest.mark.parametrize(("path", "body", "status"), CALLS)
def test_a_failed_commit_is_503_and_nothing_is_stored(
    tmp_path: Path, path: str, body: dict[str, Any], status: int
) -> None:
    gates: list[Gate] = []

    def wrap(store: Store) -> Gate:
        gates.append(Gate(store))
        return gates[0]

    with live_receiver(tmp_path, wrap=wrap) as live:
        (gate,) = gates
        gate.open.set()
        gate.error = StoreUnusable("disk I/O error")
        answer = live.client("device").post(path, json=body)
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:pisync:problem:store_unusable"
        assert int(answer.headers["Retry-After"]) >= 1
        assert live.client(None).get("/readyz").status_code == 503
        assert live.client("admin").get("/api/events").json() == []
        gate.error = None
        assert live.client(None).get("/readyz").status_code == 200
        assert live.client("device").post(path, json=body).status_code == status


JSON = {"Content-Type": "application/json"}
OF_ANOTHER = json.dumps(REPORT | BATCH | {"device_id": "pibook-0043"}).encode()
REFUSED: list[tuple[str, bytes, dict[str, str], int]] = [
    ("device", b"{", JSON, 400),
    ("device", OF_ANOTHER, JSON, 403),
    ("device", b"{}", {"Content-Type": "text/plain"}, 415),
    ("device", b" " * (1024 * 1024 + 1), JSON, 413),
    ("device", b"{}", JSON | {"Content-Encoding": "gzip"}, 400),
    ("wrong", b"{}", JSON, 401),
    ("viewer", b"{}", JSON, 403),
]


@pytest.mark.parametrize("path", ["/api/events", "/api/sync-event", "/api/enroll"])
def test_a_refused_body_is_answered_after_the_group_under_way(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "TURN_S", 60.0)
    gates: list[Gate] = []

    def wrap(store: Store) -> Gate:
        gates.append(Gate(store))
        return gates[0]

    with live_receiver(tmp_path, wrap=wrap) as live, ThreadPoolExecutor(20) as pool:
        (gate,) = gates
        public = path == "/api/enroll"
        refused = [case for case in REFUSED if not public or case[3] in (400, 413, 415)]
        free = [live.client(kind).post(path, content=body, headers=headers) for kind, body, headers, _ in refused]
        good = pool.submit(live.client("device").post, "/api/events", json=BATCH)
        assert gate.entered.wait(60)
        held = [
            pool.submit(live.client(kind).post, path, content=body, headers=headers)
            for kind, body, headers, _ in refused
        ]
        for _ in range(20):
            assert live.client(None).get("/healthz").status_code == 200
        assert not any(call.done() for call in held)
        gate.open.set()
        assert good.result(60).status_code == 200
        answers = [call.result(60) for call in held]

    expected = [400 if public and status == 403 else status for *_, status in refused]
    assert [answer.status_code for answer in free] == expected
    assert [answer.status_code for answer in answers] == expected
