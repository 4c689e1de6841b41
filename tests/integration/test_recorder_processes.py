"""Recording by real processes: many at once, killed at any moment, beside a service that dies around its commit.

What a process printed, `record` had returned: it must be there, once, under that number.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.outbox.outbox import open_outbox

DEADLINE_S = 60

WORKER = """
import sys
from pisync_agent import Recorder
home, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Recorder(home) as recorder:
    for number in range(count):
        seq = recorder.record("note.taken", data={"from": name, "n": number})
        print(seq, number, flush=True)
"""


def worker(home: Path, name: str, count: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WORKER, str(home), name, str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def printed(process: "subprocess.Popen[str]") -> list[tuple[int, int]]:
    """(seq, n) of each record that returned. Waits for the process's end."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return [(int(seq), int(number)) for seq, number in lines]


@contextmanager
def service(home: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A service that holds the lock and serves the socket."""
    arguments = [sys.executable, "-m", "tests.integration.tiny_service", str(home), *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stored(home: Path) -> dict[int, dict[str, Any]]:
    """Every event by its seq; checks that there are no gaps, that nothing broke, and that none is there twice."""
    outbox = open_outbox(home)
    rows = outbox.read(0, max_events=10**6, max_bytes=10**10)
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    assert outbox.state().salvaged == ()
    outbox.close()
    found = {seq: json.loads(body)["data"] for seq, body in rows}
    assert len({(data["from"], data["n"]) for data in found.values()}) == len(found)
    return found


def check(home: Path, results: dict[str, list[tuple[int, int]]]) -> int:
    """Every printed seq holds what was recorded; the number of events stored."""
    found = stored(home)
    for name, lines in results.items():
        for seq, number in lines:
            assert found[seq] == {"from": name, "n": number}
    return len(found)


def names(count: int) -> Sequence[str]:
    return [f"p{number}" for number in range(count)]


@pytest.mark.parametrize("with_service", [False, True])
def test_many_processes_at_once(tmp_path: Path, with_service: bool) -> None:
    def run() -> dict[str, list[tuple[int, int]]]:
        processes = {name: worker(tmp_path, name, 30) for name in names(12)}
        return {name: printed(process) for name, process in processes.items()}

    if with_service:
        with service(tmp_path):
            results = run()
    else:
        results = run()
    assert all(len(lines) == 30 for lines in results.values())
    assert check(tmp_path, results) == 12 * 30


@pytest.mark.parametrize("with_service", [False, True])
def test_events_returned_before_a_kill_are_stored(tmp_path: Path, with_service: bool) -> None:
    """SIGKILL of the recording process, 12 rounds each way; the outbox goes on growing."""
    rng = random.Random(7)
    results: dict[str, list[tuple[int, int]]] = {}
    for round_ in range(12):
        process = worker(tmp_path, f"r{round_}", 100_000)
        if with_service:
            with service(tmp_path):
                results[f"r{round_}"] = kill_after(process, rng.randrange(1, 120))
        else:
            results[f"r{round_}"] = kill_after(process, rng.randrange(1, 120))
        if round_ % 4 == 3:
            check(tmp_path, results)
    assert check(tmp_path, results) >= sum(len(lines) for lines in results.values())


def kill_after(process: "subprocess.Popen[str]", lines: int) -> list[tuple[int, int]]:
    """What it had printed, some of it after the `lines`-th line."""
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait(DEADLINE_S)
    process.stdout.close()
    whole = [line.split() for line in [*first, *rest.splitlines(keepends=True)] if line.endswith("\n")]
    return [(int(seq), int(number)) for seq, number in whole]


@pytest.mark.parametrize("moment", ["--die-after-commit", "--die-before-commit"])
def test_a_service_killed_around_its_commit_loses_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    """Again and again, while processes record; between two services they write directly."""
    rng = random.Random(11)
    processes = {name: worker(tmp_path, name, 120) for name in names(6)}
    deaths = 0
    while any(process.poll() is None for process in processes.values()):
        with service(tmp_path, moment, str(rng.randrange(1, 60))) as running:
            deadline = time.monotonic() + DEADLINE_S
            while running.poll() is None and any(process.poll() is None for process in processes.values()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            deaths += running.poll() == -signal.SIGKILL
    results = {name: printed(process) for name, process in processes.items()}
    assert all(len(lines) == 120 for lines in results.values())
    assert check(tmp_path, results) == 6 * 120
    assert deaths >= 1
