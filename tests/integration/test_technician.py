"""What a technician asks of a device: the commands as processes, beside a real service and a real receiver."""

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pisync_agent.outbox.outbox import open_outbox
from tests.support.fault_proxy import FaultProxy
from tests.support.outboxes import event
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess, wait_until

MANY = 10_000


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, receiver: ReceiverProcess) -> Iterator[AgentProcess]:
    """An enrolled device."""
    with AgentProcess(tmp_path / "device") as made:
        made.enroll(receiver.url, code := receiver.enrollment_code(), device_id=f"pibook-{code[:8].lower()}")
        yield made


# history and the log


def test_a_sync_run_is_one_line_in_the_log_and_one_in_the_history(agent: AgentProcess) -> None:
    agent.start("--sync-delay", "1h")
    agent.command("record", "-", stdin='{"type": "note.taken"}\n' * 48)
    agent.command("sync")
    agent.command("sync")
    agent.stop()

    (line,) = [line for line in agent.log().splitlines() if "sync: " in line]
    assert "sync: 48 delivered, 0 duplicates, 0 rejected, 0 pending in " in line
    (run,) = agent.json("history")
    assert (run["delivered"], run["waiting"], run["failure"]) == (48, 0, None)
    assert run["at_ms"] <= agent.status()["last_run"]["at_ms"]
    assert "delivered 48 events in " in agent.command("history")


def test_a_failed_run_is_in_the_history(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    agent.record()
    receiver.stop()
    try:
        agent.command("sync", code=3)
        (run,) = agent.json("history")
    finally:
        receiver.start()

    assert (run["failure"]["code"], run["waiting"]) == ("unreachable", 1)
    wait_until(lambda: agent.run("sync").returncode == 0, "the receiver is back")


# sync --max-time, Ctrl-C


def stored(receiver: ReceiverProcess, agent: AgentProcess) -> list[int]:
    """The seqs that the receiver has of this device, in order."""
    query = "SELECT seq FROM events WHERE device_id = ? ORDER BY seq"
    with closing(sqlite3.connect(f"file:{receiver.database}?mode=ro", uri=True)) as database:
        return [row[0] for row in database.execute(query, (agent.status()["device_id"],))]


def fill(agent: AgentProcess, number: int) -> None:
    with closing(open_outbox(agent.home)) as outbox:
        for first in range(0, number, 1000):
            outbox.append([event(n) for n in range(first, min(first + 1000, number))])


def test_a_long_sync_ends_when_its_time_is_up_or_at_ctrl_c(tmp_path: Path, receiver: ReceiverProcess) -> None:
    with FaultProxy("127.0.0.1", receiver.port) as proxy, AgentProcess(tmp_path / "device") as agent:
        agent.enroll(proxy.url, receiver.enrollment_code(), device_id="pibook-long")
        fill(agent, MANY)
        proxy.latency = 0.3

        done = agent.run("sync", "--max-time", "1s", "--json")
        result = json.loads(done.stdout)
        assert done.returncode == 1, done.stderr
        assert result["delivered"] > 0
        assert result["delivered"] + result["waiting"] == MANY
        assert result["waiting"] > 0

        running = agent.popen("sync")
        assert running.stderr is not None
        assert running.stderr.readline().startswith(b"sending")
        running.send_signal(signal.SIGINT)
        err = running.communicate(timeout=DEADLINE_SECONDS)[1]
        assert running.returncode == 130
        assert b"everything is kept" in err

        agent.start("--sync-delay", "1h")
        done = agent.run("sync", "--max-time", "1s")
        assert done.returncode == 1, done.stderr
        assert "events pending" in done.stdout
        proxy.heal()
        agent.command("sync")

        assert stored(receiver, agent) == list(range(1, MANY + 1))


@pytest.mark.parametrize("given", ["0s", "soon", "-1s"])
def test_a_time_that_is_none_is_wrong_usage(agent: AgentProcess, given: str) -> None:
    done = agent.run("sync", f"--max-time={given}")

    assert (done.returncode, done.stdout) == (2, "")
    assert f"--max-time {given}" in done.stderr
