"""kill -9, again and again, of whatever is at work: in the end every event that was recorded is stored exactly once.

Three apps record without a pause; the service delivers what they record at once; at random moments of that
work the service, the receiver, an app, or several of them are killed and started again. PISYNC_CHAOS_SEED chooses other
moments.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.learning_app import LearningApp
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess
from tests.support.proof import Proof

DEVICE = "pibook-1"
SEED = int(os.environ.get("PISYNC_CHAOS_SEED", "20261123"))
VICTIMS = (
    *(("agent",),) * 20,
    *(("receiver",),) * 20,
    *(("agent", "receiver"),) * 6,
    *(("agent", "app"),) * 2,
    *(("receiver", "app"),) * 2,
)
STARTS = 4
"""Kills of a service, and of a receiver, that are just starting."""


class School:
    """A device with three apps, its receiver, and the link between them."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.receiver = opened.enter_context(ReceiverProcess(folder / "receiver"))
        self.link = opened.enter_context(FaultProxy("127.0.0.1", self.receiver.port))
        settings = ("--sync-delay", "0s", "--retry-base", "0.02s", "--retry-cap", "0.1s")
        self.agent = opened.enter_context(AgentProcess(folder / "device", *settings))
        self.agent.enroll(self.link.url, self.receiver.enrollment_code(), device_id=DEVICE)
        self.apps = [LearningApp(self.agent.home, f"app-{number}", pause=0.012) for number in range(3)]
        for app in self.apps:
            opened.callback(app.discard)

    @property
    def recorded(self) -> int:
        return sum(len(app.recorded) for app in self.apps)

    def work_for(self, *, events: int = 0, bytes: int = 0) -> None:
        """Wait until this many more events are recorded and this many more bytes were sent."""
        events, bytes = self.recorded + events, self.link.bytes_up + bytes
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.recorded < events or self.link.bytes_up < bytes:
            assert time.monotonic() < deadline, f"no work is done: {self.agent.log()[-2000:]}"
            time.sleep(0.0005)


@pytest.fixture
def school(tmp_path: Path) -> Iterator[School]:
    with ExitStack() as opened:
        yield School(tmp_path, opened)


def kill(school: School, victims: tuple[str, ...], rng: random.Random) -> None:
    """Kill them in a random order at a moment of their work, and start them again."""
    if "receiver" in victims:
        school.work_for(bytes=rng.randrange(1, 3000))
    else:
        school.work_for(events=rng.randrange(1, 25), bytes=1)
    time.sleep(rng.uniform(0, 0.004))  # somewhere between two bytes, or two events
    for victim in rng.sample(victims, len(victims)):
        match victim:
            case "agent":
                assert school.agent.kill() == -signal.SIGKILL
            case "receiver":
                assert school.receiver.kill() == -signal.SIGKILL
            case _:
                app = rng.choice(school.apps)
                app.kill()
                app.start()
    if "receiver" in victims:
        school.receiver.start()
    if "agent" in victims:
        school.agent.start()


def kill_while_it_starts(school: School, rng: random.Random) -> None:
    """Kill both, each of them again at a random moment of its start, which takes about a quarter of a second."""
    school.agent.kill()
    school.receiver.kill()
    serve = [*school.receiver.program, "serve", "--port", str(school.receiver.port)]
    with (
        school.agent.popen("run", stdout=DEVNULL, stderr=DEVNULL) as service,
        Popen(serve, env=school.receiver.environ(), stdout=DEVNULL, stderr=DEVNULL) as receiver,
    ):
        time.sleep(rng.uniform(0, 0.4))
        service.kill()
        time.sleep(rng.uniform(0, 0.2))
        receiver.kill()
    school.receiver.start()
    school.agent.start()


def test_killed_again_and_again_each_event_is_stored_once(school: School) -> None:
    print(f"PISYNC_CHAOS_SEED={SEED}")
    rng = random.Random(SEED)
    school.agent.start()
    for app in school.apps:
        app.start()
    for victims in rng.sample(VICTIMS, len(VICTIMS)):
        kill(school, victims, rng)
    for _ in range(STARTS):
        kill_while_it_starts(school, rng)
    school.work_for(events=1, bytes=1)
    for app in school.apps:
        app.stop()
    school.agent.command("sync")

    notes = {note: seq for app in school.apps for note, seq in app.notes.items()}
    assert sorted(notes.values()) == list(range(1, len(notes) + 1))
    with Proof(school.receiver) as proof:
        proof.check_whole(DEVICE, notes)
    status = school.agent.status()
    assert [status[key] for key in ("last_seq", "watermark", "waiting", "dead", "salvaged")] == [
        *(len(notes), len(notes), 0, 0, [])
    ]
    assert "Traceback" not in school.agent.log() + school.receiver.log()
