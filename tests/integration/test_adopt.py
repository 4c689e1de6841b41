"""`pisync adopt` with real processes: killed in the middle, repeated, whole at the receiver; folders of other users."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from pisync_agent.commands.adopt import set_aside
from pisync_agent.outbox import files
from tests.support.outboxes import bodies, deliver, events, opened
from tests.support.processes import AgentProcess, ReceiverProcess
from tests.support.proof import Proof
from tests.support.services import missing, root
from tests.support.small_disk import read_only_view

EVENTS, DELIVERED = 20_000, 10_000
SERVICE, USER = 54_410, 54_411
ROOT = Path(__file__).parents[2]
PATHS = {
    "PYTHONPATH": os.pathsep.join(
        [str(ROOT / "agent"), str(ROOT / "common"), *(each for each in sys.path if each.endswith("site-packages"))]
    )
}

_ADOPT_AND_KILL = """
import os, signal, sys
from pisync_agent.commands import cli
from pisync_agent.recorder import Recorder
source, number, pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
record_many, calls = Recorder.record_many, 0
def record_and_kill(self, *arguments, **more):
    global calls
    results = record_many(self, *arguments, **more)
    calls += 1
    if calls == number:
        os.kill(pid or os.getpid(), signal.SIGKILL)
    return results
Recorder.record_many = record_and_kill
sys.exit(cli.main(["adopt", source, "--json"]))
"""
"""Adopt; after a number of groups kill another process, or itself, when the group is stored and its answer not used."""


def adopt_and_kill(agent: AgentProcess, source: Path, groups: int, pid: int = 0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _ADOPT_AND_KILL, str(source), str(groups), str(pid)],
        env=agent.environ(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_twenty_thousand_events_arrive_once_whatever_is_killed(tmp_path: Path) -> None:
    source = tmp_path / "old"
    with closing(opened(source)) as outbox:
        for first in range(1, EVENTS + 1, 1000):
            outbox.append(events(1000, first=first))
        deliver(outbox, DELIVERED)
        before = {row["data"]["n"]: row for row in map(json.loads, bodies(outbox, DELIVERED))}
        stream = outbox.stream
    with ReceiverProcess(tmp_path / "receiver") as receiver, AgentProcess(tmp_path / "device") as agent:
        agent.enroll(receiver.url, receiver.enrollment_code(), device_id="pibook-1")
        agent.start("--sync-delay", "1h")

        killed = adopt_and_kill(agent, source, 3)
        assert killed.returncode == -signal.SIGKILL
        assert agent.status()["last_seq"] == 3000
        # Now the service is killed, and the command goes on without it.
        finished = adopt_and_kill(agent, source, 6, agent.pid)
        assert finished.returncode == 0, finished.stderr
        found = json.loads(finished.stdout)
        agent.kill()
        agent.start()

        assert (found["adopted"], found["adopted_before"]) == (EVENTS - DELIVERED - 3000, 3000)
        agent.command("sync")
        with Proof(receiver) as proof:
            stored = proof.events("pibook-1")
            assert Counter(row["data"]["n"] for row in stored) == Counter(range(DELIVERED + 1, EVENTS + 1))
            assert proof.completeness("pibook-1")["complete"]
    names = ("type", "learner_id", "object_id", "occurred_at", "boot_id", "boottime_ms", "data")
    for row in stored:
        one = before[row["data"]["n"]]
        assert [row.get(name) for name in names] == [one.get(name) for name in names]
    assert {row["stream"] for row in stored} != {stream}


def test_a_read_only_card_is_adopted_where_it_is(tmp_path: Path) -> None:
    """With a log that holds its newest events, and that nothing may write back."""
    root("mounting")
    source = tmp_path / "card"
    agent = AgentProcess(tmp_path / "device")
    with closing(opened(tmp_path / "old")) as outbox:
        outbox.append(events(10))
        shutil.copytree(tmp_path / "old", source)
    with read_only_view(source, tmp_path / "view") as card:
        found = agent.json("adopt", str(card))

    assert (found["adopted"], found["moved_to"], found["whole"]) == (10, None, True)
    assert agent.status()["waiting"] == 10


def python_for(user: int) -> str:
    """Return an interpreter that a user can run; root's own may be in a folder of root's."""
    for python in (sys.executable, "/usr/bin/python3"):
        words = [python, "-c", "import pisync_agent.recorder"]
        with suppress(OSError):
            if not subprocess.run(words, env=PATHS, cwd="/", user=user, capture_output=True, check=False).returncode:
                return python
    return missing("no interpreter here can be run by another user")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_root_adopts_a_users_folder_and_owns_nothing_in_the_services(open_folder: Path) -> None:
    """Without the service, and with it."""
    root("acting as two users")
    home = open_folder / "service"
    home.mkdir()
    os.chown(home, SERVICE, SERVICE)
    agent = AgentProcess(home, environ=PATHS)
    agent.program = (python_for(SERVICE), *agent.program[1:])
    with agent:
        for number in (1, 2):
            source = open_folder / f"user-{number}"
            with closing(opened(source)) as outbox:
                outbox.append(events(3))
            for file in (*source.iterdir(), source):
                os.chown(file, USER, USER)
                file.chmod(0o700)

            found = agent.json("adopt", str(source))

            assert (found["adopted"], found["moved_to"]) == (3, f"{source}-adopted")
            if number == 1:
                agent.start()
        assert agent.status()["waiting"] == 6
        assert {file.stat().st_uid for file in home.iterdir()} == {SERVICE}


def test_root_renames_the_adopted_folder_and_no_other(open_folder: Path) -> None:
    """A user puts a link to a folder of root's into the path, while root reads the user's outbox."""
    root("attacking root")
    source, roots = open_folder / "user" / "share" / "pisync", open_folder / "etc" / "pisync"
    for folder in (source, roots):
        folder.mkdir(parents=True)
    for folder in (source.parent.parent, source.parent, source):
        os.chown(folder, USER, USER)
    adopted = files.identity(source)
    source.parent.rename(source.parent.with_name("away"))
    source.parent.symlink_to(roots.parent)

    assert set_aside(source, adopted) is None
    assert [each.name for each in roots.parent.iterdir()] == ["pisync"]

    source.parent.unlink()
    source.parent.with_name("away").rename(source.parent)
    assert set_aside(source, adopted) == f"{source}-adopted"


def test_root_has_the_rights_of_the_folders_owner_to_rename_it(open_folder: Path) -> None:
    """A user moves another's folder, such as the agent's own, to where root renames it."""
    root("attacking root")
    shared = open_folder / "shared"
    (shared / "pisync").mkdir(parents=True)
    os.chown(shared, USER, USER)
    shared.chmod(0o500)

    assert set_aside(shared / "pisync", files.identity(shared / "pisync")) is None
    assert [each.name for each in shared.iterdir()] == ["pisync"]
