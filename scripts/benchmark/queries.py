"""What admins and dashboards ask, of a small fleet and of a large fleet, and what the cache saves."""

import http.client
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmark import load
from benchmark.processes import REDIS, Receiver, database, receiver
from benchmark.report import Bench, Result, at_least, at_most, percentile, progress
from benchmark.schools import EACH, device_name, fill
from pisync_common.times import now_ms

PAGE: Final = 20
"""Small enough that both fleets fill it, so that the answers have the same size."""
VIEWERS: Final = 50
FAILURES: Final = f"/api/sync-event/devices/repeated-failures?limit={PAGE}"
HISTORY: Final = "/api/sync-event/device/{device}/sync-history"
DEVICES: Final = "/api/devices?limit=100"


def questions(bench: Bench, engine: str) -> Iterator[Result]:
    """p99 of `repeated-failures` and `sync-history`: 10,000,000 sync events beside 100,000."""
    small, large = bench.pick(1_000, 100), bench.pick(100_000, 10_000)
    folder = bench.place(f"queries-{engine}")
    with ExitStack() as stack:
        fleets = {}
        for devices in (small, large):
            place = folder / str(devices)
            url = stack.enter_context(database(engine, place))
            token = prepare(place, url)
            progress(f"queries, {engine}: storing {devices * EACH:,} sync events")
            fill(url, devices, now_ms=now_ms())
            fleets[devices] = (stack.enter_context(receiver(place, url, cache=False)), token)
        for name, path in (("repeated-failures", FAILURES), ("sync-history", HISTORY)):
            progress(f"queries, {engine}: {name}")
            took = ask_in_turn(fleets, path, times=bench.pick(2_000, 300))
            p99 = {devices: percentile(seconds, 99) * 1000 for devices, seconds in took.items()}
            yield at_most(
                f"{engine}: {name} p99, {large * EACH:,} rows | {small * EACH:,}", f"{p99[large]:.2f} ms",
                f"{p99[small]:.2f} ms", p99[large] / p99[small], 1.5,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Answers a second, and what a thousand of them cost the database."""

    rate: float
    transactions: float

    def shown(self) -> str:
        return f"{self.rate:,.0f}/s, {self.transactions:,.0f} queries"


def cache(bench: Bench) -> Iterator[Result]:
    """50 viewers ask two receivers about a large fleet, with a cache and without; queries are per 1,000 answers."""
    devices, folder = bench.pick(100_000, 10_000), bench.place("cache")
    with database("postgres", folder) as url:
        token = prepare(folder, url)
        fill(url, devices, now_ms=now_ms())
        for path, name in ((FAILURES, "repeated failures"), (DEVICES, "devices")):
            ways = {"none": ("", False), "process": ("", True), "Redis": (REDIS, True)}
            asked = {
                way: _asked(bench, folder, url, path, token, redis_url=redis_url, cache=kept)
                for way, (redis_url, kept) in ways.items()
            }
            for way in ("process", "Redis"):
                yield at_least(
                    f"{name} of {devices:,} devices, cache: {way} | none", asked[way].shown(), asked["none"].shown(),
                    asked[way].rate / asked["none"].rate, 1.0,
                )  # fmt: skip


def _asked(bench: Bench, folder: Path, url: str, path: str, token: str, **options: Any) -> Asked:
    progress(f"cache: {path}, {options}")
    before = _transactions(url)
    with receiver(folder / "1", url, **options) as first, receiver(folder / "2", url, **options) as second:
        requests = [load.request("GET", path, token)] * VIEWERS
        seconds = bench.pick(10, 3)
        seen = load.repeat(folder, [first.port, second.port], requests, connections=VIEWERS, seconds=seconds)
    # PostgreSQL has counted everything when the connections have ended.
    return Asked(rate=seen.rate, transactions=(_transactions(url) - before) / seen.requests * 1_000)


def _transactions(url: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)


def prepare(folder: Path, url: str) -> str:
    """Make the schema and a viewer's token."""
    with receiver(folder, url) as cloud:
        return cloud.viewer()


def ask_in_turn(fleets: dict[int, tuple[Receiver, str]], path: str, *, times: int) -> dict[int, list[float]]:
    """Return the seconds of each answer; the fleets are asked alternately, over one connection each."""
    chance = random.Random(7)
    connections = {devices: http.client.HTTPConnection("127.0.0.1", one.port) for devices, (one, _) in fleets.items()}
    took: dict[int, list[float]] = {devices: [] for devices in fleets}
    for turn in range(times + 50):
        for devices, connection in connections.items():
            target = path.format(device=device_name(chance.randrange(devices)))
            start = time.perf_counter()
            connection.request("GET", target, headers={"Authorization": f"Bearer {fleets[devices][1]}"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or len(body) < 100:
                raise RuntimeError(f"GET {target}: {answer.status} {body[:200]!r}")
            if turn >= 50:  # the first requests warm the caches
                took[devices].append(time.perf_counter() - start)
    for connection in connections.values():
        connection.close()
    return took
