"""What an admin can prove about a device, by the receiver's own API: that everything is there, once, as it was."""

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.learning_app import Note
from tests.support.processes import DEADLINE_SECONDS, ReceiverProcess


class Proof:
    """Asks `receiver` with a viewer's token of its own."""

    def __init__(self, receiver: ReceiverProcess) -> None:
        token = receiver.admin_token("viewer")
        self._client = httpx.Client(
            base_url=receiver.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=DEADLINE_SECONDS,
            trust_env=False,
        )

    def events(self, device_id: str) -> list[dict[str, Any]]:
        """Every stored event of the device, page by page: an export would need room for its audit entry."""
        rows: list[dict[str, Any]] = []
        link: str | None = f"/api/events?device_id={device_id}&limit=1000"
        while link is not None:
            answer = self._client.get(link).raise_for_status()
            rows += answer.json()
            link = answer.links.get("next", {}).get("url")
        return rows

    def device(self, device_id: str) -> dict[str, Any]:
        """The device as admins see it."""
        return self._get(f"/api/devices/{device_id}")

    def completeness(self, device_id: str) -> dict[str, Any]:
        """All of its streams."""
        return self._get(f"/api/devices/{device_id}/completeness")

    def ready(self) -> int:
        """The status with which /readyz answers."""
        return self._client.get("/readyz").status_code

    def metric(self, sample: str) -> float:
        """A sample of /metrics, such as `pisync_events_total{outcome="stored"}`."""
        lines = self._client.get("/metrics").raise_for_status().text.splitlines()
        (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(sample + " "))
        return float(value)

    def check_whole(self, device_id: str, recorded: Mapping[Note, int]) -> None:
        """The device's one stream holds exactly what was recorded, each event once under its seq, without a gap."""
        found = self.events(device_id)
        stored = {(row["learner_id"], row["data"]["n"]): row["seq"] for row in found}
        assert stored == dict(recorded)
        assert len(found) == len(recorded)
        whole = self.completeness(device_id)
        (stream,) = whole["streams"]
        keys = ("watermark", "highest", "stored", "rejected", "conflicts", "missing")
        assert [stream[key] for key in keys] == [len(recorded), len(recorded), len(recorded), 0, 0, []]
        assert (whole["complete"], whole["cloned_since"]) == (True, None)

    def check_each_once(self, device_id: str, notes: Counter[Note]) -> None:
        """Over all streams of the device: exactly these events, and no stream lacks any."""
        assert Counter((row["learner_id"], row["data"]["n"]) for row in self.events(device_id)) == notes
        assert self.completeness(device_id)["complete"]

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(path).raise_for_status().json()
        return found
