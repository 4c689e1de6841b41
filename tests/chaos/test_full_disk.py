"""A disk that is full to the last byte, under the receiver's database and under the device's outbox."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.learning_app import Note, record_lesson
from tests.support.processes import AgentProcess, ReceiverProcess
from tests.support.proof import Proof
from tests.support.small_disk import small_disk, use_up

DEVICE = "pibook-1"
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, size=24 * MIB) as mounted:
        yield mounted


def check_refused(agent: AgentProcess, proof: Proof) -> None:
    """The device is asked to come back later; everything it considers delivered is stored and can be read."""
    done = agent.run("sync")
    assert done.returncode == 1
    for words in ("(http_5xx)", "answered 503", "do not take this as stored", "after 30 s at the earliest"):
        assert words in done.stderr
    assert "Everything is kept" in done.stderr
    assert len(proof.events(DEVICE)) == agent.status()["delivered"]


def test_a_receiver_on_a_full_disk_refuses_and_recovers(disk: Path, tmp_path: Path) -> None:
    """It fills up while a device delivers; it says so, loses nothing, also when it is killed, and goes on after."""
    ballast = disk / "ballast"
    environ = {"PISYNC_RECEIVER_DATABASE_URL": f"sqlite:///{disk / 'receiver.db'}"}
    agent = AgentProcess(tmp_path / "device")
    with ReceiverProcess(tmp_path / "receiver", environ=environ) as receiver, Proof(receiver) as proof:
        agent.enroll(receiver.url, receiver.enrollment_code(), device_id=DEVICE)
        ballast.write_bytes(os.urandom(14 * MIB))
        notes = record_lesson(agent, "s-1", 4000, noise=1000)
        check_refused(agent, proof)
        assert 0 < agent.status()["delivered"] < 4000, "it went as far as there was room"

        for end in (receiver.stop, receiver.kill):
            use_up(disk)
            assert proof.ready() == 503
            check_refused(agent, proof)
            end()
            receiver.start()
        check_refused(agent, proof)
        assert "Traceback" not in receiver.log()

        (disk / "others").unlink()
        ballast.unlink()
        assert proof.ready() == 200
        agent.command("sync")
        proof.check_whole(DEVICE, notes)


@pytest.mark.parametrize("with_service", [False, True])
def test_a_device_on_a_full_disk_refuses_new_work_and_delivers(disk: Path, tmp_path: Path, with_service: bool) -> None:
    """The app gets an error for its event; recorded events are delivered, which makes room for more."""
    with (
        ReceiverProcess(tmp_path / "receiver") as receiver,
        AgentProcess(disk / "device", "--sync-delay", "1h") as agent,
    ):
        agent.enroll(receiver.url, receiver.enrollment_code(), device_id=DEVICE)
        receiver.stop()  # nothing is delivered before the disk is full
        if with_service:
            agent.start()
        notes = record_lesson(agent, "s-1", 2000, noise=200)
        use_up(disk)
        notes |= record_until_full(agent, "s-2")
        receiver.start()
        agent.command("sync")
        notes |= record_lesson(agent, "s-3", 20, noise=200)
        agent.command("sync")
        with Proof(receiver) as proof:
            proof.check_whole(DEVICE, notes)
        assert agent.status()["salvaged"] == []


def record_until_full(agent: AgentProcess, name: str) -> dict[Note, int]:
    """Record events one after the other until one is refused; the seqs of those that were recorded."""
    events = ({"type": "note.taken", "learner_id": name, "data": {"n": number}} for number in range(1, 50_001))
    done = agent.run("record", "-", stdin="".join(json.dumps(event) + "\n" for event in events))
    assert done.returncode == 5
    for words in ("the outbox is full", "nothing was recorded", "everything recorded before is kept", "try again"):
        assert words in done.stderr
    return {(name, number): int(seq) for number, seq in enumerate(done.stdout.split(), start=1)}
