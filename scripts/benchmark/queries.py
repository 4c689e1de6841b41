"""What an admin asks, of a small fleet and of a large one."""

import http.client
import random
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark.lessons import MORNING_MS
from benchmark.measure import Bench, percentile
from benchmark.processes import Receiver, receiver
from benchmark.report import Result, at_most, progress
from pisync_common.times import format_ms
from pisync_receiver.store import SyncReport
from pisync_receiver.store.sqlite import open_store

EVENTS_EACH = 100
FAILING = 5
"""One device of so many keeps failing."""
PAGE = 20
"""Small enough that both fleets fill it, so that the answers are of one size."""


def questions(bench: Bench) -> Iterator[Result]:
    """p99 of `repeated-failures` and `sync-history`, 100 times the devices beside the small fleet."""
    small, large = 100, bench.pick(10_000, 1_000)
    folders = {devices: bench.place(f"fleet-{devices}") for devices in (small, large)}
    for devices, folder in folders.items():
        progress(f"queries: storing {devices * EVENTS_EACH:,} sync events of {devices:,} devices")
        fill(folder / "receiver.db", devices)
    with receiver(folders[small]) as few, receiver(folders[large]) as many:
        for name, path in (
            ("repeated-failures", f"/api/sync-event/devices/repeated-failures?limit={PAGE}"),
            ("sync-history", "/api/sync-event/device/{device}/sync-history"),
        ):
            progress(f"queries: {name}")
            took = ask_in_turns({small: few, large: many}, path, times=bench.pick(2_000, 300))
            p99 = {devices: percentile(seconds, 99) * 1000 for devices, seconds in took.items()}
            yield at_most(
                f"{name}, {large:,} devices, p99 | {small} devices", f"{p99[large]:.2f} ms", f"{p99[small]:.2f} ms",
                p99[large] / p99[small], 2,
            )  # fmt: skip


def fill(database: Path, devices: int) -> None:
    """Store `EVENTS_EACH` sync events of each device, through the store, in the order of their time."""
    store = open_store(database, create=True)
    try:
        for turn in range(EVENTS_EACH):
            for first in range(0, devices, 1_000):
                store.write([_report(number, turn) for number in range(first, min(first + 1_000, devices))])
    finally:
        store.close()


def _report(device: int, turn: int) -> SyncReport:
    at_ms = MORNING_MS + turn * 900_000 + device * 7
    failures = 3 if device % FAILING == 0 and turn > EVENTS_EACH - 10 else 0
    return SyncReport(
        device_id=device_name(device),
        timestamp=format_ms(at_ms),
        at_ms=at_ms,
        total_files_synced=turn,
        total_errors=failures,
        internet_speed=1.5,
        received_ms=at_ms + 500,
    )


def device_name(number: int) -> str:
    return f"pibook-{number:05}"


def ask_in_turns(fleets: dict[int, Receiver], path: str, *, times: int) -> dict[int, list[float]]:
    """Seconds of each answer, the fleets asked in turns over one connection each."""
    chance = random.Random(7)
    connections = {devices: http.client.HTTPConnection("127.0.0.1", fleet.port) for devices, fleet in fleets.items()}
    tokens = {devices: fleet.admin() for devices, fleet in fleets.items()}
    took: dict[int, list[float]] = {devices: [] for devices in fleets}
    for turn in range(times + 50):
        for devices, connection in connections.items():
            target = path.format(device=device_name(chance.randrange(devices)))
            start = time.perf_counter()
            connection.request("GET", target, headers={"Authorization": f"Bearer {tokens[devices]}"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or len(body) < 100:
                raise RuntimeError(f"GET {target}: {answer.status} {body[:200]!r}")
            if turn >= 50:  # the first ones warm the caches
                took[devices].append(time.perf_counter() - start)
    for connection in connections.values():
        connection.close()
    return took
