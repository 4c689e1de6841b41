"""Apps that record in every way there is, and a ledger, outside of every device, of what each of them was told.

An app is a thread that drives one process after another: `Recorder.record` with ids, `Recorder.record_many` and
`pisync record -` without. Whatever is killed, the app goes on with the next event, so an event without an id that had
no answer is recorded once or not at all; an event with an id is tried again.
"""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from tests.support.learning_app import Note
from tests.support.processes import AgentProcess

KINDS: Final = ("record", "record", "record_many", "record_many", "record_many", "record -")
BATCH: Final = {"record": 10, "record_many": 40, "record -": 80}
"""Events of one order to a process."""

_PROGRAM: Final = """
import sys
from pisync_agent import Recorder
from pisync_agent.errors import AgentError
home, app = sys.argv[1:]
def told(n, result):
    print(n, result if isinstance(result, int) else f"refused {type(result).__name__}: {result}", flush=True)
def event(n):
    return {"type": "note.taken", "learner_id": app, "data": {"n": n}}
with Recorder(home) as recorder:
    for line in sys.stdin:
        kind, first, count = line.split()
        numbers = range(int(first), int(first) + int(count))
        if kind == "record_many":
            try:
                for n, result in zip(numbers, recorder.record_many(map(event, numbers)), strict=True):
                    told(n, result)
            except AgentError as error:
                told(numbers[0], error)
        else:
            for n in numbers:
                try:
                    told(n, recorder.record(**event(n), id=f"{app}-{n}"))
                except AgentError as error:
                    told(n, error)
        print("done", flush=True)
"""


class Ledger:
    """What apps were told, by device; each line is in the file before anything else is asked."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)
        self._lock = threading.Lock()
        self.stored: dict[str, set[Note]] = {}
        """The events that a device acknowledged."""
        self.tried: dict[str, set[Note]] = {}
        """The events that were handed to a device, whatever was answered."""
        self.refusals: list[str] = []

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self.stored.values()))

    def of(self, device: str) -> set[Note]:
        with self._lock:
            return set(self.stored.get(device, ()))

    def try_(self, device: str, app: str, numbers: range) -> None:
        with self._lock:
            self.tried.setdefault(device, set()).update((app, number) for number in numbers)

    def tell(self, device: str, app: str, number: int, seq: int) -> None:
        with self._lock:
            self._file.write(json.dumps([device, app, number, seq]) + "\n")
            self.stored.setdefault(device, set()).add((app, number))

    def refuse(self, text: str) -> None:
        with self._lock:
            self.refusals.append(text)

    def close(self) -> None:
        self._file.close()


class RecordingApp:
    """Records on a device while `may_record()` says so. `kill` at any moment; `pause` and `resume` in good order."""

    def __init__(
        self, agent: AgentProcess, device: str, name: str, ledger: Ledger, *, seed: str, may_record: Callable[[], bool]
    ) -> None:
        self._agent = agent
        self._device = device
        self._name = name
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._may_record = may_record
        self._next = 1
        self._again: range | None = None
        """Events with ids that had no answer yet."""
        self._process: subprocess.Popen[str] | None = None
        self._changing = threading.Lock()
        """Guards `_process`, which another thread kills."""
        self._ordered = threading.Event()
        """Set while an order is under way."""
        self._work = threading.Event()
        self._idle = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait_for_order(self) -> None:
        """Wait until its process is recording, at most 2 s."""
        self._ordered.wait(2)

    def kill(self, *, after: float) -> None:
        """SIGKILL to the process that records, `after` seconds into its next order."""
        self.wait_for_order()
        time.sleep(after)
        self.cut()

    def cut(self) -> None:
        """SIGKILL to the process, at once, if there is one."""
        with self._changing:
            if self._process is not None:
                self._process.kill()

    def resume(self) -> None:
        self._idle.clear()
        self._work.set()

    def pause(self) -> None:
        """Finish the order under way, and end the process."""
        self._work.clear()
        assert self._idle.wait(120), f"{self._name} does not finish its order"

    def discard(self) -> None:
        self._ended.set()
        self._work.set()
        self.cut()
        self._thread.join(120)

    def _run(self) -> None:
        while not self._ended.is_set():
            if not self._work.is_set():
                self._end()
                self._idle.set()
                self._work.wait()
            elif self._may_record():
                self._order()
            else:
                self._ended.wait(0.01)
        self._end()

    def _order(self) -> None:
        """Have one batch of events recorded, in one of the ways."""
        kind = "record" if self._again else self._rng.choice(KINDS)
        numbers = self._again or range(self._next, self._next + BATCH[kind])
        self._next = max(self._next, numbers.stop)
        self._ledger.try_(self._device, self._name, numbers)
        told = self._lines(numbers) if kind == "record -" else self._ask(kind, numbers)
        self._ordered.clear()
        self._again = numbers[told:] if kind == "record" and told < len(numbers) else None

    def _ask(self, kind: str, numbers: range) -> int:
        """Return how many of these were answered, before the process was killed."""
        process = self._started()
        told = 0
        try:
            assert process.stdin is not None
            process.stdin.write(f"{kind} {numbers.start} {len(numbers)}\n")
            process.stdin.flush()
            self._ordered.set()
            assert process.stdout is not None
            for line in process.stdout:
                if line == "done\n":
                    return len(numbers)
                if line.endswith("\n"):
                    told += self._hear(*line.split(" ", 1))
        except BrokenPipeError:
            pass
        self._end()
        return told

    def _hear(self, number: str, answer: str) -> int:
        if answer.strip().isdecimal():
            self._ledger.tell(self._device, self._name, int(number), int(answer))
        else:
            self._ledger.refuse(f"{self._name} {number}: {answer.strip()}")
        return 1

    def _lines(self, numbers: range) -> int:
        """Give them to `pisync record -`: the nth number that it prints is the seq of the nth line."""
        self._end()
        events = ({"type": "note.taken", "learner_id": self._name, "data": {"n": number}} for number in numbers)
        text = "".join(json.dumps(event) + "\n" for event in events)
        process = self._launch([*self._agent.program, "record", "-"], subprocess.PIPE)
        self._ordered.set()
        out, error = process.communicate(text)
        for number, line in zip(numbers, out.splitlines(keepends=True), strict=False):
            if line.endswith("\n"):
                self._ledger.tell(self._device, self._name, number, int(line))
        if process.returncode > 0:
            self._ledger.refuse(f"{self._name} record -: {error.strip()[-300:]}")
        self._forget()
        return out.count("\n")

    def _started(self) -> "subprocess.Popen[str]":
        with self._changing:
            running = self._process
        return running or self._launch([sys.executable, "-c", _PROGRAM, str(self._agent.home), self._name], None)

    def _launch(self, command: list[str], stderr: int | IO[str] | None) -> "subprocess.Popen[str]":
        with self._changing:
            self._process = subprocess.Popen(
                command,
                env=self._agent.environ(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            return self._process

    def _end(self) -> None:
        """Let the process end, or take note of its end."""
        with self._changing:
            process = self._process
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.read()
            process.wait(60)
            process.stdout.close()
            self._forget()

    def _forget(self) -> None:
        with self._changing:
            self._process = None
