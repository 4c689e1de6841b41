"""A worker as its users run it: a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

DEADLINE_SECONDS: Final = 60.0
PROGRAM: Final = (sys.executable, "-m", "pisync_receiver", "worker")


class WorkerProcess:
    """`settings` become variables: `amqp_url="…"` is `PISYNC_RECEIVER_AMQP_URL`. Killed at a block's end."""

    def __init__(self, log_file: Path, *arguments: str, **settings: str) -> None:
        self._log_file = log_file
        self._arguments = arguments
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*PROGRAM, *self._arguments],
                env=environ(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        return self

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self.end(signal.SIGTERM)

    def kill(self) -> int:
        return self.end(signal.SIGKILL)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def log(self) -> str:
        return self._log_file.read_text()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait; the exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(DEADLINE_SECONDS)
        self._process = None
        return code


def once(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a worker to its end."""
    return run_worker(["--once", *arguments], settings)


def run_worker(arguments: Sequence[str], settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=environ(settings),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def environ(settings: dict[str, str]) -> dict[str, str]:
    """This machine's environment without settings of PiSync's, but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PISYNC_")}
    return clean | {f"PISYNC_RECEIVER_{name.upper()}": value for name, value in settings.items()}
