"""The cloud's side: tokens for the fleet, receivers to run, and what they stored."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmark.processes import cpu_s, peak_mib, stop
from fleet.devices import Device
from pisync_common.times import now_ms
from pisync_receiver import databases
from pisync_receiver.auth import new_token, token_hash
from pisync_receiver.store import EventFilter, TokenCreate
from pisync_receiver.store.address import Address

GROUP: Final = 1_000


def make_devices(place: Address, count: int, *, progress: Callable[[int], None]) -> list[Device]:
    """Devices with tokens that the database knows. Nothing serves it meanwhile."""
    devices = [Device(number=number, token=new_token("device")) for number in range(count)]
    created_ms = now_ms()
    with databases.writing(place, "simulate-fleet"), closing(databases.open_store(place, create=True)) as store:
        for first in range(0, count, GROUP):
            group = [
                TokenCreate(role="device", token_hash=token_hash(one.token), created_ms=created_ms, device_id=one.name)
                for one in devices[first : first + GROUP]
            ]
            for outcome in store.write(group):
                if isinstance(outcome, Exception):
                    raise outcome
            progress(first + len(group))
    return devices


@dataclass(frozen=True, kw_only=True)
class Used:
    """What the receivers took, all together."""

    peak_mib: float
    cpu_s: float


class Receivers:
    """Some `pisync-receiver serve` on one database."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"], urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self._processes = list(processes)

    def used(self) -> Used:
        pids = [pid for process in self._processes for pid in _family(process.pid)]
        return Used(peak_mib=sum(map(peak_mib, pids)), cpu_s=sum(map(cpu_s, pids)))


@contextmanager
def receivers(url: str, folder: Path, *, count: int, workers: int, arguments: Sequence[str]) -> Iterator[Receivers]:
    """Start so many, each on a free port; stopped at the end."""
    command = [sys.executable, "-m", "pisync_receiver", "serve", "--port", "0", "--workers", str(workers), *arguments]
    command += ["--log-level", "warning"]
    with ExitStack() as stack:
        processes, urls = [], []
        for number in range(count):
            log = stack.enter_context((folder / f"receiver-{number}.log").open("w"))
            environ = os.environ | {"PISYNC_RECEIVER_DATABASE_URL": url}
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(stop, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise RuntimeError(f"a receiver did not start:\n{(folder / f'receiver-{number}.log').read_text()}")
            processes.append(process)
            urls.append(line.removeprefix("listening on ").strip())
        yield Receivers(processes, urls)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the database has of the fleet."""

    events: int
    missing: int
    duplicates: int


def check(place: Address, devices: Sequence[Device], events_each: int) -> Found:
    """Walk over everything that is stored: each device's events have to be 1, 2, … `events_each`, once each."""
    seen = {device.name: bytearray(events_each + 1) for device in devices}
    count = doubled = 0
    with databases.open_reader(place) as reader:
        for row in reader.iterate_events(EventFilter()):
            if (mine := seen.get(row.device_id)) is not None:
                count += 1
                doubled += mine[row.seq]
                mine[row.seq] = 1
    return Found(events=count, missing=sum(mine.count(0, 1) for mine in seen.values()), duplicates=doubled)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]
