"""What Redis costs a receiver that has nobody to share with, which is the dearest it can be."""

import os
from collections.abc import Iterator
from typing import Final

import redis

from benchmark import cloud, gateway, postgres
from benchmark.measure import Bench
from benchmark.processes import receiver
from benchmark.report import Result, at_least

SERVER: Final = os.environ.get("PISYNC_TEST_REDIS", "redis://127.0.0.1:6379/0")


def available() -> bool:
    try:
        with redis.Redis.from_url(SERVER, socket_connect_timeout=2, socket_timeout=2) as client:
            return bool(client.ping()) and postgres.available()
    except redis.RedisError:
        return False


def with_redis(bench: Bench) -> Iterator[Result]:
    """`POST /api/sync-event`, 100 connections, beside the same without Redis."""
    folder = bench.place("redis")
    with (
        postgres.database() as url,
        receiver(folder / "without", database_url=url) as without,
        receiver(folder / "with", database_url=url, redis_url=SERVER) as sharing,
    ):
        tokens = without.enroll([f"pibook-{number:04}" for number in range(cloud.CONNECTIONS)])
        ways = {way: (one.port, [one.pid]) for way, one in (("without", without), ("with", sharing))}
        cost = gateway.costs(bench, folder, tokens, ways)
    yield at_least(
        "PostgreSQL: sync-event with Redis | without", cost["with"].shown(), cost["without"].shown(),
        cost["with"].rate / cost["without"].rate, 0.80,
    )  # fmt: skip
