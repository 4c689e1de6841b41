"""The fault campaign for hours: rounds of breaking links, killing processes and putting old copies back.

Each round has a receiver and devices of its own, on SQLite, or on PostgreSQL with --postgres. Afterwards every event
that a device acknowledged has to be stored, once, and no device may be stuck. Ends with 1 at the first round that
fails, and keeps its folder. The second round has the next seed, and so on.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    arguments = parser().parse_args()
    if arguments.postgres:
        os.environ["PISYNC_TEST_POSTGRES"] = arguments.postgres
    from tests.support.campaign import campaign  # reads the variable

    ends = time.monotonic() + arguments.hours * 3600
    seed, events = arguments.seed, 0
    while True:
        folder = Path(tempfile.mkdtemp(prefix="pisync-campaign-", dir=arguments.folder))
        postgres = arguments.postgres is not None
        try:
            verdict = campaign(folder, seed=seed, events=arguments.events, devices=arguments.devices, postgres=postgres)
        except BaseException:
            print(f"round of seed {seed} broke off; its files are in {folder}", file=sys.stderr)
            raise
        print(verdict.table(), flush=True)
        if not verdict.good:
            print(f"this round failed; its files are in {folder}", file=sys.stderr)
            return 1
        shutil.rmtree(folder)
        seed, events = seed + 1, events + verdict.acknowledged
        print(
            f"so far: {seed - arguments.seed} rounds, {events:,} acknowledged events, missing 0, doubled 0", flush=True
        )
        if time.monotonic() > ends:
            return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.0, help="play rounds for so long (default: one round)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (default: 1)")
    parser.add_argument("--events", type=int, default=20_000, help="acknowledged events of a round (default: 20,000)")
    parser.add_argument("--devices", type=int, default=3, help="devices of a round (default: 3)")
    parser.add_argument("--postgres", metavar="URL", help="a role there may create databases; pg_dump is needed, too")
    parser.add_argument(
        "--folder", metavar="DIR", help="where the rounds' folders are made (default: the temporary folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
