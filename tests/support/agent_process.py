"""An agent as its users run it: a home of its own, the commands, and between `start` and `stop` the service.

with AgentProcess(tmp_path / "device") as agent:
    agent.command("record", "video.watched")
    agent.enroll(receiver.url, code, device_id="pibook-1")
    agent.start()
    agent.command("sync")
    agent.kill()
    agent.start()  # the same home
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pisync_common.unix_socket import LineClient
from tests.support.receiver_process import DEADLINE_SECONDS, wait_until


class AgentProcess:
    """One device. `arguments` go to `run`; `environ` to it and to every command; `program` is what is run."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "pisync_agent"),
    ) -> None:
        self.home = home
        self.socket = home / "agent.sock"
        self.log_file = home.with_name(home.name + ".log")
        self.program = tuple(program)
        self._arguments = arguments
        self._environ = dict(environ or {})
        self._service: subprocess.Popen[bytes] | None = None

    # The service

    def start(self, *arguments: str) -> Self:
        """Start the service and wait until it listens. Raises RuntimeError, with its log, if it does not."""
        self.socket.unlink(missing_ok=True)  # left by one that was killed
        with self.log_file.open("ab") as log:
            self._service = self.popen("run", *self._arguments, *arguments, stdout=log, stderr=log)
        service = self._service
        wait_until(lambda: self._listens() or service.poll() is not None, "the service listens")
        if service.poll() is not None:
            self._service = None
            raise RuntimeError(f"the service ended with {service.returncode}:\n{self.log()}")
        return self

    def _listens(self) -> bool:
        try:
            LineClient(self.socket, timeout=DEADLINE_SECONDS).close()
        except OSError:  # not there yet, or bound and not listening yet
            return False
        return True

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL and wait: nothing is finished, nothing is closed."""
        return self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop gracefully and start again."""
        self.stop()
        return self.start()

    @property
    def pid(self) -> int:
        assert self._service is not None, "the service is not running"
        return self._service.pid

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Memory of the service: `VmRSS` now, `VmHWM` at its peak."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
        return int(kib) / 1024

    def log(self) -> str:
        """Everything the service wrote, over all starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    # The commands

    def run(
        self, *arguments: str, stdin: str | None = None, timeout: float = DEADLINE_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command, whatever comes of it."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environ(),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def command(self, *arguments: str, stdin: str | None = None, code: int | Sequence[int] = 0) -> str:
        """What a command prints. Raises AssertionError with both outputs if it ends with another code."""
        done = self.run(*arguments, stdin=stdin)
        wanted = (code,) if isinstance(code, int) else tuple(code)
        assert done.returncode in wanted, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str, code: int | Sequence[int] = 0) -> Any:
        """What a command answers with --json."""
        return json.loads(self.command(*arguments, "--json", code=code))

    def status(self) -> dict[str, Any]:
        """`status --json`, whatever its exit code says."""
        found: dict[str, Any] = self.json("status", code=(0, 1, 3, 4))
        return found

    def record(self, type: str = "note.taken", *arguments: str) -> int:
        """Record an event; its seq."""
        return int(self.command("record", type, *arguments))

    def enroll(self, url: str, code: str, *arguments: str, device_id: str | None = None) -> None:
        wanted = ("--device-id", device_id) if device_id else ()
        self.command("enroll", url, "--code", code, *wanted, *arguments)

    def popen(
        self, *arguments: str, stdout: IO[bytes] | int = subprocess.PIPE, stderr: IO[bytes] | int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        """Start a command and go on."""
        return subprocess.Popen(
            [*self.program, *arguments], env=self.environ(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )

    def environ(self) -> dict[str, str]:
        """The environment of its commands: this machine's, without settings of its own."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PISYNC_")}
        return clean | {"PISYNC_AGENT_HOME": str(self.home)} | self._environ

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _end(self, number: signal.Signals) -> int:
        if self._service is None:
            return 0
        if self._service.poll() is None:
            self._service.send_signal(number)
        code = self._service.wait(DEADLINE_SECONDS)
        self._service = None
        return code
