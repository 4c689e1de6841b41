"""Older copies, with real processes: a receiver restored from its backup, and a device whose card was cloned."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.learning_app import Note, record_lesson
from tests.support.processes import AgentProcess, ReceiverProcess, wait_until
from tests.support.proof import Proof

DEVICE = "pibook-1"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path / "receiver") as running:
        yield running


@pytest.fixture
def agent(receiver: ReceiverProcess, tmp_path: Path) -> Iterator[AgentProcess]:
    with made_agent(tmp_path / "device") as made:
        made.enroll(receiver.url, receiver.enrollment_code(), device_id=DEVICE)
        yield made


def made_agent(home: Path) -> AgentProcess:
    return AgentProcess(home, "--sync-delay", "0s", "--retry-base", "0.02s", "--retry-cap", "0.1s")


def restore(receiver: ReceiverProcess, copy: Path) -> None:
    """As an admin would: stop it, put the copy in the database's place, start it."""
    receiver.stop()
    for file in receiver.home.glob("receiver.db*"):
        file.unlink()
    shutil.copy(copy, receiver.database)
    receiver.start()


# The receiver


@pytest.mark.parametrize("with_service", [False, True])
def test_a_receiver_restored_from_its_backup_gets_lost_events_again(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path, with_service: bool
) -> None:
    """The device believed all of it delivered, and finds out with the next thing it sends."""
    notes = record_lesson(agent, "s-1", 300)
    if with_service:
        agent.start()
    agent.command("sync")
    receiver.command("backup", str(tmp_path / "copy.db"))
    notes |= record_lesson(agent, "s-2", 700)
    agent.command("sync")
    restore(receiver, tmp_path / "copy.db")
    with Proof(receiver) as proof:
        assert len(proof.events(DEVICE)) == 300
        if with_service:
            notes |= record_lesson(agent, "s-3", 1)
            wait_until(lambda: len(proof.events(DEVICE)) == 1001, "the service sends it all again")
        else:
            agent.command("sync")

        proof.check_whole(DEVICE, notes)
    assert agent.status()["watermark"] == len(notes)


def test_a_device_unknown_to_the_backup_keeps_everything_until_enrolled_again(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    """Its token went with the database. An admin's consent, and everything is there."""
    receiver.command("backup", str(tmp_path / "copy.db"))
    newcomer = made_agent(tmp_path / "newcomer")
    newcomer.enroll(receiver.url, receiver.enrollment_code(), device_id="pibook-2")
    notes = record_lesson(newcomer, "s-1", 50)
    newcomer.command("sync")
    restore(receiver, tmp_path / "copy.db")
    notes |= record_lesson(newcomer, "s-2", 50)
    refused = newcomer.run("sync")

    assert refused.returncode == 4
    assert "ask an administrator" in refused.stderr
    newcomer.enroll(receiver.url, receiver.enrollment_code("--device-id", "pibook-2"))
    newcomer.command("sync")
    with Proof(receiver) as proof:
        proof.check_whole("pibook-2", notes)


def test_a_backup_taken_while_devices_send_is_one_moment(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    """Copies made in mid-delivery: each of them, restored, is whole as far as it goes, and becomes whole again."""
    notes: dict[Note, int] = {}
    agent.start()
    for number in range(3):
        notes |= record_lesson(agent, f"s-{number}", 1500, noise=100)
        receiver.command("backup", str(tmp_path / f"copy-{number}.db"))
    agent.command("sync")
    for number in (2, 0):
        restore(receiver, tmp_path / f"copy-{number}.db")
        with Proof(receiver) as proof:
            assert proof.completeness(DEVICE)["complete"]
            agent.command("sync")
            proof.check_whole(DEVICE, notes)


# The device


def test_a_cloned_card_loses_nothing_and_is_noticed(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    """Two devices with one identity and one queue: both go on, each event of both is stored once, an admin sees it."""
    before = record_lesson(agent, "before", 40)
    agent.command("sync")
    waiting = record_lesson(agent, "waiting", 10)
    with made_agent(tmp_path / "clone") as clone, Proof(receiver) as proof:
        shutil.copytree(agent.home, clone.home, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        shared = agent.status()["stream"]
        ours, theirs = record_lesson(agent, "ours", 30), record_lesson(clone, "theirs", 50)
        assert min(ours.values()) == min(theirs.values()), "they use the same numbers"
        agent.command("sync")
        assert receiver.json("devices")[0]["cloned_since"] is None

        noticed = clone.run("sync", "--json")
        assert noticed.returncode == 1
        assert json.loads(noticed.stdout)["rejected"] == len(ours)
        for device in (agent, clone):
            device.start()
        more = record_lesson(agent, "ours-later", 20) | record_lesson(clone, "theirs-later", 20)
        for device in (agent, clone):
            wait_until(lambda device=device: device.status()["waiting"] == 0, "it is delivered")  # type: ignore[misc]

        proof.check_each_once(DEVICE, Counter((before | waiting | ours | theirs | more).keys()))
        whole = proof.completeness(DEVICE)
        streams = {shared, agent.status()["stream"], clone.status()["stream"]}
        assert {stream["stream"] for stream in whole["streams"]} == streams
        assert len(streams) == 3, "each has gone on in one of its own"
        (seen,) = receiver.json("devices")
        assert seen["cloned_since"] == whole["cloned_since"]
        assert seen["cloned_since"] is not None
        assert seen["conflicts"] == sum(stream["conflicts"] for stream in whole["streams"]) >= len(ours)
        for device in (agent, clone):
            assert "a cloned card" in " ".join(device.command("status", code=(0, 1)).split())
