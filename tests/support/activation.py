"""systemd's part in socket activation, played by the test's process."""

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Self

from pisync_agent.errors import NotAnswering
from pisync_agent.service import protocol
from pisync_common import unix_socket
from tests.support.processes import AgentProcess

_PASS: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "pisync_agent", *sys.argv[2:]])
"""


class ActivatedAgent(AgentProcess):
    """An agent whose socket this process holds through every stop, kill and start of the service."""

    def __init__(self, home: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(home, *arguments, environ=environ)
        home.mkdir(mode=0o750, parents=True)
        self._held = unix_socket.listen(self.socket, mode=0o660)

    def launch(self) -> Self:
        """Start the service and return at once: who connects waits for it."""
        self._launch("run", *self._arguments)
        return self

    def start(self, *arguments: str) -> Self:
        self._launch("run", *self._arguments, *arguments)
        self._wait_until(self._answers, "the service answers")
        return self

    def popen(
        self, *arguments: str, stdout: IO[bytes] | int = subprocess.PIPE, stderr: IO[bytes] | int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        if arguments[0] != "run":
            return super().popen(*arguments, stdout=stdout, stderr=stderr)
        number = self._held.fileno()
        return subprocess.Popen(
            [sys.executable, "-ISc", _PASS, str(number), *arguments],
            env=self.environ(), pass_fds=[number], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip

    def _answers(self) -> bool:
        with suppress(OSError, NotAnswering):
            return protocol.live_status(self.socket) is not None
        return False

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._held.close()
