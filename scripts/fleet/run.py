"""The fleet's return: every device tries when it is due, until nothing is pending."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fleet.devices import STREAM, Device, Outbox, Schedule
from fleet.links import Link, Reply

LINKS = 400
"""Connections that are open at once. Real devices would open one each; these take turns."""


@dataclass
class Seen:
    """What happened, second by second."""

    offered: Counter[int] = field(default_factory=Counter)
    """Events in requests that were due."""
    accepted: Counter[int] = field(default_factory=Counter)
    """Events that a receipt accounted for."""
    refused: Counter[int] = field(default_factory=Counter)
    """Requests answered 429 or 503, or not at all."""
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From each request to its answer."""
    late: float = 0.0
    """The longest that a due try waited for a connection."""
    drained_s: float = 0.0


async def drain(
    schedule: Schedule, outbox: Outbox, urls: Sequence[str], *, progress: Callable[[float, int, Counter[int]], None]
) -> Seen:
    """Send everything until all is accounted for. Raises RuntimeError for an answer that no agent would believe."""
    seen = Seen()
    left = len(schedule.devices)
    began = time.monotonic()
    done = asyncio.Event()

    async def one_link(number: int) -> None:
        nonlocal left
        link = Link(urls[number % len(urls)])
        while not done.is_set():
            planned = schedule.next()
            if planned is None:
                await asyncio.sleep(0.05)
                continue
            due, device = planned
            if (wait := due - (time.monotonic() - began)) > 0:
                await asyncio.sleep(wait)
            if await _try(link, device, outbox, schedule, seen, began, due):
                left -= 1
                if left == 0:
                    done.set()
        link.close()

    async def report() -> None:
        while not done.is_set():
            progress(time.monotonic() - began, left, seen.statuses)
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(report())
        for number in range(min(LINKS, left)):
            group.create_task(one_link(number))
    seen.drained_s = time.monotonic() - began
    return seen


async def _try(
    link: Link, device: Device, outbox: Outbox, schedule: Schedule, seen: Seen, began: float, due: float
) -> bool:
    """Send a device's next batch; return whether it was its last."""
    body, last = outbox.body(device)
    started = time.monotonic()
    seen.late = max(seen.late, started - began - due)
    seen.offered[int(started - began)] += last - device.sent
    reply = await link.post("/api/events", device.token, body)
    now = time.monotonic()
    seen.seconds.append(now - started)
    seen.statuses[reply.status] += 1
    if reply.status != 200:
        seen.refused[int(now - began)] += 1
        schedule.again(device, now - began, reply.retry_after)
        return False
    watermark = _watermark(reply, device)
    seen.accepted[int(now - began)] += watermark - device.sent
    device.sent = watermark
    if watermark < outbox.count:
        schedule.proceed(device, now - began)
        return False
    return True


def _watermark(reply: Reply, device: Device) -> int:
    receipt = json.loads(reply.body)
    if (receipt["device_id"], receipt["stream"]) != (device.name, STREAM) or receipt["rejected"]:
        raise RuntimeError(f"{device.name} was answered {reply.body[:300]!r}")
    return int(receipt["watermark"])
