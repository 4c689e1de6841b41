"""Weeks of school days: devices offline from Friday to Thursday, wrong clocks, power cuts, faults drawn at random.

Every Thursday everything that was recorded has to arrive, within a minute of a good link. In the end each acknowledged
event is stored once, and memory and open files have not grown. The same seed draws the same days. Ends with 1 where any
of that fails, and keeps its folder.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.support.school_term import term


def main() -> int:
    arguments = parser().parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pisync-soak-", dir=arguments.folder))
    try:
        with term(folder, seed=arguments.seed, devices=arguments.devices) as played:
            week = 0
            while week < arguments.weeks if arguments.weeks else time.monotonic() - began < arguments.minutes * 60:
                played.play_week()
                week += 1
                print(f"week {week:3}: {played.recorded:,} events; {played.resources.line()}", flush=True)
            verdict = played.end(arguments.seed, began)
    except BaseException:
        print(f"the soak of seed {arguments.seed} broke off; its files are in {folder}", file=sys.stderr)
        raise
    print(verdict.table())
    leaks = played.resources.leaks
    print(f"{week} weeks; what grew: {', '.join(leaks) or 'nothing'}")
    if not verdict.good or leaks:
        print(f"the soak failed; its files are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="begin weeks for this long (default: 60)")
    parser.add_argument("--weeks", type=int, help="play this many weeks instead")
    parser.add_argument("--seed", type=int, default=1, help="of the days and their faults (default: 1)")
    parser.add_argument("--devices", type=int, default=3, help="devices of the school (default: 3)")
    parser.add_argument("--folder", metavar="DIR", help="where its folder is made (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
