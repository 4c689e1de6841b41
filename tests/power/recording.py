"""`pisync record` as scripts use it, again and again until it fails or is killed: one command for each note, or one
command that reads a stream of them. As `LearningApp`, they name every note, and go on with the first one whose seq
they were not told.

recording = RecordingByStream(agent, "s-17")
recording.start()
...
recording.kill()
recording.recorded  # the seq of each note, by its number, from 1 on
"""

import contextlib
import json
import random
import subprocess
import threading
from abc import ABC, abstractmethod

from tests.support.learning_app import Note
from tests.support.processes import DEADLINE_SECONDS, AgentProcess


class Recording(ABC):
    """See the module."""

    def __init__(self, agent: AgentProcess, name: str) -> None:
        self.name = name
        self.recorded: dict[int, int] = {}
        self._agent = agent
        self._random = random.Random(name)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._killed = False

    def start(self) -> None:
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """SIGKILL, whatever it is doing; harmless when nothing runs."""
        self._killed = True
        if self._process is not None:
            self._process.kill()
        if self._thread is not None:
            self._thread.join(DEADLINE_SECONDS)
            assert not self._thread.is_alive(), f"{self.name} does not end"
            self._thread = None

    @property
    def notes(self) -> dict[Note, int]:
        """The seq of every note that was recorded."""
        return {(self.name, number): seq for number, seq in self.recorded.items()}

    @abstractmethod
    def _record(self) -> int:
        """Run a command to its end; its exit code."""

    def _run(self) -> None:
        while not self._killed and self._record() == 0:
            pass

    def _started(self, *arguments: str) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(
            [*self._agent.program, "record", *arguments],
            env=self._agent.environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._process

    def _hear(self, process: "subprocess.Popen[str]") -> bool:
        """Whether the next note's seq was told."""
        assert process.stdout is not None
        told = process.stdout.readline()
        if told.endswith("\n"):
            self.recorded[len(self.recorded) + 1] = int(told)
        return told.endswith("\n")


class RecordingByCommands(Recording):
    """A command for each note."""

    def _record(self) -> int:
        number = len(self.recorded) + 1
        flags = ("--learner", self.name, "--data", json.dumps({"n": number}), "--id", f"{self.name}-{number}")
        with self._started("note.taken", *flags) as process:
            self._hear(process)
        return process.returncode


class RecordingByStream(Recording):
    """One command, which gets a few notes at a time, and the next when it has told their seqs."""

    def _record(self) -> int:
        process = self._started("-")
        with contextlib.suppress(BrokenPipeError), process:
            while self._lines(process, self._random.randint(1, 20)):
                pass
        return process.returncode

    def _lines(self, process: "subprocess.Popen[str]", count: int) -> bool:
        assert process.stdin is not None
        first = len(self.recorded) + 1
        for number in range(first, first + count):
            note = {"type": "note.taken", "learner_id": self.name, "data": {"n": number}, "id": f"{self.name}-{number}"}
            process.stdin.write(json.dumps(note) + "\n")
        process.stdin.flush()
        return all(self._hear(process) for _ in range(count))
