"""Several `pisync sync` at once, beside a service or without, while apps record: all end well, nothing is doubled."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.learning_app import LearningApp, Note, record_lesson
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess, wait_until
from tests.support.proof import Proof

NUMBERS = itertools.count(1)
DUPLICATES = 'pisync_events_total{outcome="duplicate"}'


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def code(receiver: ReceiverProcess) -> str:
    """Enrolls every device of this file."""
    return receiver.enrollment_code("--uses", "100")


@pytest.fixture(scope="module")
def proof(receiver: ReceiverProcess) -> Iterator[Proof]:
    with Proof(receiver) as asking:
        yield asking


@pytest.fixture
def agent(receiver: ReceiverProcess, code: str, tmp_path: Path) -> Iterator[AgentProcess]:
    """A device, enrolled under the name of its folder."""
    with AgentProcess(tmp_path / f"pibook-{next(NUMBERS)}", "--sync-delay", "0s") as made:
        made.enroll(receiver.url, code, device_id=made.home.name)
        yield made


@pytest.fixture
def apps(agent: AgentProcess) -> Iterator[list[LearningApp]]:
    """Four apps that record as fast as they can, one event after the other."""
    made = [LearningApp(agent.home, f"app-{number}") for number in range(4)]
    yield made
    for app in made:
        app.discard()


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("with_service", [False, True])
def test_three_syncs_at_once_send_everything_once(agent: AgentProcess, proof: Proof, with_service: bool) -> None:
    """The first one does it; the others join, or find nothing left to do."""
    notes: dict[Note, int] = {}
    before = proof.metric(DUPLICATES)
    if with_service:
        agent.start("--sync-delay", "1h")
    for round_ in range(3):
        notes |= record_lesson(agent, f"s-{round_}", 400, noise=100)
        for process in [agent.popen("sync", "--json") for _ in range(3)]:
            code, out, err = ended(process)
            assert (code, "Traceback" in err) == (0, False), err
            found = json.loads(out)
            assert (found["waiting"], found["duplicates"], found["rejected"], found["errors"]) == (0, 0, 0, {})
            assert found["delivered"] in (0, 400)

    proof.check_whole(agent.home.name, notes)
    assert proof.metric(DUPLICATES) == before


@pytest.mark.parametrize("with_service", [False, True])
def test_syncs_while_apps_storm(agent: AgentProcess, proof: Proof, apps: list[LearningApp], with_service: bool) -> None:
    """Each sync ends although there is always more to send, and says how much is pending. No app is refused."""
    before = proof.metric(DUPLICATES)
    if with_service:
        agent.start()
    for app in apps:
        app.start()
    wait_until(lambda: all(len(app.recorded) > 20 for app in apps), "they record")
    for _ in range(2):
        for process in [agent.popen("sync") for _ in range(2)]:
            code, out, err = ended(process)
            assert code in (0, 1), err
            assert "Traceback" not in err
            assert ("nothing pending" in out) == (code == 0)
    for app in apps:
        app.stop()
    agent.command("sync")

    proof.check_whole(agent.home.name, {note: seq for app in apps for note, seq in app.notes.items()})
    assert proof.metric(DUPLICATES) == before


def test_the_service_comes_and_goes_while_apps_storm(
    agent: AgentProcess, proof: Proof, apps: list[LearningApp]
) -> None:
    """It gets its turn at the lock, though the apps that write without it hardly ever leave it alone."""
    for app in apps:
        app.start()
    for _ in range(3):
        before = [len(app.recorded) for app in apps]
        wait_until(
            lambda before=before: all(  # type: ignore[misc]
                len(app.recorded) > number + 20 for app, number in zip(apps, before, strict=True)
            ),
            "they record",
        )
        agent.start()
        assert agent.run("sync").returncode in (0, 1)
        assert agent.stop() == 0
    for app in apps:
        app.stop()
    agent.command("sync")

    proof.check_whole(agent.home.name, {note: seq for app in apps for note, seq in app.notes.items()})
