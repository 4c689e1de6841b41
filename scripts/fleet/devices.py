"""The devices: what each has to send, and when it tries."""

import gzip
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmark.lessons import lessons
from pisync_agent.sync.retry import RetryPolicy
from pisync_common.rules import encode_data
from pisync_common.wire import close_batch, encode_event, open_batch

BATCH: Final = 500
STREAM: Final = "stream-1"


@dataclass(slots=True)
class Device:
    """A device. It has delivered its first `sent` events, and its last `failures` tries failed."""

    number: int
    token: str
    sent: int = 0
    failures: int = 0

    @property
    def name(self) -> str:
        return f"pibook-{self.number:06}"


class Outbox:
    """What every device holds: the same lessons, `count` of them, so that a fleet fits into memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        day = list(lessons(count, seed=1))
        texts = [
            encode_event(
                seq=seq,
                type=lesson.type,
                stamp=lesson.stamp,
                learner_id=lesson.learner_id,
                object_id=lesson.object_id,
                data=encode_data(lesson.data),
            )
            for seq, lesson in enumerate(day, 1)
        ]
        self._parts = [",".join(texts[first : first + BATCH]) for first in range(0, count, BATCH)]
        self._closing = close_batch(day[-1].stamp)

    def body(self, device: Device) -> tuple[bytes, int]:
        """Return the next batch of a device, gzipped, and the seq of its last event."""
        opening = open_batch(device_id=device.name, stream=STREAM, agent="pisync/fleet")
        text = f"{opening}{self._parts[device.sent // BATCH]}{self._closing}"
        return gzip.compress(text.encode(), 1), min(device.sent + BATCH, self.count)


@dataclass
class Schedule:
    """The order of tries. Every device's link comes up once within the window; then the agent's policy decides."""

    devices: Sequence[Device]
    window_s: float
    chance: random.Random
    speed: float = 1.0
    """What the policy's waits are divided by."""
    _due: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._policy = RetryPolicy(random=self.chance.uniform)
        self._due = [(self.chance.uniform(0, self.window_s), number) for number in range(len(self.devices))]
        heapq.heapify(self._due)

    def next(self) -> tuple[float, Device] | None:
        """Return the earliest try and when it is due, in seconds; None while none is planned."""
        if not self._due:
            return None
        due, number = heapq.heappop(self._due)
        return due, self.devices[number]

    def again(self, device: Device, now: float, retry_after: float | None) -> None:
        """Plan the next try after a failure, as the agent does."""
        device.failures += 1
        wait = self._policy.delay(device.failures, retry_after) / self.speed
        heapq.heappush(self._due, (now + wait, device.number))

    def proceed(self, device: Device, now: float) -> None:
        """Plan the next batch at once after a success."""
        device.failures = 0
        heapq.heappush(self._due, (now, device.number))
