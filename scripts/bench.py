"""Print each speed figure beside its yardstick, both measured in this run, on this machine.

A ratio says how the two compare, whatever the machine; rounds alternate, and medians are shown. Ends with 1 if a
figure misses its target.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmark import device, intake, queries, window
from benchmark.report import Bench, Result, heading, machine

FIGURES: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "post": partial(intake.posts, engine="sqlite"),
    "post-postgres": partial(intake.posts, engine="postgres"),
    "batches": partial(intake.batches, engine="sqlite"),
    "batches-postgres": partial(intake.batches, engine="postgres"),
    "queries": partial(queries.questions, engine="sqlite"),
    "queries-postgres": partial(queries.questions, engine="postgres"),
    "cache": queries.cache,
    "pages": partial(window.pages, engine="sqlite"),
    "pages-postgres": partial(window.pages, engine="postgres"),
    "windows": window.open_windows,
    "record": device.recording,
    "drain": device.draining,
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
            for result in FIGURES[figure](bench):
                print(result.line(), flush=True)
                passed = passed and result.passed
    return 0 if passed else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description=f"{__doc__}\nPostgreSQL and Redis are those of PISYNC_TEST_POSTGRES and PISYNC_TEST_REDIS.",
        epilog="example: scripts/bench --quick --only post --only batches",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="a rough picture in a few minutes")
    made.add_argument("--only", action="append", choices=list(FIGURES), metavar="NAME", help=", ".join(FIGURES))
    made.add_argument("--folder", type=Path, help="where to write: a folder on the disk to be measured")
    return made


if __name__ == "__main__":
    sys.exit(main())
