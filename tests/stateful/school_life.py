"""Whatever happens to devices, link and receiver, in whatever order: every event that `record` acknowledged is stored
exactly once, and every receipt is true.

The outbox, the delivery and the store are real; for the rest see `simulated_device` and `simulated_cloud`.
What may be missing in the end is said in `SchoolLife.beyond_recall`.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.stateful.simulated_cloud import Cloud
from tests.stateful.simulated_device import Device, Hop
from tests.support.power_cut import Connection, PowerCut

ROUNDS = 12
DEVICES = 3
WHICH = st.integers(0, DEVICES - 1)
SOON = st.integers(0, 25)
"""After how many writes, syncs and deletions the power goes."""
HOPS = st.lists(st.sampled_from(Hop), max_size=6)


class SchoolLife(RuleBasedStateMachine):
    """See the module. Subclasses break a promise by the connections they hand in."""

    device_connection: type[Connection] = Connection
    cloud_connection: type[Connection] = Connection

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())

    @initialize(seed=st.integers(0, 2**32 - 1), keep_delivered=st.sampled_from([0, 1500, 2**25]))
    def begin(self, seed: int, keep_delivered: int) -> None:
        self.random = Random(seed)
        self.cloud = Cloud(self.home, random=self.random, connection=self.cloud_connection)
        self.devices = [
            Device(
                self.home / "device-0",
                self.cloud,
                random=self.random,
                connection=self.device_connection,
                keep_delivered=keep_delivered,
            )
        ]
        self.number = 0
        self.doubtful: dict[int, Device] = {}
        self.rolled_back: set[int] = set()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.all_arrives()
        finally:
            for device in self.devices:
                device.close()
            self.cloud.close()
            shutil.rmtree(self.home)

    # On the device

    @rule(which=WHICH, count=st.integers(1, 5), keyed=st.booleans())
    def record(self, which: int, count: int, keyed: bool) -> None:
        self.of(which).record(self.fresh(count), keyed=keyed)

    @rule(which=WHICH, count=st.integers(1, 5), operations=SOON, power_lost=st.booleans())
    def end_while_recording(self, which: int, count: int, operations: int, power_lost: bool) -> None:
        """What `record` was at is there or not; what it had returned is there."""
        numbers = self.fresh(count)
        device = self.of(which)
        device.disk.fail_after(operations)
        device.power_lost = power_lost
        self.until_the_end(device, lambda: [device.record([number], keyed=True) for number in numbers])
        self.doubtful |= {number: device for number in numbers if number not in device.recorded}

    @precondition(lambda self: self.doubtful)
    @rule(which=WHICH, data=st.data())
    def record_again(self, which: int, data: st.DataObject) -> None:
        """An app that never got its answer repeats it, with the same key, on the same device, while it is there."""
        device = self.of(which)
        number = data.draw(st.sampled_from(sorted(self.doubtful)))
        if self.doubtful[number] is device and number not in self.cloud.numbers():
            device.record([number], keyed=True)
            del self.doubtful[number]

    @rule(which=WHICH, power_lost=st.booleans())
    def device_ends(self, which: int, power_lost: bool) -> None:
        self.of(which).restart(power_lost=power_lost)

    @rule(which=WHICH, ahead_s=st.integers(-(10**9), 10**9), synced=st.booleans(), seconds=st.integers(0, 10**6))
    def clock_jumps(self, which: int, ahead_s: int, synced: bool, seconds: int) -> None:
        clock = self.of(which).clock
        clock.ahead_ms, clock.synced = ahead_s * 1000, synced
        clock.pass_s(seconds)

    @precondition(lambda self: len(self.devices) < DEVICES)
    @rule(which=WHICH, power_lost=st.booleans())
    def card_is_cloned(self, which: int, power_lost: bool) -> None:
        """A card is copied as it was left, by a power cut perhaps, and both are used."""
        original = self.of(which)
        original.restart(power_lost=power_lost)
        self.devices.append(original.clone(self.home / f"device-{len(self.devices)}"))

    # Between them

    @rule(which=WHICH, hops=HOPS, operations=SOON)
    def sync(self, which: int, hops: list[Hop], operations: int) -> None:
        device = self.of(which)
        self.until_the_end(device, lambda: device.sync(hops, operations=operations))

    @rule(which=WHICH, hops=HOPS, operations=SOON, power_lost=st.booleans())
    def end_while_syncing(self, which: int, hops: list[Hop], operations: int, power_lost: bool) -> None:
        device = self.of(which)
        device.disk.fail_after(operations)
        device.power_lost = power_lost
        self.until_the_end(device, lambda: device.sync(hops))

    @rule(which=WHICH)
    def late_requests_arrive(self, which: int) -> None:
        self.of(which).link.deliver_late()

    # In the cloud

    @rule(power_lost=st.booleans())
    def cloud_ends(self, power_lost: bool) -> None:
        self.cloud.restart(power_lost=power_lost)

    @rule()
    def cloud_is_copied(self) -> None:
        self.cloud.copy()

    @precondition(lambda self: self.cloud.copies)
    @rule(data=st.data())
    def cloud_is_restored(self, data: st.DataObject) -> None:
        before = set(self.cloud.numbers())
        self.cloud.restore(data.draw(st.integers(0, self.cloud.copies - 1)))
        self.rolled_back |= before - set(self.cloud.numbers())

    # What holds

    @invariant()
    def nothing_is_stored_twice(self) -> None:
        assert not [number for number, times in self.cloud.numbers().items() if times > 1]

    @rule()
    def all_arrives(self) -> None:
        """With a good link, a few sync runs bring everything home."""
        for device in self.devices:
            device.requeue_dead()
        for _ in range(ROUNDS):
            before = self.cloud.numbers()
            results = [device.sync() for device in self.devices]
            if self.cloud.numbers() == before and not any(result.failure or result.waiting for result in results):
                break
        else:
            raise AssertionError(f"there is no end to it: {results}")
        assert all(device.outbox.state().waiting == 0 for device in self.devices)
        assert all(device.outbox.next_sync_event() is None for device in self.devices)
        stored = set(self.cloud.numbers())
        recorded = {number for device in self.devices for number in device.recorded}
        assert stored <= recorded | self.doubtful.keys()
        lost = {number for number in recorded - stored if not self.beyond_recall(number)}
        assert not lost, f"acknowledged and not stored: {sorted(lost)}"

    def beyond_recall(self, number: int) -> bool:
        """A restored receiver can ask only for what devices still keep; and where two cards share one stream, the
        other device's event may have taken the number's place meanwhile."""
        if number not in self.rolled_back:
            return False
        places = {device.recorded[number] for device in self.devices if number in device.recorded}
        taken = any(self.cloud.stands_under(stream, seq) not in (None, number) for stream, seq in places)
        return taken or not any(number in device.numbers() for device in self.devices)

    # Steps

    def of(self, which: int) -> Device:
        return self.devices[which % len(self.devices)]

    def fresh(self, count: int) -> list[int]:
        self.number += count
        return list(range(self.number - count, self.number))

    def until_the_end(self, device: Device, work: Callable[[], object]) -> None:
        """Do it; if the device goes down meanwhile, start it again and see what it still has."""
        try:
            work()
            device.disk.fail_after(10**9)
        except PowerCut:
            device.restart(power_lost=device.power_lost)
            known = device.numbers() | {promise.number for promise in self.cloud.promised} | self.rolled_back
            assert device.recorded.keys() <= known
