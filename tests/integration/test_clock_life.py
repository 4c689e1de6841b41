"""A device without a battery for its clock, through its whole life: what the receiver makes of the times it claims.

The device's outbox, delivery and client are real, and so are the receiver and its database. Only the clocks are made
up: the test knows the true time of each event.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.client import ReceiverClient
from pisync_agent.identity import Identity
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.sync.batches import BatchSize
from pisync_agent.sync.run import Delivery
from pisync_common.models import Stamp
from pisync_common.times import from_ms, parse_ms
from tests.support.live_receiver import DEVICE, OTHER, Live, live_receiver

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
START = parse_ms("2026-11-02T07:00:00Z")
IMAGE_MADE = parse_ms("2026-10-01T12:00:00Z")
"""What fake-hwclock of a fresh image says."""
UPLOAD_MS = 400
"""How long a request is on its way."""
BATCH_BYTES = 1500
"""A few events: a boot is delivered in several batches."""


class World:
    """The true time."""

    now_ms = START

    def passes(self, ms: int) -> None:
        self.now_ms += ms


class Device:
    """One card, through several boots. `truth` has the true time of each event by its number."""

    def __init__(self, world: World, live: Live, home: Path, kind: str, device_id: str) -> None:
        self.world = world
        self.truth: dict[int, int] = {}
        self.device_id = device_id
        self._boots = 0
        self.boot(clock_ms=IMAGE_MADE)
        self._outbox = open_outbox(home, clock=self)
        identity = Identity(url=live.url, device_id=device_id, token=live.secrets[kind], insecure_http=True)
        self._delivery = Delivery(
            outbox=self._outbox,
            client=ReceiverClient(identity, clock=self),
            clock=self,
            batch_size=BatchSize(first=BATCH_BYTES, most=BATCH_BYTES),
            link=lambda: True,
        )

    def boot(self, *, clock_ms: int) -> None:
        """Start with a clock that shows `clock_ms`."""
        self._boots += 1
        self._began_ms = self.world.now_ms - 30_000
        self._ahead_ms = clock_ms - self.world.now_ms
        self._synced = False

    def sync_clock(self) -> None:
        """NTP answers."""
        self._ahead_ms, self._synced = 0, True

    def jump(self, ms: int) -> None:
        """Set the clock by hand."""
        self._ahead_ms += ms

    def stamp(self) -> Stamp:
        now = self.world.now_ms
        return Stamp(
            at_ms=now + self._ahead_ms,
            boot_id=f"{self.device_id}-boot-{self._boots}",
            boottime_ms=now - self._began_ms,
            clock_synced=self._synced,
        )

    def monotonic(self) -> float:
        return self.stamp().boottime_ms / 1000

    def learn(self, events: int, *, every_ms: int = MINUTE) -> list[int]:
        """Record events; return their numbers."""
        made = []
        for _ in range(events):
            self.world.passes(every_ms)
            number = len(self.truth) + 1
            self.truth[number] = self.world.now_ms
            (seq,) = self._outbox.append([NewEvent.create("note.taken", stamp=self.stamp(), data={"n": number})])
            assert seq == number
            made.append(number)
        return made

    def import_late(self, before_ms: int) -> int:
        """Record what a browser kept for a while, with its time by the device's clock then."""
        (number,) = self.learn(1)
        self.truth[number + 1] = self.world.now_ms - before_ms
        stamp = self.stamp()
        occurred_at = from_ms(stamp.at_ms - before_ms)
        self._outbox.append(
            [NewEvent.create("note.taken", stamp=stamp, occurred_at=occurred_at, data={"n": number + 1})]
        )
        return number + 1

    def deliver(self) -> None:
        self.world.passes(MINUTE)
        result = self._delivery.run(probe=True)
        assert (result.waiting, result.rejected, result.failure) == (0, 0, None)

    def close(self) -> None:
        self._delivery.client.close()
        self._outbox.close()


