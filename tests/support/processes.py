"""PiSync's programs as their users run them: each a process with a home, and a log over all of its starts.

with ReceiverProcess(tmp_path / "receiver") as receiver, AgentProcess(tmp_path / "device") as agent:
    agent.enroll(receiver.url, receiver.enrollment_code("--site", "Nakuru"), device_id="pibook-1")
    agent.command("record", "video.watched")
    agent.start()  # the service
    receiver.kill()
    receiver.start()  # the same database, the same port
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from pisync_common.unix_socket import LineClient

DEADLINE_SECONDS: Final = 60.0
_LISTENING: Final = "listening on "


class Program:
    """Commands of a program, and a background process that runs until it is stopped, killed, or its block ends."""

    program: tuple[str, ...]

    def __init__(self, log_file: Path, environ: Mapping[str, str]) -> None:
        self.log_file = log_file
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def environ(self) -> dict[str, str]:
        """Return this machine's environment with these settings of PiSync and no others."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PISYNC_")}
        return clean | dict(self._environ)

    # Commands

    def run(
        self, *arguments: str, stdin: str = "", timeout: float = DEADLINE_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; its exit code is the caller's to check."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environ(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def command(self, *arguments: str, stdin: str = "", code: int | Sequence[int] = 0) -> str:
        """Return what a command prints. Raise AssertionError with both outputs if it ends with another code."""
        done = self.run(*arguments, stdin=stdin)
        expected = (code,) if isinstance(code, int) else code
        assert done.returncode in expected, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str, code: int | Sequence[int] = 0) -> Any:
        """Return what a command answers with --json."""
        return json.loads(self.command(*arguments, "--json", code=code))

    def popen(
        self, *arguments: str, stdout: IO[bytes] | int = subprocess.PIPE, stderr: IO[bytes] | int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        """Start a command and return at once."""
        return subprocess.Popen(
            [*self.program, *arguments], env=self.environ(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )

    # The process in the background

    def start(self) -> Self:
        self._launch()
        return self

    def stop(self) -> int:
        """Send SIGTERM and wait; return the exit code."""
        return self.end(signal.SIGTERM)

    def kill(self) -> int:
        """Send SIGKILL and wait: nothing is finished, nothing is closed."""
        return self.end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop gracefully and start again."""
        self.stop()
        return self.start()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait; return the exit code, 0 if nothing runs."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(DEADLINE_SECONDS)
        self._process = None
        return code

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the process is not running"
        return self._process.pid

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Return `VmRSS`, its memory now, or `VmHWM`, its peak."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
        return int(kib) / 1024

    def log(self) -> str:
        """Return everything it wrote to its log, over all starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _launch(self, *arguments: str, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        with self.log_file.open("ab") as log:
            self._process = self.popen(*arguments, stdout=stdout, stderr=log)
        return self._process

    def _wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Raise RuntimeError with the log if the process ends before it is ready."""
        wait_until(lambda: ready() or self.ended, what)
        if not ready():
            raise RuntimeError(f"it ended with {self.kill()}:\n{self.log()}")


class AgentProcess(Program):
    """An agent with a home of its own. `arguments` go to `run`, the service; a `with` block does not start it."""

    program: tuple[str, ...] = (sys.executable, "-m", "pisync_agent")

    def __init__(self, home: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        own = {"PISYNC_AGENT_HOME": str(home), "PISYNC_AGENT_SYNC_DELAY": "3s"}  # tests need not wait as devices do
        super().__init__(home.with_name(home.name + ".log"), own | dict(environ or {}))
        self.home = home
        self.socket = home / "agent.sock"
        self._arguments = arguments

    def start(self, *arguments: str) -> Self:
        """Start the service and wait until it listens."""
        self.socket.unlink(missing_ok=True)  # left by a killed process
        self._launch("run", *self._arguments, *arguments)
        self._wait_until(self._listens, "the service listens")
        return self

    def status(self) -> dict[str, Any]:
        """Return `status --json`, whatever its exit code says."""
        found: dict[str, Any] = self.json("status", code=(0, 1, 3, 4, 5))
        return found

    def record(self, type: str = "note.taken", *arguments: str) -> int:
        """Record an event; return its seq."""
        return int(self.command("record", type, *arguments))

    def enroll(self, url: str, code: str, *arguments: str, device_id: str | None = None) -> None:
        wanted = ("--device-id", device_id) if device_id else ()
        self.command("enroll", url, "--code", code, *wanted, *arguments)

    def __enter__(self) -> Self:
        return self

    def _listens(self) -> bool:
        try:
            LineClient(self.socket, timeout=DEADLINE_SECONDS).close()
        except OSError:  # not there yet, or bound and not listening yet
            return False
        return True


class ReceiverProcess(Program):
    """A receiver. `home` holds its database and its log; every start after the first takes the same port.

    `arguments` go to `serve`. With `database_url` it stores there, and not in its home.
    """

    program: tuple[str, ...] = (sys.executable, "-m", "pisync_receiver")

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        database_url: str | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.database = home / "receiver.db"
        self.database_url = database_url or f"sqlite:///{self.database}"
        own = {"PISYNC_RECEIVER_DATABASE_URL": self.database_url, "PISYNC_RECEIVER_CACHE_TTL": "0s"}
        super().__init__(home / "receiver.log", own | dict(environ or {}))
        self.url = ""
        self._arguments = arguments
        self._listening = threading.Event()
        self._reader: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def start(self) -> Self:
        """Start it and wait until it accepts connections."""
        port = str(self.port) if self.url else "0"
        self._listening.clear()
        process = self._launch("serve", "--port", port, *self._arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()
        self._wait_until(self._listening.is_set, "the receiver listens")
        return self

    def end(self, number: signal.Signals) -> int:
        code = super().end(number)
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
        return code

    def make_database(self) -> Self:
        """Start and stop, which leaves an empty database."""
        self.start()
        self.stop()
        return self

    def admin_token(self, scope: str = "admin") -> str:
        return self.command("token", "create", "--scope", scope).strip()

    def enrollment_code(self, *arguments: str) -> str:
        return self.command("enrollment", "create", *arguments).strip()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in map(bytes.decode, lines):
                if line.startswith(_LISTENING):
                    self.url = line.removeprefix(_LISTENING).strip()
                    self._listening.set()


class WorkerProcess(Program):
    """A worker. `settings` become variables: `amqp_url="…"` is `PISYNC_RECEIVER_AMQP_URL`."""

    program: tuple[str, ...] = (sys.executable, "-m", "pisync_receiver", "worker")

    def __init__(self, log_file: Path, **settings: str) -> None:
        super().__init__(log_file, {f"PISYNC_RECEIVER_{name.upper()}": value for name, value in settings.items()})


def run_worker(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a worker to its end."""
    return WorkerProcess(Path(os.devnull), **settings).run(*arguments)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for `condition`; raise TimeoutError naming `what` after a deadline far beyond what it needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.01)


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether a program of this machine accepts connections at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return False
    return True
