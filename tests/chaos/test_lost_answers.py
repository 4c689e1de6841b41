"""A link that breaks at the worst moment: after the receiver's commit, in mid-upload, in the middle of an answer.

Whatever the device did not hear it sends again; the receiver counts that as duplicates and stores once.
"""

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent.identity import PROPOSAL_FILE
from tests.support.fault_proxy import FaultProxy
from tests.support.learning_app import Note, record_lesson
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess
from tests.support.proof import Proof
from tests.support.raw_server import Peer, RawServer

NUMBERS = itertools.count(1)
EVENTS = 250


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
def link(receiver: ReceiverProcess) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", receiver.port) as proxy:
        yield proxy


@pytest.fixture
def agent(link: FaultProxy, code: str, tmp_path: Path) -> Iterator[AgentProcess]:
    """A device at the end of the link, enrolled under the name of its folder."""
    settings = ("--sync-delay", "0s", "--retry-base", "0.02s", "--retry-cap", "0.1s")
    with AgentProcess(tmp_path / f"pibook-{next(NUMBERS)}", *settings) as made:
        made.enroll(link.url, code, device_id=made.home.name)
        yield made


def stored(proof: Proof, agent: AgentProcess) -> int:
    return len(proof.events(agent.home.name))


def check_failed_sync(agent: AgentProcess, waiting: int) -> None:
    done = agent.run("sync")
    assert done.returncode == 3
    assert f"{waiting} events pending" in done.stdout
    assert "what was in flight is sent again" in done.stderr
    status = agent.status()
    assert (status["waiting"], status["dead"]) == (waiting, 0)


def check_known_already(agent: AgentProcess, proof: Proof, notes: dict[Note, int]) -> None:
    """The next sync learns that the receiver has had it all for long."""
    found = agent.json("sync")
    assert (found["delivered"], found["duplicates"], found["waiting"]) == (0, len(notes), 0)
    proof.check_whole(agent.home.name, notes)


def test_an_answer_that_is_lost_after_the_commit(agent: AgentProcess, link: FaultProxy, proof: Proof) -> None:
    """Three times in a row: the receiver has it all from the first time on, and the device does not know."""
    notes = record_lesson(agent, "s-1", EVENTS)
    link.drop_answers_to = "/api/events"
    link.drop_answers = 3
    for lost in (1, 2, 3):
        check_failed_sync(agent, EVENTS)
        assert (link.answers_dropped, stored(proof, agent)) == (lost, EVENTS)

    check_known_already(agent, proof, notes)


def test_an_answer_that_breaks_off(agent: AgentProcess, link: FaultProxy, proof: Proof) -> None:
    """Before its first byte, in its first line, in its headers, in its body."""
    notes = record_lesson(agent, "s-1", EVENTS)
    link.cut_down_after = 0
    check_failed_sync(agent, EVENTS)
    for bytes in (10, 100, 200):
        before = link.bytes_down
        link.cut_down_after = bytes
        check_failed_sync(agent, EVENTS)
        assert link.bytes_down >= before + bytes
        assert stored(proof, agent) == EVENTS
    link.heal()

    check_known_already(agent, proof, notes)


def test_an_upload_that_is_cut_stores_nothing(agent: AgentProcess, link: FaultProxy, proof: Proof) -> None:
    """A batch is stored whole or not at all."""
    notes = record_lesson(agent, "s-1", EVENTS, noise=100)
    for after in (10, 300, 2_000):
        link.cut_up_after = after
        check_failed_sync(agent, EVENTS)
        assert stored(proof, agent) == 0
    link.heal()
    found = agent.json("sync")

    assert (found["delivered"], found["duplicates"], found["waiting"]) == (EVENTS, 0, 0)
    proof.check_whole(agent.home.name, notes)


@pytest.mark.parametrize("taken", [False, True])
def test_a_lost_enrollment_is_repeated_with_the_same_code(
    receiver: ReceiverProcess, tmp_path: Path, taken: bool
) -> None:
    """The device names no id, and the code is for one device: the second try gets the identity of the first."""
    lost: list[bytes] = []

    def once(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            answer = passed_on(receiver.port, request)
            if answer.startswith(b"HTTP/1.1 201") and not lost:
                lost.append(answer)
                return
            peer.send(answer)

    code, home = receiver.enrollment_code("--uses", "1"), tmp_path / f"pibook-{next(NUMBERS)}"
    proposed = f"pi-{home.name}"
    if taken:
        with AgentProcess(tmp_path / "other") as other:
            other.enroll(receiver.url, receiver.enrollment_code(), device_id=proposed)
    with AgentProcess(home) as agent, RawServer(once) as link:
        home.mkdir(parents=True, exist_ok=True)
        (home / PROPOSAL_FILE).write_text(proposed)
        assert agent.run("enroll", link.url, "--code", code).returncode == 3
        agent.enroll(link.url, code)
        given = json.loads(lost[0].partition(b"\r\n\r\n")[2])["device_id"]

        assert agent.status()["device_id"] == given
        assert (given == proposed) != taken
        agent.record()
        agent.command("sync")


def passed_on(port: int, request: bytes) -> bytes:
    """Return the receiver's answer to a request, on a connection of its own."""
    answer = b""
    head, _, body = request.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS) as receiver:
        receiver.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        while data := receiver.recv(65536):
            answer += data
    return answer
