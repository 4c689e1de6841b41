"""The first hour: commands and the service mean one database, before the first start too, as any user; and its guide
leads from an empty server to a page with a school on it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.postgres import fresh_database, needs_postgres
from tests.support.processes import AgentProcess, ReceiverProcess
from tests.support.services import installed, missing, root

ROOT = Path(__file__).parents[2]
OWNER = 54_321
"""An account of the service's own."""
AS_OWNER = ("setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups")
PROGRAM = (sys.executable, "-m", "pisync_receiver")


class School:
    """A folder for settings, one for the database, and a home of the person who types."""

    def __init__(self, folder: Path, *, database_url: str | None = None) -> None:
        self.state = folder / "state"
        self.home = folder / "home"
        self.home.mkdir()
        self.toml = folder / "receiver.toml"
        self.url = database_url or f"sqlite:///{self.state / 'receiver.db'}"
        self.toml.write_text(f'database_url = "{self.url}"\n')
        self.toml.chmod(0o644)
        self.environ: Mapping[str, str] = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("common", "agent", "receiver")),
            "PISYNC_RECEIVER_CONFIG": str(self.toml),
        }

    def run(self, *arguments: str, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
        command = [*prefix, *PROGRAM, *arguments]
        return subprocess.run(
            command, env=self.environ, cwd=self.home, capture_output=True, text=True, timeout=60, check=False
        )

    def token(self, *, prefix: Sequence[str] = ()) -> str:
        done = self.run("token", "create", "--scope", "admin", prefix=prefix)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def serving(self, *, prefix: Sequence[str] = ()) -> Iterator[str]:
        """Serve with the settings of the file; the address."""
        command = [*prefix, *PROGRAM, "serve", "--port", "0"]
        log = self.home / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command, env=self.environ, cwd=self.home, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                found = re.match(r"listening on (\S+)", process.stdout.readline())
                assert found, log.read_text()
                yield found[1]
            finally:
                process.send_signal(signal.SIGTERM)

    def databases(self) -> list[Path]:
        return [file for folder in (self.state, self.home) for file in folder.rglob("*.db")]


def status(url: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{url}/api/devices", headers=headers, trust_env=False, timeout=60).status_code


def test_tokens_from_before_and_after_the_first_start_work(tmp_path: Path) -> None:
    school = School(tmp_path)
    school.state.mkdir(mode=0o700)
    first = school.run("token", "create", "--scope", "admin")
    assert f"making {school.state / 'receiver.db'}" in first.stderr
    with school.serving() as url:
        assert [status(url, token) for token in (first.stdout.strip(), school.token())] == [200, 200]
    with school.serving() as url:
        assert status(url, first.stdout.strip()) == 200
    assert school.databases() == [school.state / "receiver.db"]


def test_an_enrollment_code_from_before_the_first_start_works(tmp_path: Path) -> None:
    school = School(tmp_path)
    school.state.mkdir(mode=0o700)
    code = school.run("enrollment", "create").stdout.strip()
    with school.serving() as url:
        body = {"code": code, "device_id": "pibook-1"}
        assert httpx.post(f"{url}/api/enroll", json=body, trust_env=False, timeout=60).status_code == 201


@pytest.mark.parametrize("command", [("token", "create", "--scope", "admin"), ("enrollment", "create"), ("devices",)])
def test_no_command_makes_a_database_at_the_default_place(tmp_path: Path, command: tuple[str, ...]) -> None:
    school = School(tmp_path)
    school.toml.write_text("")
    done = school.run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "receiver.toml" in done.stderr
    assert list(school.home.rglob("*")) == []


@needs_postgres
def test_a_token_from_before_the_first_start_works_on_postgresql(tmp_path: Path) -> None:
    with fresh_database() as database:
        school = School(tmp_path, database_url=database)
        token = school.token()
        with school.serving() as url:
            assert [status(url, token), status(url, school.token())] == [200, 200]


def test_a_second_receiver_says_which_one_serves(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path / "receiver") as first:
        second = first.run("serve", "--port", "0")
    assert (second.returncode, second.stdout) == (1, "")
    assert re.search(r"in use by pisync-receiver serve \(process \d+\); nothing was changed", second.stderr)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's are not, where this test can be two users."""
    root("being two users")
    installed("setpriv")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_root_leaves_files_that_the_service_can_use(open_folder: Path) -> None:
    school = School(open_folder)
    school.state.mkdir(mode=0o700)
    os.chown(school.state, OWNER, OWNER)
    school.home.chmod(0o777)
    if school.run("--version", prefix=AS_OWNER).returncode:
        missing("another user cannot run this Python")
    tokens = [school.token()]
    assert owners(school) == {OWNER}
    with school.serving(prefix=AS_OWNER) as url:
        tokens += [school.token(), school.token(prefix=AS_OWNER)]
        assert [status(url, token) for token in tokens] == [200] * 3
    tokens.append(school.token())
    assert school.run("migrate").returncode == 0
    with school.serving(prefix=AS_OWNER) as url:
        assert [status(url, token) for token in tokens] == [200] * 4
    assert owners(school) == {OWNER}
    assert school.databases() == [school.state / "receiver.db"]


def test_root_makes_no_folder(tmp_path: Path) -> None:
    school = School(tmp_path)
    done = school.run("token", "create", "--scope", "admin")
    assert (done.returncode, done.stdout) == (1, "")
    assert "install -d -m 700 -o pisync-receiver" in done.stderr
    assert not school.state.exists()


def owners(school: School) -> set[int]:
    return {file.stat().st_uid for file in school.state.rglob("*")}


# The guide


GUIDE = ROOT / "docs/first-hour.md"
ADDRESS = "https://pisync.example.org"


def guided_lines() -> list[str]:
    """Return each line of the guide's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_guide_leads_to_a_page_with_a_school_on_it(tmp_path: Path) -> None:
    printed: dict[str, str] = {"token": "", "enrollment": "CODE"}
    with ReceiverProcess(tmp_path / "receiver") as receiver, AgentProcess(tmp_path / "device") as agent:
        for line in guided_lines():
            sudo, program, *arguments = shlex.split(
                line.replace(ADDRESS, receiver.url).replace("CODE", printed["enrollment"])
            )
            assert sudo == "sudo"
            if program == "apt":  # the packages start their services; their own tests are in tests/packaging
                if "agent" in line:
                    agent.start()
            else:
                called = receiver if program == "pisync-receiver" else agent
                printed[arguments[0]] = called.command(*arguments).strip()
        with signed_in(receiver.url, printed["token"]) as visitor:
            paths = ("/", "/sites", "/sites/Hill%20School", "/devices/pibook-0001")
            seen = {path: visitor.get(path).text for path in paths}

    assert "Hill School" in printed["sites"]
    assert "complete" in printed["completeness"]
    assert "No site needs help" in seen["/"]
    assert "Hill School" in seen["/sites"]
    assert "Every device is well" in seen["/sites/Hill%20School"]
    assert "Complete: 1 event of 1" in seen["/devices/pibook-0001"]


@contextmanager
def signed_in(url: str, token: str) -> Iterator[httpx.Client]:
    """A browser of sorts, signed in with a token."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60, headers={"Accept": "text/html"}) as visitor:
        answer = visitor.post("/sign-in", data={"token": token, "next": "/"})
        assert (answer.status_code, answer.headers.get("Location")) == (303, "/"), answer.text
        yield visitor
