"""`serve` as a process: what it refuses to begin, what it says the first time, and its unit files."""

import json
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.devices import MadeUpDevice
from tests.support.processes import ReceiverProcess
from tests.support.services import installed


@pytest.fixture
def idle(tmp_path: Path) -> ReceiverProcess:
    """A receiver that does not serve, and has no database yet."""
    return ReceiverProcess(tmp_path / "receiver")


def get(receiver: ReceiverProcess, path: str, token: str) -> httpx.Response:
    return httpx.get(receiver.url + path, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60)


class TestServeRefuses:
    def test_auth_off_beyond_loopback(self, idle: ReceiverProcess) -> None:
        done = idle.run("serve", "--auth", "off", "--host", "0.0.0.0", "--port", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert "could read and write everything" in done.stderr

    def test_auth_off_on_loopback_lets_anyone_ask(self, tmp_path: Path) -> None:
        with ReceiverProcess(tmp_path, "--auth", "off") as receiver:
            assert httpx.get(receiver.url + "/api/devices", trust_env=False).status_code == 200

    def test_an_unreachable_postgresql_without_showing_its_password(self, idle: ReceiverProcess) -> None:
        done = idle.run("serve", "--port", "0", "--database-url", "postgresql://ann:hunter2@127.0.0.1:9/pisync")
        assert (done.returncode, done.stdout) == (1, "")
        assert "cannot connect to postgresql://127.0.0.1:9/pisync" in done.stderr
        assert "hunter2" not in done.stderr

    def test_a_second_serve_on_one_database_and_says_who_holds_it(self, idle: ReceiverProcess) -> None:
        with idle as served:
            done = served.run("serve", "--port", "0")
            assert (done.returncode, done.stdout) == (1, "")
            assert f"in use by pisync-receiver serve (process {served.pid})" in done.stderr

    def test_a_port_that_is_taken(self, idle: ReceiverProcess) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = idle.run("serve", "--port", str(taken.getsockname()[1]))
        assert done.returncode == 1
        assert "cannot bind to 127.0.0.1" in done.stderr
        assert not idle.database.exists()

    def test_a_folder_that_cannot_be_made(self, idle: ReceiverProcess) -> None:
        (idle.home / "file").touch()
        done = idle.run("serve", "--port", "0", "--database-url", f"sqlite:///{idle.home}/file/x.db")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestFirstStart:
    def test_it_says_how_to_go_on_and_only_once(self, idle: ReceiverProcess) -> None:
        with idle:
            assert "token create --scope admin" in idle.log()
            assert "enrollment create" in idle.log()
        said = idle.log()
        with idle:
            pass
        assert "token create" not in idle.log().removeprefix(said)

    def test_what_it_makes_is_its_owners_alone(self, idle: ReceiverProcess) -> None:
        with idle:
            assert (idle.home / "receiver.db.sock").is_socket()
            for file in idle.home.glob("receiver.db*"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file

    def test_the_log_is_json_and_holds_no_secret(self, idle: ReceiverProcess) -> None:
        with idle:
            token = idle.admin_token()
            code = idle.enrollment_code()
            get(idle, f"/api/devices?token={token}", token)
            with MadeUpDevice(idle.url, code, device_id="pibook-1") as device:
                device.post_batch(device.events(3))
                device_token = device.token
            idle.stop()
        lines = idle.log().splitlines()
        assert [json.loads(line)["message"] for line in lines if line.startswith("{")]
        for secret in (token, code, device_token, "math/v1"):
            assert secret not in idle.log()


@pytest.mark.parametrize("name", ["pisync-receiver", "pisync-receiver@", "pisync-worker"])
def test_the_unit_file_is_understood_by_systemd(tmp_path: Path, name: str) -> None:
    verifier = installed("systemd-analyze")
    unit = Path(__file__).parents[2] / f"receiver/systemd/{name}.service"
    text = unit.read_text().replace("/usr/bin/pisync-receiver", shutil.which("true") or "/bin/true")
    copy = tmp_path / unit.name.replace("@.", "@1.")
    copy.write_text(text)
    done = subprocess.run(
        [verifier, "verify", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (done.returncode, done.stderr) == (0, "")
