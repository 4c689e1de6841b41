"""The cloud's side, as its users see it: devices enrolled, and what is stored."""

import asyncio
import gzip
import json
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmark.processes import Receiver
from fleet.devices import Device
from fleet.links import Link

ENROLLING: Final = 50
"""Connections over which the fleet enrolls."""


async def enroll(cloud: Receiver, count: int, *, progress: Callable[[int], None]) -> list[Device]:
    """Enroll devices with a code. Raises RuntimeError if one is refused."""
    code = cloud.command("enrollment", "create", "--uses", str(count))
    devices = [Device(number=number, token="") for number in range(count)]
    pending = iter(devices)

    async def over_one_link() -> None:
        link = Link(cloud.url)
        for device in pending:
            body = json.dumps({"code": code, "device_id": device.name}).encode()
            reply = await link.post("/api/enroll", "none-yet", gzip.compress(body))
            if reply.status != 201:
                raise RuntimeError(f"{device.name} cannot enroll: {reply.status} {reply.body[:300]!r}")
            device.token = json.loads(reply.body)["token"]
            if device.number % 1_000 == 0:
                progress(device.number)
        link.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(ENROLLING):
            group.create_task(over_one_link())
    return devices


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the receiver has of the fleet."""

    events: int
    missing: int
    duplicates: int


def export(cloud: Receiver) -> Iterable[bytes]:
    """Return every stored event as a JSON line."""
    headers = {"Authorization": f"Bearer {cloud.viewer()}", "Accept": "application/x-ndjson"}
    return urllib.request.urlopen(urllib.request.Request(f"{cloud.url}/api/events", headers=headers))  # type: ignore[no-any-return]


def check(lines: Iterable[bytes], devices: Sequence[Device], events_each: int) -> Found:
    """Read everything that is stored: each device's events must be 1, 2, … `events_each`, once each."""
    seen = {device.name: bytearray(events_each + 1) for device in devices}
    count = doubled = 0
    for line in lines:
        row = json.loads(line)
        mine = seen[row["device_id"]]
        count += 1
        doubled += mine[row["seq"]]
        mine[row["seq"]] = 1
    return Found(events=count, missing=sum(mine.count(0, 1) for mine in seen.values()), duplicates=doubled)
