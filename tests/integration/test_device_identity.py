"""Devices as processes on machines of their own: enrolled by a file, copied, moved."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_agent.commands.status import collect
from tests.support.processes import AgentProcess, ReceiverProcess, wait_until

_ON_A_MACHINE = """
import sys
import pisync_agent.enrollment.machine as machine
serial = sys.argv.pop(1)
machine.read_machine = lambda: machine.Machine(board=serial)
from pisync_agent.__main__ import main
sys.exit(main())
"""
QUICK = ("--retry-base", "100ms", "--retry-cap", "500ms", "--sync-delay", "10ms")


class Device(AgentProcess):
    """An agent on a board with this serial number."""

    def __init__(self, home: Path, serial: str) -> None:
        super().__init__(home, *QUICK)
        self.program = (sys.executable, "-c", _ON_A_MACHINE, serial)

    def copy(self, home: Path, serial: str) -> "Device":
        """Its card, copied while nothing runs, on another board."""
        shutil.copytree(self.home, home, ignore=shutil.ignore_patterns("agent.sock"))
        return Device(home, serial)

    def look(self) -> dict[str, Any]:
        """What `status --json` prints while the service runs, without another process."""
        return collect(self.home)

    def delivered(self) -> bool:
        found = self.look()
        return bool(found["enrolled"]) and not found["waiting"]


class Cloud:
    """A receiver, asked over its API: each of its own commands would take a second."""

    def __init__(self, receiver: ReceiverProcess) -> None:
        self.receiver = receiver
        self._headers = {"Authorization": f"Bearer {receiver.admin_token()}"}

    @property
    def url(self) -> str:
        return self.receiver.url

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", headers=self._headers, timeout=60).raise_for_status().json()

    def code(self, **fields: object) -> str:
        answer = httpx.post(f"{self.url}/api/enrollment-codes", headers=self._headers, json=fields, timeout=60)
        return str(answer.raise_for_status().json()["code"])

    def learners(self, device_id: str) -> list[str | None]:
        """The learners of the events that it has of a device, in order."""
        return [row["learner_id"] for row in self.get(f"/api/events?device_id={device_id}")]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield Cloud(running)


@pytest.fixture
def devices() -> Iterator[list[Device]]:
    """Devices to end after the test."""
    made: list[Device] = []
    yield made
    for device in made:
        device.kill()


def test_three_cards_of_one_image_enroll_when_the_receiver_comes(
    cloud: Cloud, devices: list[Device], tmp_path: Path
) -> None:
    code = cloud.code(uses=3, site="Nakuru")
    file = tmp_path / "pisync-enroll.toml"
    file.write_text(f'receiver = "{cloud.url}"\ncode = "{code}"\nsite = "Nakuru"\ndevice_id = "pibook-{{serial}}"\n')
    image = Device(tmp_path / "image", "10000000aaaa0000")
    image.command("enroll-file", str(file))
    assert not file.exists()
    devices += [image.copy(tmp_path / f"card-{number}", f"10000000aaaa000{number}") for number in (1, 2, 3)]
    cloud.receiver.stop()
    for device in devices:
        device.start()
        device.record("note.taken", "--learner", device.home.name)
    wait_until(lambda: all(device.look()["enrollment"]["kind"] == "waiting" for device in devices), "they wait")
    cloud.receiver.start()
    wait_until(lambda: all(device.delivered() for device in devices), "all enroll and deliver")

    found = {row["device_id"]: row for row in cloud.get("/api/devices")}
    for number, device in enumerate(devices, 1):
        device_id = f"pibook-10000000aaaa000{number}"
        assert device.look()["device_id"] == device_id
        assert cloud.learners(device_id) == [device.home.name]
        assert (found[device_id]["site"], found[device_id]["cloned_since"]) == ("Nakuru", None)
        assert code not in device.log() + device.command("status") + device.command("config")
        assert code not in "".join(each.read_text("latin-1") for each in device.home.iterdir() if each.is_file())


def test_three_copies_of_a_sealed_card_are_three_devices(cloud: Cloud, devices: list[Device], tmp_path: Path) -> None:
    image = Device(tmp_path / "image", "10000000ffff0000")
    image.enroll(cloud.url, cloud.code(), device_id="golden")
    image.record("note.taken", "--learner", "test")
    assert image.run("seal", "--keep-machine-id", "--yes").returncode == 1
    image.command("seal", "--keep-machine-id", "--yes", "--discard-test-events")
    file = tmp_path / "pisync-enroll.toml"
    file.write_text(f'receiver = "{cloud.url}"\ncode = "{cloud.code(uses=3)}"\n')
    image.command("enroll-file", str(file))

    devices += [image.copy(tmp_path / f"copy-{number}", f"10000000ffff000{number}") for number in (1, 2, 3)]
    for device in devices:
        device.start()
        device.record("note.taken", "--learner", device.home.name)
    wait_until(lambda: all(device.delivered() for device in devices), "all enroll and deliver")

    found = {row["device_id"]: row for row in cloud.get("/api/devices")}
    for number, device in enumerate(devices, 1):
        device_id = f"pi-0000ffff000{number}"
        assert cloud.learners(device_id) == [device.home.name]
        assert found[device_id]["cloned_since"] is None
    assert cloud.learners("golden") == []


def test_a_refused_code_is_shown_and_a_corrected_file_enrolls(
    cloud: Cloud, devices: list[Device], tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", "10000000bbbb0001")
    devices.append(device)
    device.start()
    file = tmp_path / "pisync-enroll.toml"
    code = cloud.code(site="Kisumu")
    text = f'receiver = "{cloud.url}"\ncode = "{code}"\nsite = '
    file.write_text(f"{text}'Nakuru'")
    device.command("enroll-file", str(file))
    wait_until(lambda: device.look()["enrollment"]["kind"] == "refused", "the refusal is shown")
    shown = device.command("status", code=4)
    assert "Kisumu" in shown
    assert "Nakuru" in shown
    device.record()

    file.write_text(f"{text}'Kisumu'")
    device.command("enroll-file", str(file))
    wait_until(device.delivered, "it enrolls")
    assert device.look()["enrollment"] == {"kind": "enrolled", "detail": ""}


def test_a_card_in_another_machine_records_and_waits_for_a_decision(
    cloud: Cloud, devices: list[Device], tmp_path: Path
) -> None:
    original = Device(tmp_path / "original", "10000000cccc0001")
    devices.append(original)
    original.enroll(cloud.url, cloud.code(), device_id="pibook-c1")
    original.record("note.taken", "--learner", "delivered")
    original.command("sync")
    original.record("note.taken", "--learner", "pending when it was copied")
    copy, moved = (original.copy(tmp_path / name, f"10000000cccc{name}") for name in ("0002", "0003"))
    devices += [copy, moved]
    for device in (copy, moved):
        device.start()
        device.record("note.taken", "--learner", device.home.name)
        refused = device.run("sync")
        assert refused.returncode == 4
        assert "--moved" in refused.stderr
        assert "--new-device" in refused.stderr
        found = device.look()
        assert (found["enrolled"], found["enrollment"]["kind"], found["waiting"]) == (False, "moved", 2)
    assert cloud.learners("pibook-c1") == ["delivered"]

    # A copy becomes a device of its own, and leaves to the original what that has too.
    copy.enroll(cloud.url, cloud.code(), "--new-device")
    wait_until(copy.delivered, "the copy delivers")
    assert copy.look()["device_id"] == "pi-0000cccc0002"
    assert cloud.learners("pi-0000cccc0002") == ["0002"]
    original.command("sync")
    assert cloud.learners("pibook-c1") == ["delivered", "pending when it was copied"]
    assert cloud.get("/api/devices/pi-0000cccc0002/completeness")["complete"]
    assert cloud.get("/api/devices/pibook-c1/completeness")["cloned_since"] is None
    assert any(name.name.endswith(".db") and name.name != "outbox.db" for name in copy.home.iterdir())

    # A moved card goes on as it was.
    moved.command("enroll", "--moved")
    wait_until(moved.delivered, "the moved card delivers")
    assert moved.look()["device_id"] == "pibook-c1"
    assert cloud.learners("pibook-c1").count("0003") == 1


def test_an_identity_of_an_earlier_version_is_bound_without_a_word(
    cloud: Cloud, devices: list[Device], tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", "10000000dddd0001")
    devices.append(device)
    device.enroll(cloud.url, cloud.code(), device_id="pibook-d1")
    file = device.home / "identity.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if name not in ("machine", "others")}
    file.write_text(json.dumps(old))
    device.record()
    device.command("sync")

    assert device.status()["enrollment"] == {"kind": "enrolled", "detail": ""}
    assert json.loads(file.read_text())["machine"].keys() == {"board"}
    assert device.copy(tmp_path / "copy", "10000000dddd0002").status()["enrollment"]["kind"] == "moved"


def test_another_id_begins_another_stream(cloud: Cloud, devices: list[Device], tmp_path: Path) -> None:
    device = Device(tmp_path / "device", "10000000eeee0001")
    devices.append(device)
    device.enroll(cloud.url, cloud.code(), device_id="pibook-e1")
    device.record("note.taken", "--learner", "first")
    device.command("sync")
    device.record("note.taken", "--learner", "second")
    device.enroll(cloud.url, cloud.code(), "--again", device_id="pibook-e2")
    device.command("sync")

    assert cloud.learners("pibook-e1") == ["first"]
    assert cloud.learners("pibook-e2") == ["second"]
    assert cloud.get("/api/devices/pibook-e2/completeness")["complete"]
