"""The power is cut while `pisync record` and learning apps record: each event whose seq was told is there afterwards.

Real processes on a real file system; see `tests.support.ext4`. PISYNC_POWER_SEED chooses other moments.
"""

import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from select import select
from subprocess import PIPE, Popen
from typing import Any, Final

import pytest

from pisync_agent.outbox.outbox import open_outbox
from pisync_common.sqlite import Connect, connect
from tests.power.recording import Recording, RecordingByCommands, RecordingByStream
from tests.support.ext4 import Ext4Disk
from tests.support.learning_app import LearningApp
from tests.support.outboxes import event, seqs
from tests.support.processes import AgentProcess, ReceiverProcess, wait_until
from tests.support.proof import Proof

SEED: Final = os.environ.get("PISYNC_POWER_SEED", "20261123")
ROUNDS: Final = 3
OPENINGS: Final = 10
PYTHON: Final = sys.executable

APP: Final = """
import sys
from pisync_agent import Recorder
recorder = Recorder(sys.argv[1])
print(recorder.record("note.taken"), flush=True)
sys.stdin.read()
"""
"""It does not close its recorder, which would flush what recording might have left."""

WEAK: Final = """
import sys
from pisync_agent.outbox import database
durable = database.make_durable
def weak(connection, path):
    durable(connection, path)
    connection.execute("PRAGMA synchronous = NORMAL")
database.make_durable = weak
from pisync_agent.commands.cli import main
sys.exit(main())
"""
"""The agent, but for its promise."""


@pytest.fixture
def agent(disk: Ext4Disk, tmp_path: Path) -> Iterator[AgentProcess]:
    """A device with its home on the disk; nothing is there yet, not even the folders above it."""
    with AgentProcess(disk.path / "home" / "learner" / ".local" / "share" / "pisync") as made:
        made.log_file = tmp_path / "device.log"
        yield made


