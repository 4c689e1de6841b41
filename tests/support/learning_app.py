"""A learning app in a process of its own: it records one event after another, until it is stopped or killed.

Every event has a name of its own (`id=`), so an app that was killed goes on with the event it was at, and a repeat is
harmless. What `record` returned is in `recorded`; the app prints it only then.
"""

import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Final

from tests.support.processes import AgentProcess

DEADLINE_S: Final = 60.0

_PROGRAM: Final = """
import select, sys
from pisync_agent import Recorder
home, name, number, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with Recorder(home) as recorder:
    while not select.select([sys.stdin], [], [], pause)[0]:
        seq = recorder.record("note.taken", learner_id=name, data={"n": number}, id=f"{name}-{number}")
        print(number, seq, flush=True)
        number += 1
"""

Note = tuple[str, int]
"""What identifies an event: the app that recorded it, and its number there."""


class LearningApp:
    """`recorded` has the seq of each event by its number, from 1 on. It waits `pause` seconds between two events."""

    def __init__(self, home: Path, name: str, *, pause: float = 0.0) -> None:
        self.name = name
        self.recorded: dict[int, int] = {}
        self._home = home
        self._pause = pause
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Record; go on after what was recorded so far."""
        arguments = [str(self._home), self.name, str(len(self.recorded) + 1), str(self._pause)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def stop(self) -> None:
        """Let it finish the event it is at. Raises AssertionError if it had ended already, or ends with an error."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} had ended already with {self._process.returncode}"
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._ended()
        assert code == 0, f"{self.name} ended with {code}"

    def discard(self) -> None:
        """End it, if it still runs: for cleaning up."""
        if self._process is not None:
            self.kill()

    @property
    def notes(self) -> dict[Note, int]:
        """The seq of every event that was recorded."""
        return {(self.name, number): seq for number, seq in self.recorded.items()}

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.endswith("\n"):  # a kill may cut the last one
                number, seq = map(int, line.split())
                self.recorded[number] = seq

    def _ended(self) -> int:
        assert self._process is not None
        assert self._reader is not None
        code = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process = None
        return code


def record_lesson(agent: AgentProcess, name: str, count: int, *, first: int = 1, noise: int = 0) -> dict[Note, int]:
    """Record `count` events with one command, each with `noise` bytes more that no compression makes small; their
    seqs, as `LearningApp.notes` has them."""
    numbers, rng = range(first, first + count), random.Random(name)
    lines = (
        json.dumps(
            {
                "type": "note.taken",
                "learner_id": name,
                "data": {"n": number, "text": rng.randbytes(noise).hex()},
                "id": f"{name}-{number}",
            }
        )
        for number in numbers
    )
    printed = agent.command("record", "-", stdin="\n".join(lines) + "\n").split()
    return {(name, number): int(seq) for number, seq in zip(numbers, printed, strict=True)}
