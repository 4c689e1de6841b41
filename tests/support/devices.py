"""Made-up devices that talk to a receiver over HTTP, for tests of the receiver alone."""

import secrets
import time
from typing import Any

import httpx

from pisync_common.models import Stamp, SyncEvent
from pisync_common.times import format_ms
from pisync_common.wire import encode_batch, encode_event, encode_sync_event


class MadeUpDevice:
    """One enrolled device with one stream. Not safe for threads."""

    def __init__(self, url: str, code: str, *, device_id: str | None = None) -> None:
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.stream = secrets.token_hex(8)
        self.seq = 0
        wanted = {"code": code} | ({} if device_id is None else {"device_id": device_id})
        answer = self.client.post("/api/enroll", json=wanted)
        if answer.status_code != 201:
            self.client.close()
        assert answer.status_code == 201, answer.text
        self.device_id: str = answer.json()["device_id"]
        self.token: str = answer.json()["token"]
        self.client.headers["Authorization"] = f"Bearer {self.token}"

    def stamp(self) -> Stamp:
        return Stamp(
            at_ms=time.time_ns() // 1_000_000,
            boot_id="boot-1",
            boottime_ms=int(time.monotonic() * 1000),
            clock_synced=True,
        )

    def events(self, count: int) -> list[str]:
        """The next `count` events' texts."""
        first = self.seq + 1
        self.seq += count
        return [
            encode_event(
                seq=seq, type="video.watched", stamp=self.stamp(), learner_id="s-1", object_id="math/v1", data='{"n":1}'
            )
            for seq in range(first, first + count)
        ]

    def post_batch(self, events: list[str]) -> httpx.Response:
        body = encode_batch(
            device_id=self.device_id, stream=self.stream, sent=self.stamp(), agent="test/1", events=events
        )
        return self.client.post("/api/events", content=body, headers={"Content-Type": "application/json"})

    def post_sync_event(self, *, total_errors: int = 0, timestamp: str | None = None, **fields: Any) -> httpx.Response:
        event = SyncEvent(
            device_id=self.device_id,
            timestamp=timestamp or format_ms(time.time_ns() // 1_000_000),
            total_files_synced=fields.pop("total_files_synced", 3),
            total_errors=total_errors,
            internet_speed=fields.pop("internet_speed", 1.5),
            **fields,
        )
        return self.client.post(
            "/api/sync-event", content=encode_sync_event(event), headers={"Content-Type": "application/json"}
        )

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> "MadeUpDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