def whole(home: Path) -> list[dict[str, Any]]:
    """Every event, from seq 1 on without a gap, of an outbox in which nothing had to be mended."""
    outbox = open_outbox(home)
    rows = outbox.read(0, max_events=10**6, max_bytes=10**9)
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    assert outbox.state().salvaged == ()
    outbox.close()
    with closing(sqlite3.connect(home / "outbox.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return [json.loads(body) for _, body in rows]


# At any moment


def commands(agent: AgentProcess) -> list[Recording | LearningApp]:
    return [RecordingByCommands(agent, "s-1")]


def a_stream(agent: AgentProcess) -> list[Recording | LearningApp]:
    return [RecordingByStream(agent, "s-1")]


def apps_and_a_stream(agent: AgentProcess) -> list[Recording | LearningApp]:
    return [*(LearningApp(agent.home, f"app-{number}") for number in range(3)), RecordingByStream(agent, "s-1")]


@pytest.mark.parametrize(
    ("recorders", "service", "least"),
    [(commands, False, 5), (a_stream, False, 100), (apps_and_a_stream, True, 50)],
    ids=["commands", "a stream", "through the service"],
)
def test_each_event_whose_seq_was_printed_is_stored(
    disk: Ext4Disk,
    agent: AgentProcess,
    recorders: Callable[[AgentProcess], Sequence[Recording | LearningApp]],
    service: bool,
    least: int,
) -> None:
    """Cut after `least` events of each recorder and a moment more, again and again; the outbox grows meanwhile."""
    rng = random.Random(f"{SEED} {recorders.__name__}")
    recording = recorders(agent)
    for round_ in range(1, ROUNDS + 1):
        with ExitStack() as running:
            if service:
                agent.start()
                running.callback(agent.kill)
            for each in recording:
                each.start()
                running.callback(each.kill)
            wait_until(lambda: all(len(each.recorded) >= round_ * least for each in recording), "they record")  # noqa: B023
            time.sleep(rng.uniform(0, 0.1))
            told = [dict(each.recorded) for each in recording]
            disk.cut_power()
        for each, before in zip(recording, told, strict=True):
            each.recorded = before
        disk.restart()
        fresh = agent.record()
        events = whole(agent.home)
        assert fresh == len(events)
        notes = {(each["learner_id"], each["data"]["n"]): each["seq"] for each in events if "data" in each}
        assert len(notes) == len(events) - round_, "one is there twice"
        for each in recording:
            assert each.notes.items() <= notes.items()


# The first event: folders and files are new as well


@pytest.mark.parametrize("way", ["command", "app", "service"])
def test_the_very_first_event_is_stored(disk: Ext4Disk, agent: AgentProcess, way: str) -> None:
    with ExitStack() as running:
        if way == "service":
            agent.start()
            running.callback(agent.kill)
        program = [PYTHON, "-c", APP, str(agent.home)] if way == "app" else [*agent.program, "record", "note.taken"]
        process = running.enter_context(Popen(program, env=agent.environ(), stdin=PIPE, stdout=PIPE))
        assert process.stdout is not None
        told = process.stdout.readline()
        disk.cut_power()
        process.kill()
    assert told == b"1\n"
    disk.restart()
    assert agent.record() == 2
    assert len(whole(agent.home)) == 2


def test_a_cut_while_the_outbox_is_created_is_harmless(disk: Ext4Disk) -> None:
    """Ten devices, each cut at another moment of its first command."""
    rng = random.Random(f"{SEED} first")
    recorded: dict[Path, int] = {}
    for number in range(OPENINGS):
        agent = AgentProcess(disk.path / f"device-{number}")
        with Popen([*agent.program, "record", "note.taken"], env=agent.environ(), stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            while not (agent.home / "outbox.lock").exists() and process.poll() is None:
                pass
            time.sleep(rng.uniform(0, 0.03))
            told = process.stdout.readline() if select([process.stdout], [], [], 0)[0] else ""
            disk.cut_power()
            process.kill()
        disk.restart()
        recorded[agent.home] = agent.record()
        assert recorded[agent.home] in ((2,) if told else (1, 2))
    assert {home: len(whole(home)) for home in recorded} == recorded


def test_an_enrolled_device_stays_enrolled_and_delivers_once(
    disk: Ext4Disk, agent: AgentProcess, tmp_path: Path
) -> None:
    """Its token is shown once; no administrator would have to come."""
    with ReceiverProcess(tmp_path / "receiver") as receiver, Proof(receiver) as proof:
        agent.record()
        agent.enroll(receiver.url, receiver.enrollment_code(), device_id="pibook-1")
        for seq in (2, 3):
            disk.cut_power()
            disk.restart()
            assert agent.record() == seq
            agent.command("sync")
            assert [row["seq"] for row in proof.events("pibook-1")] == list(range(1, seq + 1))


# What it takes


class WeakConnection(sqlite3.Connection):
    """Commits with `synchronous = NORMAL`, and says that it does as it was told."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA synchronous"):
            super().execute("PRAGMA synchronous = NORMAL")
            sql = "SELECT 2"
        return super().execute(sql, parameters)


def connect_weakly(path: Path, *, readonly: bool) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=WeakConnection)


@pytest.mark.parametrize(("connect", "kept"), [(connect, 5), (connect_weakly, 0)], ids=["FULL", "NORMAL"])
def test_an_outbox_that_commits_with_less_loses(disk: Ext4Disk, connect: Connect, kept: int) -> None:
    outbox = open_outbox(disk.path / "device", connect=connect)
    for number in range(5):
        assert outbox.append([event(number)]) == [number + 1]
    disk.cut_power()
    outbox.close()
    disk.restart()
    outbox = open_outbox(disk.path / "device")
    assert seqs(outbox) == list(range(1, kept + 1))
    outbox.close()


@pytest.mark.parametrize(
    ("program", "next_seq"), [((PYTHON, "-m", "pisync_agent"), 4), ((PYTHON, "-c", WEAK), 1)], ids=["FULL", "NORMAL"]
)
def test_a_service_that_commits_with_less_loses(
    disk: Ext4Disk, agent: AgentProcess, program: tuple[str, ...], next_seq: int
) -> None:
    agent.program = program
    agent.start()
    assert [agent.record() for _ in range(3)] == [1, 2, 3]
    disk.cut_power()
    agent.kill()
    disk.restart()
    assert agent.record() == next_seq
