"""A receiver as its users run it: a process of its own, in a folder of its own, on a port of its own.

with ReceiverProcess(tmp_path / "receiver") as receiver:
    token = receiver.admin_token()
    code = receiver.enrollment_code("--site", "Nakuru")
    httpx.get(receiver.url + "/api/devices", headers={"Authorization": f"Bearer {token}"})
    receiver.kill()
    receiver.start()  # the same database, the same port
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

DEADLINE_SECONDS = 60.0
_LISTENING = "listening on "


class ReceiverProcess:
    """One receiver. `home` holds its database and its log; every start after the first takes the same port.

    `arguments` go to `serve`; `environ` to it and to every command; `program` is what is run. With `database_url` it
    stores there, and not in its home.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "pisync_receiver"),
        database_url: str | None = None,
    ) -> None:
        self.home = home
        self.database = home / "receiver.db"
        self.log_file = home / "receiver.log"
        self.url = ""
        self._arguments = arguments
        self._environ = dict(environ or {})
        self.program = tuple(program)
        self.database_url = database_url or f"sqlite:///{self.database}"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._listening = threading.Event()
        home.mkdir(parents=True, exist_ok=True)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> Self:
        """Start it and wait until it accepts connections. Raises RuntimeError, with its log, if it does not."""
        port = str(self.port) if self.url else "0"
        command = ["serve", "--port", port, *self._arguments]
        with self.log_file.open("a") as log:
            process = self._popen(command, stdout=subprocess.PIPE, stderr=log)
        self._listening.clear()
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        self._reader, self._process = reader, process  # whole, since another thread may stop it at once
        wait_until(lambda: self._listening.is_set() or process.poll() is not None, "the receiver listens")
        if not self._listening.is_set():
            self.kill()
            raise RuntimeError(f"the receiver ended with {process.returncode}:\n{self.log()}")
        return self

    def stop(self) -> int:
        """SIGTERM and wait; the exit code, -15 for a graceful end."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL and wait: nothing is finished, nothing is closed."""
        return self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop gracefully and start again."""
        self.stop()
        return self.start()

    def command(self, *arguments: str, check: bool = True, timeout: float = DEADLINE_SECONDS) -> str:
        """Run a `pisync-receiver` command on this database and return its standard output.

        Raises AssertionError with both outputs where `check` and it does not end with 0.
        """
        done = self.run(*arguments, timeout=timeout)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *arguments: str, timeout: float = DEADLINE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command on this database, whatever comes of it."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def admin_token(self, role: str = "admin") -> str:
        return self.command("token", "create", "--role", role).strip()

    def enrollment_code(self, *arguments: str) -> str:
        return self.command("enrollment", "create", *arguments).strip()

    def json(self, *arguments: str) -> Any:
        """What a command answers with --json."""
        return json.loads(self.command(*arguments, "--json"))

    def log(self) -> str:
        """Everything it wrote to standard error, over all starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def environ(self) -> dict[str, str]:
        """The environment of its commands: this machine's, without settings of its own."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PISYNC_")}
        return clean | {"PISYNC_RECEIVER_DATABASE_URL": self.database_url} | self._environ

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _popen(self, command: list[str], *, stdout: int, stderr: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.program, *command],
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if line.startswith(_LISTENING):
                    self.url = line.removeprefix(_LISTENING).strip()
                    self._listening.set()

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(DEADLINE_SECONDS)
        self._process = None
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
        return code

    def _running(self) -> "subprocess.Popen[str]":
        assert self._process is not None, "the receiver is not running"
        return self._process


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for `condition`; raise TimeoutError naming `what` after a deadline far beyond what it needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.01)
