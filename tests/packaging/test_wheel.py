"""The built wheel in fresh environments: with the agent's extra, with the receiver's, and bare."""

import os
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LOCKS: Final = {"agent": "requirements-agent.lock", "receiver": "requirements-receiver.lock", "bare": None}
Run = Callable[..., subprocess.CompletedProcess[str]]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    (built,) = folder.glob("pisync-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that installs the wheel beside what a lock names, once for each."""

    @cache
    def install(extra: str) -> Path:
        folder = tmp_path_factory.mktemp(extra)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        if lock := LOCKS[extra]:
            pip("--python", str(folder), "install", "--require-hashes", "--no-deps", "-r", lock)
        pip("--python", str(folder), "install", "--no-index", "--no-deps", str(wheel))
        return folder

    return install


@pytest.fixture
def run(environment: Callable[[str], Path], tmp_path: Path) -> Run:
    def run(extra: str, *command: str) -> subprocess.CompletedProcess[str]:
        home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PISYNC_AGENT_HOME": str(tmp_path / "agent")}
        program, *arguments = command
        return subprocess.run(
            [str(environment(extra) / "bin" / program), *arguments],
            cwd=tmp_path, env=home, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    folders = [ROOT / "agent", ROOT / "receiver", ROOT / "common"]
    files = {
        str(path.relative_to(folder))
        for folder in folders
        for path in folder.glob("pisync_*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        extras = [row.partition(": ")[2] for row in archive.read(metadata).decode().splitlines() if "Provides" in row]

    assert names == files
    assert sorted(extras) == ["agent", "alerts", "broker", "export", "oidc", "postgres", "receiver", "redis"]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("agent", ["pisync", "--help"]),
        ("agent", ["pisync", "record", "video.watched"]),
        ("agent", ["pisync", "status"]),
        ("receiver", ["pisync-receiver", "--help"]),
        ("receiver", ["pisync-receiver", "config"]),
    ],
)
def test_a_command_works_with_its_extra(run: Run, extra: str, command: list[str]) -> None:
    done = run(extra, *command)

    assert done.returncode in {0, 4}, done.stderr  # 4: a device that is not enrolled
    assert done.stdout


def test_the_receiver_serves_with_its_extra(environment: Callable[[str], Path], tmp_path: Path) -> None:
    command = [str(environment("receiver") / "bin/pisync-receiver"), "serve", "--port", "0"]
    with subprocess.Popen(command, env={"HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        with urllib.request.urlopen(f"{url}/readyz") as answer:
            assert answer.status == 200
        process.terminate()


@pytest.mark.parametrize(
    ("extra", "command", "missing"),
    [
        ("agent", ["pisync-receiver", "serve"], "receiver"),
        ("agent", ["pisync-receiver", "devices"], "receiver"),
        ("receiver", ["pisync", "sync"], "agent"),
        ("receiver", ["pisync-receiver", "migrate", "--database-url", "postgresql://127.0.0.1:1/x"], "postgres"),
        ("bare", ["pisync", "sync"], "agent"),
        ("bare", ["pisync-receiver", "serve"], "receiver"),
    ],
)
def test_a_command_without_its_extra_names_it_in_a_line(run: Run, extra: str, command: list[str], missing: str) -> None:
    done = run(extra, *command)

    (line,) = done.stderr.splitlines()
    assert done.returncode in {1, 2}
    assert "extra" in line
    assert missing in line.removeprefix(f"{command[0]}: ")
    assert "not installed" in line
    assert "pip install" not in line


@pytest.mark.parametrize("extra", LOCKS)
@pytest.mark.parametrize("program", ["pisync", "pisync-receiver"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["config"]])
def test_no_environment_meets_a_traceback(run: Run, extra: str, program: str, arguments: list[str]) -> None:
    assert "Traceback" not in run(extra, program, *arguments).stderr
