"""A service whose socket is held by systemd, here by the test: apps do not notice that it restarts."""

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent import Recorder
from pisync_agent.errors import NotAnswering
from pisync_agent.outbox import files
from tests.support.activation import ActivatedAgent
from tests.support.outboxes import bodies, opened
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, wait_until

PROCESSES = 5
EACH = 300
RESTARTS = 8

WORKER = """
import sys
from pisync_agent import Recorder
with Recorder(sys.argv[1]) as recorder:
    for number in range(int(sys.argv[3])):
        print(recorder.record("note.taken", data={"from": sys.argv[2], "n": number}, timeout=60), flush=True)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ActivatedAgent]:
    with ActivatedAgent(tmp_path / "device") as made:
        yield made


def working(home: Path, output: Path) -> "subprocess.Popen[bytes]":
    with output.open("wb") as printed:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(home), output.name, str(EACH)], stdout=printed)


def stored(home: Path) -> dict[int, tuple[str, int]]:
    """Whose record has which seq."""
    outbox = opened(home)
    found = {}
    for body in map(json.loads, bodies(outbox)):
        found[body["seq"]] = (body["data"]["from"], body["data"]["n"])
    outbox.close()
    return found


def test_no_record_fails_is_lost_or_doubled_through_restarts_and_kills(agent: ActivatedAgent, tmp_path: Path) -> None:
    agent.start()
    inode = files.identity(agent.socket)
    output = {f"p{number}": tmp_path / f"p{number}" for number in range(PROCESSES)}
    workers = [working(agent.home, file) for file in output.values()]

    def recorded() -> int:
        return sum(file.read_bytes().count(b"\n") for file in output.values())

    rng = random.Random(5)
    try:
        for each in range(RESTARTS):
            goal = (each + 1) * PROCESSES * EACH // (RESTARTS + 1)
            wait_until(lambda goal=goal: recorded() >= goal, "they record")  # type: ignore[misc]
            agent.end(rng.choice([signal.SIGTERM, signal.SIGKILL]))
            agent.launch()
    finally:
        codes = [worker.wait(DEADLINE_SECONDS) for worker in workers]
    assert agent.stop() == 0
    found = stored(agent.home)

    assert codes == [0] * PROCESSES
    assert sorted(found.values()) == sorted((name, number) for name in output for number in range(EACH))
    for name, file in output.items():
        for number, seq in enumerate(map(int, file.read_text().split())):
            assert found[seq] == (name, number)
    assert files.identity(agent.socket) == inode, "no start and no stop replaced the socket"


def test_a_record_made_while_no_service_runs_is_answered_by_the_next(agent: ActivatedAgent) -> None:
    waiting = agent.popen("record", "note.taken")
    wait_until(lambda: has_queued(agent.socket), "it has connected")
    agent.launch()
    out, err = waiting.communicate(timeout=DEADLINE_SECONDS)

    assert (waiting.returncode, out, err) == (0, b"1\n", b"")


def has_queued(path: Path) -> bool:
    """Whether a connection waits for a service: the kernel lists it beside the socket that listens."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return len([row for row in rows if row[-1] == str(path)]) > 1


def test_a_service_that_never_comes_up_is_reported_in_time(agent: ActivatedAgent) -> None:
    """And its outbox is not written beside it, by a user who could."""
    with Recorder(agent.home) as recorder, pytest.raises(NotAnswering) as failed:
        recorder.record("note.taken", timeout=0.5)

    assert "does not answer; it may be starting: nothing was recorded" in str(failed.value)
    assert "systemctl restart pisync-agent" in str(failed.value)
    assert not files.database(agent.home).exists()


def test_another_process_does_not_take_the_place_of_systemds_socket(agent: ActivatedAgent) -> None:
    inode = files.identity(agent.socket)
    plain = AgentProcess(agent.home)
    refused = plain.run("run")

    assert refused.returncode == 5
    assert f"systemd listens at {agent.socket}" in refused.stderr
    assert "sudo systemctl start pisync-agent" in refused.stderr
    assert files.identity(agent.socket) == inode
    agent.start()
    assert agent.record() == 1


def test_a_socket_of_another_folder_is_left_alone(tmp_path: Path) -> None:
    """Where the settings name another folder than the unit, apps look there."""
    with ActivatedAgent(tmp_path / "unit") as agent:
        agent.home = tmp_path / "settings"
        agent._environ = {"PISYNC_AGENT_HOME": str(agent.home)}
        held, agent.socket = agent.socket, agent.home / "agent.sock"
        agent.start()
        assert agent.record() == 1
        agent.stop()
        assert not agent.socket.exists()
        assert held.is_socket()


def test_a_stop_leaves_a_socket_that_systemd_has_put_in_place_of_its_own(tmp_path: Path) -> None:
    with AgentProcess(tmp_path / "device") as agent:
        agent.start()
        agent.socket.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(agent.socket))
            assert agent.stop() == 0
            assert agent.socket.is_socket()
