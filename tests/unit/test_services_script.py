"""scripts/services reports what is skipped, installs and starts what it may, and requires every service in CI."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port

SCRIPT = Path(__file__).parents[2] / "scripts/services"
TOOLS = ("bash", "sort", "tail", "find", "sleep", "tr")
STARTS = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"


class Machine:
    """A machine with a shell, the programs that a test adds, and a record of calls."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)
        self.ports: dict[str, int] = {}
        self.sockets: list[socket.socket] = []

    def has(self, *programs: str, script: str = "") -> None:
        for program in programs:
            file = self.bin / program
            file.write_text(f'#!{self.bin / "bash"}\necho "{program} $*" >>{self.calls}\n{script}\n')
            file.chmod(0o755)

    def listens(self, name: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.sockets.append(listener)
        self.ports[name] = listener.getsockname()[1]

    def run(self, **environ: str) -> subprocess.CompletedProcess[str]:
        addresses = {
            "PISYNC_TEST_POSTGRES": f"postgresql://postgres@127.0.0.1:{self.ports.get('postgres', 1)}/postgres",
            "PISYNC_TEST_REDIS": f"redis://127.0.0.1:{self.ports.get('redis', 1)}/0",
            "PISYNC_TEST_RABBITMQ": f"amqp://guest:guest@127.0.0.1:{self.ports.get('rabbitmq', 1)}/",
        }
        return subprocess.run(
            [str(self.bin / "bash"), str(SCRIPT)],
            env={"PATH": str(self.bin)} | addresses | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    for listener in made.sockets:
        listener.close()


def test_answering_services_are_not_reported(machine: Machine) -> None:
    for name in ("postgres", "redis", "rabbitmq"):
        machine.listens(name)
    done = machine.run()
    assert done.returncode == 0
    assert " answers at " not in done.stdout


def test_missing_services_are_reported_without_failing(machine: Machine) -> None:
    machine.has("apt-get", "redis-server")
    machine.listens("postgres")
    done = machine.run()
    assert done.returncode == 0
    assert "no Redis answers at 127.0.0.1:1, so these are skipped: the cases of the cache on Redis" in done.stdout
    assert "sudo apt install rabbitmq-server" in done.stdout
    assert "PostgreSQL" not in done.stdout.replace("tests/postgres", "")
    assert machine.called() == []


def test_ci_installs_missing_services_and_fails_if_one_stays_silent(machine: Machine) -> None:
    machine.has("id", script="echo 0")
    machine.has("apt-get")
    machine.has("rabbitmq-server", script="exit 1")
    machine.listens("postgres")
    machine.listens("redis")
    done = machine.run(CI="true")
    assert done.returncode == 1
    (install,) = (call for call in machine.called() if call.startswith("apt-get"))
    assert "--no-install-recommends" in install
    assert "prometheus" in install
    assert "postgresql" not in install
    assert "RabbitMQ could not be started" in done.stdout
    assert "no RabbitMQ answers at 127.0.0.1:1" in done.stdout
    assert "this is a failure" in done.stderr


def test_ci_without_root_reports_and_fails(machine: Machine) -> None:
    machine.has("id", script="echo 1000")
    machine.has("apt-get")
    machine.has("redis-server", "rabbitmq-server", "pg_ctlcluster", script="exit 1")
    done = machine.run(CI="true")
    assert done.returncode == 1
    assert "that takes root" in done.stdout
    assert not any(call.startswith("apt-get") for call in machine.called())


def test_installed_service_is_started(machine: Machine) -> None:
    machine.listens("postgres")
    machine.listens("rabbitmq")
    machine.ports["redis"] = free_port()
    code = STARTS.format(port=machine.ports["redis"])
    machine.has("redis-server", script=f'{sys.executable} -c "{code}" >/dev/null 2>&1 & echo $! >{machine.calls}.pid')
    try:
        done = machine.run(PISYNC_TEST_SERVICES="install")
    finally:
        os.kill(int(Path(f"{machine.calls}.pid").read_text()), signal.SIGKILL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting Redis" in done.stdout
