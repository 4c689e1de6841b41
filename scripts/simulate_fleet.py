"""A fleet returns after an outage: every device's link comes up within a window, and each has the outage's events.

Real receivers, tokens and requests; the agent's own back-off. Afterwards everything that is stored is read: ends with 1
if anything is missing or stored twice. Without flags: 1,000 devices and one receiver on an SQLite file of its own.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import uvloop

from benchmark.processes import cpu_s, memory_mib, receiver
from benchmark.report import percentile
from fleet import cloud
from fleet.devices import Outbox, Schedule
from fleet.run import Seen, drain
from pisync_common.settings import duration


def main() -> int:
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="pisync-fleet-") as name:
        return simulate(arguments, Path(name))


def simulate(arguments: argparse.Namespace, folder: Path) -> int:
    url = arguments.database_url or f"sqlite:///{folder / 'receiver.db'}"
    flags = ["--log-level", "warning", *arguments.serve.split()]
    events_each = max(1, round(arguments.events_a_day * duration(arguments.outage) / 86_400))
    outbox = Outbox(events_each)
    with ExitStack() as stack, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with receiver(folder, url) as enrolling:  # without the flags, which may make it refuse most
            devices = runner.run(cloud.enroll(enrolling, arguments.devices, progress=lambda n: say(f"enrolled: {n:,}")))
        receivers = [
            stack.enter_context(receiver(folder / str(number), url, arguments=flags))
            for number in range(arguments.receivers)
        ]
        schedule = Schedule(devices, duration(arguments.window), random.Random(arguments.seed), arguments.speed)
        urls = arguments.url or [running.url for running in receivers]
        seen = runner.run(drain(schedule, outbox, urls, progress=show))
        used = f"{sum(memory_mib(running.pid, 'VmHWM') for running in receivers):.0f} MiB at their peaks, "
        used += f"{sum(cpu_s(running.pid) for running in receivers):.0f} s of processor time"
        say("reading what is stored")
        found = cloud.check(cloud.export(receivers[0]), devices, events_each)
    result = summary(arguments, seen, found, events_each) | {"receivers used": used}
    width = max(map(len, result))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in result.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result | {"found": asdict(found)}, indent=2) + "\n")
    if arguments.svg:
        from fleet.picture import draw  # needs pygal, which only this flag does

        draw(seen, f"{arguments.devices:,} devices return within {arguments.window}", arguments.svg)
    return 0 if found.missing == 0 and found.duplicates == 0 else 1


def summary(arguments: argparse.Namespace, seen: Seen, found: cloud.Found, events_each: int) -> dict[str, str]:
    statuses = ", ".join(f"{status or 'none'}: {count:,}" for status, count in sorted(seen.statuses.items()))
    total = arguments.devices * events_each
    p50, p99 = (1000 * percentile(seen.seconds, percent) for percent in (50, 99))
    return {
        "devices": f"{arguments.devices:,}, {events_each} events each",
        "receivers": f"{arguments.receivers}",
        "offered at most": f"{max(seen.offered.values()):,} events in a second",
        "accepted at most": f"{max(seen.accepted.values()):,} events in a second",
        "accepted on average": f"{total / seen.drained_s:,.0f} events/s in {len(seen.seconds):,} requests",
        "answers by status": statuses,
        "latency": f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        "drained in": f"{seen.drained_s:.0f} s",
        "tries late by at most": f"{seen.late:.1f} s, for lack of a connection of this process",
        "stored": f"{found.events:,} of {total:,}",
        "missing": f"{found.missing:,}",
        "duplicates": f"{found.duplicates:,}",
    }


def show(seconds: float, left: int, statuses: Counter[int]) -> None:
    say(f"{seconds:.0f} s: {left:,} devices have something left; answers {dict(sorted(statuses.items()))}")


def say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/simulate-fleet",
        description=__doc__,
        epilog="example: scripts/simulate-fleet --devices 100000 --receivers 2 --database-url postgresql://…/pisync",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--devices", type=int, default=1_000, metavar="N")
    made.add_argument("--outage", default="6h", metavar="TIME", help="how long nothing got through (6h)")
    made.add_argument("--events-a-day", type=int, default=200, metavar="N", help="what a device records (200)")
    made.add_argument("--window", default="60s", metavar="TIME", help="within which all links come up (60s)")
    made.add_argument("--speed", type=float, default=1.0, help="what the agent's waits are divided by (1)")
    made.add_argument("--receivers", type=int, default=1, metavar="N", help="how many to start (1)")
    made.add_argument("--serve", default="", metavar="FLAGS", help="more flags for `serve`, in one argument")
    made.add_argument("--database-url", metavar="URL", help="an empty database (SQLite in a folder of its own)")
    made.add_argument("--url", action="append", metavar="URL", help="send there, a gateway say, not to the receivers")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--json", type=Path, metavar="FILE")
    made.add_argument("--svg", type=Path, metavar="FILE", help="a picture")
    return made


if __name__ == "__main__":
    sys.exit(main())
