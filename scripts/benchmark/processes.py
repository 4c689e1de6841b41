"""The real programs, each as a process of its own, in a folder of its own."""

import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

APPS: Final = Path(__file__).with_name("apps.py")
DEADLINE_S: Final = 60.0
POSTGRES: Final = os.environ.get("PISYNC_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A role on it may create databases."""
REDIS: Final = os.environ.get("PISYNC_TEST_REDIS", "redis://127.0.0.1:6379/0")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_numbers = itertools.count(1)


@contextmanager
def database(engine: str, folder: Path) -> Iterator[str]:
    """Name an empty database of an engine; PostgreSQL's is dropped at the end."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'receiver.db'}"
        return
    name = f"pisync_bench_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(POSTGRES, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield f"{POSTGRES.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(POSTGRES, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def start(command: list[str], environ: dict[str, str], log: Path) -> tuple["subprocess.Popen[str]", str]:
    """Start a server that prints `listening on URL`; return its process and URL."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        raise RuntimeError(f"{command} did not start:\n{log.read_text()}")
    return process, line.removeprefix("listening on ").strip()


class Receiver:
    """`pisync-receiver serve` on a free port, with the no-op route; stopped by `stop`."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        *,
        port: int = 0,
        redis_url: str = "",
        cache: bool = True,
        arguments: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A single device sends more here than any may otherwise.
        limits = {"PISYNC_RECEIVER_DEVICE_RATE": "0"}
        self._environ = os.environ | limits | {"PISYNC_RECEIVER_DATABASE_URL": database_url}
        if redis_url:
            self._environ["PISYNC_RECEIVER_REDIS_URL"] = redis_url
        if not cache:
            self._environ["PISYNC_RECEIVER_CACHE_TTL"] = "0s"
        command = [sys.executable, str(APPS), "serve", "--port", str(port), *arguments]
        self._process, self.url = start(command, self._environ, folder / "receiver.log")
        self.port = int(self.url.rpartition(":")[2])
        self.pid = self._process.pid

    def command(self, *arguments: str) -> str:
        """Return what `pisync-receiver ARGUMENTS` prints. Raises RuntimeError if it fails."""
        command = [sys.executable, "-m", "pisync_receiver", *arguments]
        done = subprocess.run(
            command, env=self._environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"pisync-receiver {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    def enroll(self, devices: list[str]) -> dict[str, str]:
        """Return a token for each device."""
        code = self.command("enrollment", "create", "--uses", str(len(devices)))
        return {device: self._enrolled(code, device) for device in devices}

    def viewer(self) -> str:
        return self.command("token", "create", "--role", "viewer")

    def _enrolled(self, code: str, device_id: str) -> str:
        body = json.dumps({"code": code, "device_id": device_id}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/enroll", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return str(json.load(answer)["token"])

    def stop(self) -> None:
        stop(self._process)


@contextmanager
def receiver(folder: Path, database_url: str, **options: Any) -> Iterator[Receiver]:
    running = Receiver(folder, database_url, **options)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def bare_server(folder: Path) -> Iterator[int]:
    """Serve `apps.bare`; yield its port."""
    process, url = start([sys.executable, str(APPS), "bare"], dict(os.environ), folder / "bare.log")
    try:
        yield int(url.rpartition(":")[2])
    finally:
        stop(process)


def stop(process: "subprocess.Popen[Any]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def cpu_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int, field: str) -> float:
    """Return a figure of /proc/PID/status; 0 for a process that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
