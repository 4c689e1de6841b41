"""Two receivers behind HAProxy beside one alone, and beside one behind it, on one PostgreSQL."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmark import cloud, load, postgres
from benchmark.measure import Bench, median
from benchmark.processes import cpu_s, receiver, stop, until
from benchmark.report import Result, at_least, progress

CONFIG: Final = """
global
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 45s
    option forwardfor
frontend devices
    bind 127.0.0.1:{port}
    default_backend receivers
backend receivers
    balance leastconn
    option httpchk GET /readyz
    default-server inter 1s fall 1 rise 2 check
"""
"""What receiver/deploy/haproxy.cfg does to a request, without TLS and limits, which one alone has not either."""


def available() -> bool:
    return _haproxy() is not None and postgres.available()


def two_receivers(bench: Bench) -> Iterator[Result]:
    """`POST /api/sync-event`, 100 connections: requests a second, and what processor time each takes."""
    folder = bench.place("gateway")
    with (
        postgres.database() as url,
        receiver(folder / "1", database_url=url) as first,
        receiver(folder / "2", database_url=url) as second,
        _gateway(folder, "one", [first.port]) as before_one,
        _gateway(folder, "two", [first.port, second.port]) as before_two,
    ):
        tokens = first.enroll([f"pibook-{number:04}" for number in range(cloud.CONNECTIONS)])
        ways = {
            "one": (first.port, [first.pid]),
            "one behind": (before_one[0], [first.pid, before_one[1]]),
            "two": (before_two[0], [first.pid, second.pid, before_two[1]]),
        }
        cost = costs(bench, folder, tokens, ways)
    yield at_least(
        "PostgreSQL: two receivers behind HAProxy | one alone", cost["two"].shown(), cost["one"].shown(),
        cost["two"].rate / cost["one"].rate, 1.0,
    )  # fmt: skip
    yield at_least(
        "  the same | one behind it", cost["two"].shown(), cost["one behind"].shown(),
        cost["two"].rate / cost["one behind"].rate, 1.0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Requests a second, and the processor time of each in microseconds; medians."""

    rate: float
    cpu_us: float

    def shown(self) -> str:
        return f"{self.rate:,.0f}/s, {self.cpu_us:.0f} us CPU each"


def costs(
    bench: Bench, folder: Path, tokens: dict[str, str], ways: Mapping[str, tuple[int, Sequence[int]]]
) -> dict[str, Cost]:
    """Sync events sent each way in turns: way -> (port, the processes whose time counts)."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    used: dict[str, list[float]] = {way: [] for way in ways}
    seconds = bench.pick(5, 2)
    for number in range(bench.pick(7, 3)):
        for place, (way, (port, pids)) in enumerate(ways.items()):
            progress(f"sync-event on PostgreSQL: round {number + 1}, {way}")
            begin_s = (len(ways) * number + place) * seconds * cloud.MOST_A_SECOND
            what = cloud.reports(tokens, seconds * cloud.MOST_A_SECOND, first_s=begin_s, failing=False)
            before = sum(map(cpu_s, pids))
            one = load.posts(
                folder, port=port, target=cloud.SYNC_EVENT, what=what, connections=cloud.CONNECTIONS, seconds=seconds
            )
            if one.failed:
                raise RuntimeError(f"{one.failed} of {one.requests} requests failed")
            rates[way].append(one.rate)
            used[way].append((sum(map(cpu_s, pids)) - before) / one.requests * 1e6)
    return {way: Cost(rate=median(rates[way]), cpu_us=median(used[way])) for way in ways}


@contextmanager
def _gateway(folder: Path, name: str, receivers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """HAProxy before receivers on these ports: its own port, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    config = folder / f"haproxy-{name}.cfg"
    servers = (f"    server {number} 127.0.0.1:{receiver}\n" for number, receiver in enumerate(receivers, 1))
    config.write_text(CONFIG.format(port=port) + "".join(servers))
    process = subprocess.Popen([_haproxy() or "haproxy", "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port), "HAProxy")
        yield port, process.pid
    finally:
        stop(process)


def _haproxy() -> str | None:
    return shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