class Stored:
    """What the receiver says about a device's events, by the test's number."""

    def __init__(self, live: Live, device: Device) -> None:
        answer = live.client("admin", Accept="application/x-ndjson").get(
            "/api/events", params={"device_id": device.device_id}
        )
        rows = [json.loads(line) for line in answer.raise_for_status().text.splitlines()]
        self._rows: dict[int, dict[str, Any]] = {row["data"]["n"]: row for row in rows}
        assert len(rows) == len(self._rows) == len(device.truth)
        self._truth = device.truth

    def time(self, number: int) -> int:
        return parse_ms(self._rows[number]["estimated_at"])

    def quality(self, numbers: list[int]) -> set[str]:
        return {self._rows[number]["quality"] for number in numbers}

    def worst_error_ms(self, numbers: list[int]) -> int:
        return max(abs(self.time(number) - self._truth[number]) for number in numbers)

    def is_ordered(self) -> bool:
        """Whether the times of the stream never go back."""
        return all(self.time(one) <= self.time(other) for one, other in pairwise(sorted(self._rows)))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def live(tmp_path: Path, world: World) -> Iterator[Live]:
    with live_receiver(tmp_path, now_ms=lambda: world.now_ms + UPLOAD_MS) as running:
        yield running


@pytest.fixture
def device(world: World, live: Live, tmp_path: Path) -> Iterator[Device]:
    with closing(Device(world, live, tmp_path / "device", "device", DEVICE)) as made:
        yield made


def test_1970_at_boot_and_ntp_in_mid_session(device: Device, live: Live) -> None:
    device.boot(clock_ms=0)
    before = device.learn(20)
    device.sync_clock()
    after = device.learn(20)
    device.deliver()

    stored = Stored(live, device)
    assert stored.quality(before) == {"corrected"}
    assert stored.quality(after) == {"synced"}
    assert stored.worst_error_ms(before + after) <= 1000
    assert stored.is_ordered()


def test_a_clock_that_jumps_backwards_and_forwards(device: Device, live: Live) -> None:
    numbers = device.learn(10)
    for jump in (-3 * HOUR, 40 * DAY, -90 * DAY):
        device.jump(jump)
        numbers += device.learn(10)
    device.deliver()

    stored = Stored(live, device)
    assert stored.quality(numbers) == {"corrected"}
    assert stored.worst_error_ms(numbers) <= 1000
    assert stored.is_ordered()


def test_three_boots_offline(device: Device, live: Live, world: World) -> None:
    """The first never knew the time, the second learned it in mid-session, the third was set ahead by hand."""
    unset = device.learn(30)
    world.passes(DAY)
    device.boot(clock_ms=IMAGE_MADE)
    morning = device.learn(30)
    device.sync_clock()
    noon = device.learn(10)
    world.passes(DAY)
    device.boot(clock_ms=world.now_ms + 200 * DAY)
    ahead = device.learn(30)
    world.passes(DAY)
    device.boot(clock_ms=IMAGE_MADE)
    today_ms = world.now_ms
    device.deliver()
    now = device.learn(5)
    device.deliver()

    stored = Stored(live, device)
    # The second boot came in several batches: those before the one with the clock were estimates at first.
    assert (stored.quality(morning), stored.quality(noon)) == ({"corrected"}, {"synced"})
    assert stored.worst_error_ms(morning + noon) <= 1000
    assert (stored.quality(now), stored.worst_error_ms(now) <= 1000) == ({"corrected"}, True)
    assert stored.quality(unset + ahead) == {"estimated"}
    assert stored.time(unset[-1]) <= stored.time(morning[0])
    assert stored.time(noon[-1]) <= stored.time(ahead[0]) <= stored.time(ahead[-1]) <= today_ms
    assert stored.is_ordered()


def test_late_imports_of_an_offline_boot(device: Device, live: Live, world: World) -> None:
    """What a browser kept for an hour is repaired with its boot, and keeps its hour."""
    device.learn(10)
    imported = device.import_late(HOUR)
    device.learn(20)
    device.sync_clock()
    device.learn(5)
    world.passes(DAY)
    device.boot(clock_ms=IMAGE_MADE)
    device.deliver()

    stored = Stored(live, device)
    assert stored.quality([imported]) == {"corrected"}
    assert stored.worst_error_ms([imported]) <= 1000


def test_two_cards_of_one_image_start_at_the_same_wrong_time(
    device: Device, live: Live, world: World, tmp_path: Path
) -> None:
    with closing(Device(world, live, tmp_path / "other", "other device", OTHER)) as other:
        first, second = device.learn(20), other.learn(20)
        device.deliver()
        other.deliver()

        for each, numbers in ((device, first), (other, second)):
            stored = Stored(live, each)
            assert stored.quality(numbers) == {"corrected"}
            assert stored.worst_error_ms(numbers) <= 1000
            assert stored.is_ordered()
            answer = live.client("admin").get(f"/api/devices/{each.device_id}").raise_for_status().json()
            assert answer["cloned_since"] is None
