"""What /metrics costs a receiver while it counts."""

from collections.abc import Iterator

from benchmark import cloud, gateway, postgres
from benchmark.measure import Bench
from benchmark.processes import receiver
from benchmark.report import Result, at_least


def counted(bench: Bench) -> Iterator[Result]:
    """`POST /api/sync-event`, 100 connections, beside the same receiver that counts nothing."""
    folder = bench.place("metrics")
    with (
        postgres.database() as url,
        receiver(folder / "without", database_url=url, metered=False) as without,
        receiver(folder / "with", database_url=url) as counting,
    ):
        tokens = without.enroll([f"pibook-{number:04}" for number in range(cloud.CONNECTIONS)])
        ways = {way: (one.port, [one.pid]) for way, one in (("without", without), ("with", counting))}
        cost = gateway.costs(bench, folder, tokens, ways)
    yield at_least(
        "PostgreSQL: sync-event with metrics | without", cost["with"].shown(), cost["without"].shown(),
        cost["with"].rate / cost["without"].rate, 0.95,
    )  # fmt: skip
