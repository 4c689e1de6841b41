"""What a technician asks of a device: the commands as processes, beside a real service and a real receiver."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import AgentProcess, ReceiverProcess, wait_until


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
