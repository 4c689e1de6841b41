"""Prints each speed figure beside its yardstick, both measured in this run, on this machine.

A ratio says how the two compare, whatever the machine; rounds alternate, and medians are shown. Ends with 1 if a
figure misses its target.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark import cloud, counting, device, gateway, postgres, queries, sharing
from benchmark.measure import Bench
from benchmark.report import Result, heading, machine

FIGURES: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "sync-event": cloud.sync_events,
    "batches": cloud.batches,
    "queries": queries.questions,
    "record": device.recording,
    "drain": device.draining,
    "wire": device.wire,
    "status": device.starting,
    "postgres-sync-event": postgres.sync_events,
    "postgres-batches": postgres.batches,
    "postgres-queries": postgres.questions,
    "postgres-two": gateway.two_receivers,
    "postgres-redis": sharing.with_redis,
    "postgres-metrics": counting.counted,
}


def main() -> int:
    arguments = parser().parse_args()
    parent = arguments.folder or Path(tempfile.gettempdir())
    passed = True
    with tempfile.TemporaryDirectory(prefix="pisync-bench-", dir=parent) as name:
        bench = Bench(folder=Path(name), quick=arguments.quick)
        print("\n".join(machine(bench.folder)))
        if arguments.quick:
            print("quick: fewer and shorter rounds, smaller fleets and queues; the figures are rough")
        print(f"\n{heading()}", flush=True)
        for figure in arguments.only or FIGURES:
            if figure.startswith("postgres") and not postgres.available():
                print(f"{figure}: not measured; no PostgreSQL answers, name one with PISYNC_TEST_POSTGRES")
                continue
            if figure == "postgres-two" and not gateway.available():
                print(f"{figure}: not measured; HAProxy is not installed")
                continue
            if figure == "postgres-redis" and not sharing.available():
                print(f"{figure}: not measured; no Redis answers, name one with PISYNC_TEST_REDIS")
                continue
            for result in FIGURES[figure](bench):
                print(result.line(), flush=True)
                passed = passed and result.passed
    return 0 if passed else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog="example: scripts/bench --quick --only sync-event --only batches",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="a rough picture in about a minute")
    made.add_argument("--only", action="append", choices=list(FIGURES), metavar="NAME", help=", ".join(FIGURES))
    made.add_argument("--folder", type=Path, help="where to write: a folder on the disk to be measured")
    return made


if __name__ == "__main__":
    sys.exit(main())
