"""A device that sends in a loop is asked to wait; other callers are not, and refused calls are not stored."""

from pathlib import Path

from pisync_receiver.app import AppSettings
from pisync_receiver.http.rates import DEVICE_BURST_S
from tests.support.live_receiver import DEVICE, OTHER, live_receiver

REPORT = {"timestamp": "2026-11-23T10:00:00Z", "total_files_synced": 3, "total_errors": 0, "internet_speed": 2.5}


def test_429_with_retry_after_for_one_device_alone(tmp_path: Path) -> None:
    with live_receiver(tmp_path, settings=AppSettings(device_rate=1, cache_ttl_s=0)) as live:
        device, other = live.client("device"), live.client("other device")
        answers = [
            device.post("/api/sync-event", json={"device_id": DEVICE, **REPORT}) for _ in range(DEVICE_BURST_S + 20)
        ]
        refused = next(answer for answer in answers if answer.status_code != 201)
        assert refused.status_code == 429
        assert refused.json()["type"].endswith(":rate_limited")
        assert int(refused.headers["Retry-After"]) >= 1
        assert other.post("/api/sync-event", json={"device_id": OTHER, **REPORT}).status_code == 201
        assert all(live.client("admin").get("/api/devices").status_code == 200 for _ in range(DEVICE_BURST_S + 20))
        stored = live.run(live.store.history(DEVICE, limit=100)).rows
        assert len(stored) == [answer.status_code for answer in answers].count(201)
