"""The real programs, each as a process of its own, in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmark.noop import UNMETERED

BIN = Path(sys.executable).parent
PATIENCE_S = 60.0


_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: int) -> float:
    """The most memory it had at once; 0 for one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


class Receiver:
    """`pisync-receiver serve` on a free port, with the no-op route added; stopped by `stop`.

    It stores in its folder, or in `database_url`; then it may share `redis_url` with others. Without `metered` it
    counts nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        database_url: str | None = None,
        redis_url: str = "",
        metered: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "receiver.db"
        self._environ = os.environ | {
            "PISYNC_RECEIVER_DATABASE_URL": database_url or f"sqlite:///{self.database}",
            "PISYNC_RECEIVER_REDIS_URL": redis_url,
        }
        if not metered:
            self._environ[UNMETERED] = "1"
        with (folder / "receiver.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("noop.py")), "serve", "--port", str(port)],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the receiver did not start:\n{(folder / 'receiver.log').read_text()}")
        self.url = line.removeprefix("listening on ").strip()
        self.port = int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, *arguments: str) -> str:
        """What `pisync-receiver ARGUMENTS` prints."""
        return run("pisync-receiver", *arguments, environ=self._environ)

    def enroll(self, devices: list[str]) -> dict[str, str]:
        """Device id -> token."""
        code = self.command("enrollment", "create", "--uses", str(len(devices)))
        return {device: self._ask("/api/enroll", {"code": code, "device_id": device})["token"] for device in devices}

    def admin(self) -> str:
        return self.command("token", "create", "--role", "admin")

    def get(self, path: str, token: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def stop(self) -> None:
        stop(self._process)


@contextmanager
def receiver(
    folder: Path, *, database_url: str | None = None, redis_url: str = "", metered: bool = True
) -> Iterator[Receiver]:
    running = Receiver(folder, database_url=database_url, redis_url=redis_url, metered=metered)
    try:
        yield running
    finally:
        running.stop()


class Agent:
    """A device's home and, between `start` and `stop`, its service."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._environ = os.environ | {"PISYNC_AGENT_HOME": str(home)}
        self._service: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """What `pisync ARGUMENTS` prints."""
        return run("pisync", *arguments, environ=self._environ, codes=codes)

    def enroll(self, url: str, receiver: Receiver, device_id: str) -> None:
        code = receiver.command("enrollment", "create")
        self.command("enroll", url, "--code", code, "--device-id", device_id)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.command("status", "--json", codes=(0, 1, 3, 4)))
        return answer

    def start(self) -> None:
        """Start the service and wait until it answers on its socket."""
        with (self.home / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                [str(BIN / "pisync"), "run"], env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until((self.home / "agent.sock").exists, "the agent's socket")
        except TimeoutError as error:
            raise RuntimeError(f"the service did not start:\n{(self.home / 'service.log').read_text()}") from error

    def memory_mib(self, field: str) -> float:
        """`VmRSS` (resident now) or `VmHWM` (the most it ever was) of the service."""
        assert self._service is not None
        lines = Path(f"/proc/{self._service.pid}/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
        return int(kib) / 1024

    def stop(self) -> None:
        if self._service is not None:
            stop(self._service)
            self._service = None


@contextmanager
def agent(home: Path) -> Iterator[Agent]:
    device = Agent(home)
    try:
        yield device
    finally:
        device.stop()


def run(program: str, *arguments: str, environ: dict[str, str], codes: tuple[int, ...] = (0,)) -> str:
    """The standard output of a program of this environment; raises RuntimeError if it fails."""
    command = [str(BIN / program), *arguments]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode not in codes:
        raise RuntimeError(f"{' '.join([program, *arguments[:2]])} ended with {result.returncode}: {result.stderr}")
    return result.stdout.strip()


def stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def until(condition: Any, what: str, *, seconds: float = PATIENCE_S) -> None:
    """Wait for `condition()`; raise TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)
