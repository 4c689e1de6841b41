"""A member of the agent's group, under the shipped rights: looks through the service, without what learners did."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pisync_agent.service import history, views
from pisync_common.unix_socket import LineClient
from tests.support.outboxes import event, opened, receipt
from tests.support.processes import DEADLINE_SECONDS, wait_until
from tests.support.services import missing, root

AGENT, MEMBER, OTHER = 54_400, 54_401, 54_402
ROOT = Path(__file__).parents[2]
SECRETS = ("s-17", "math/g5", "pad", "learner_id", "object_id", "body")


class Device:
    """A folder of the agent's user, as the unit makes it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.python = next(filter(self._runs, (sys.executable, "/usr/bin/python3")), "")
        self.service: subprocess.Popen[bytes] | None = None

    def _runs(self, python: str) -> bool:
        """Whether another user can run the agent with this interpreter."""
        try:
            done = subprocess.run(
                [python, "-c", "import pisync_agent.service.service"], env=self.environ, cwd="/", user=MEMBER,
                group=MEMBER, extra_groups=[], capture_output=True, check=False,
            )  # fmt: skip
        except OSError:
            return False
        return done.returncode == 0

    def own(self) -> None:
        """Give everything to the agent's user, readable by that user alone."""
        for path in (self.home, *self.home.iterdir()):
            path.chmod(0o750 if path.is_dir() else 0o600)
            os.chown(path, AGENT, AGENT)

    def command(self, *words: str) -> list[str]:
        return [self.python, "-m", "pisync_agent", *words]

    @property
    def environ(self) -> dict[str, str]:
        path = [ROOT / "agent", ROOT / "common", *(Path(each) for each in sys.path if each.endswith("site-packages"))]
        return {"PISYNC_AGENT_HOME": str(self.home), "PYTHONPATH": os.pathsep.join(map(str, path)), "PATH": os.defpath}

    def start(self) -> None:
        self.service = subprocess.Popen(
            self.command("run"), env=self.environ, cwd="/", user=AGENT, group=AGENT, extra_groups=[], umask=0o077,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._listens, "the service listens")

    def _listens(self) -> bool:
        try:
            LineClient(self.home / "agent.sock", timeout=DEADLINE_SECONDS).close()
        except OSError:  # not there yet, or bound and not listening yet
            return False
        return True

    def stop(self) -> None:
        if self.service is not None:
            self.service.terminate()
            self.service.wait(DEADLINE_SECONDS)
            self.service = None

    def run(
        self, *words: str, user: int = MEMBER, groups: Sequence[int] = (AGENT,)
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words), env=self.environ, cwd="/", user=user, group=user, extra_groups=groups,
            capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS,
        )  # fmt: skip


@pytest.fixture
def device() -> Iterator[Device]:
    """A device with 3 events delivered, of which event 2 was rejected, and 250 pending."""
    root("acting as several users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    made = Device(folder)
    if not made.python:
        shutil.rmtree(folder)
        missing("no other user can run the agent from here")
    outbox = opened(made.home)
    outbox.append([event(number, size=100) for number in range(253)])
    outbox.settle(receipt(outbox, 3, rejected=[(2, "invalid_event")]), [1, 2, 3])
    outbox.close()
    (made.home / "identity.json").write_text(
        '{"url": "https://192.0.2.1", "device_id": "pi-1", "token": "psd_secret", "ca_file": null}'
    )
    made.own()
    yield made
    made.stop()
    shutil.rmtree(folder)


def test_a_member_sees_the_status_and_the_queue(device: Device) -> None:
    device.start()
    found = json.loads(device.run("status", "--json").stdout)
    listed = device.run("queue", "list", "--all", "--limit", "1000", "--json")
    text = device.run("queue", "list", "--limit", "2").stdout
    dead = device.run("queue", "dead", "--json")
    dead_text = device.run("queue", "dead").stdout

    assert (found["device_id"], found["enrolled"], found["waiting"], found["dead"]) == ("pi-1", True, 250, 1)
    assert (found["service"], found["outbox_fault"]) == (True, None)
    assert [row["seq"] for row in json.loads(listed.stdout)] == list(range(1, 254)), "several pages"
    assert json.loads(listed.stdout)[1]["state"] == "dead"
    assert {"seq", "state", "type", "occurred_at", "bytes"} == json.loads(listed.stdout)[0].keys()
    assert [line.split()[0] for line in text.splitlines()] == ["4", "5", "…"]
    (letter,) = json.loads(dead.stdout)
    assert (letter["seq"], letter["code"], letter["detail"]) == (2, "invalid_event", "because")
    assert "2  invalid_event: because" in dead_text
    for output in (json.dumps(found), listed.stdout, text, dead.stdout, dead_text):
        assert not any(secret in output for secret in (*SECRETS, "psd_secret"))


@pytest.mark.parametrize("running", [True, False], ids=["service", "no service"])
def test_root_and_the_agents_user_see_the_same_status(device: Device, running: bool) -> None:
    device.own()
    if running:
        device.start()
    asked = {user: device.run("status", "--json", user=user, groups=()) for user in (0, AGENT)}
    if running:
        asked[MEMBER] = device.run("status", "--json")

    shown = [json.loads(done.stdout) for done in asked.values()]
    for name in ("stream", "waiting", "dead", "delivered", "last_seq", "salvaged", "enrolled", "service", "home"):
        assert len({json.dumps(each[name]) for each in shown}) == 1, name
    assert (shown[0]["waiting"], shown[0]["dead"], shown[0]["service"]) == (250, 1, running)
    assert {path.stat().st_uid for path in device.home.iterdir()} == {AGENT}, "root leaves no file of its own"


def test_a_member_sees_the_last_runs(device: Device) -> None:
    for number in range(1, 151):
        history.append(device.home, {"at_ms": number, "delivered": number})
    device.own()
    device.start()

    done = device.run("history", "--json", "--limit", "120")

    assert [run["delivered"] for run in json.loads(done.stdout)] == list(range(150, 30, -1)), done.stderr
    assert device.run("history", user=OTHER, groups=()).returncode == 5


def test_a_member_may_not_read_an_event_and_is_sent_to_the_agents_user(device: Device) -> None:
    device.start()
    done = device.run("queue", "show", "5")
    mine = device.run("queue", "show", "5", user=AGENT)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert f"sudo -u '#{AGENT}' pisync" in done.stderr
    assert "join its group" not in done.stderr
    assert json.loads(mine.stdout)["learner_id"] == "s-17"


def test_a_record_of_a_member_says_that_the_service_is_stopped(device: Device) -> None:
    done = device.run("record", "note.taken")

    assert (done.returncode, done.stdout) == (5, "")
    assert "is not running, and without it only its user" in done.stderr
    assert "nothing was recorded. Start it: sudo systemctl start pisync-agent" in done.stderr


def test_a_member_is_shown_no_numbers_of_a_service_that_does_not_answer(device: Device) -> None:
    device.start()
    assert device.service is not None
    device.service.send_signal(signal.SIGSTOP)
    try:
        shown, found = device.run("status"), device.run("status", "--json")
    finally:
        device.service.send_signal(signal.SIGCONT)

    assert (shown.returncode, found.returncode) == (5, 5)
    assert json.loads(found.stdout)["disk"]["outbox_bytes"] is None
    assert "unknown: the service does not answer" in shown.stdout
    assert "in the outbox" not in shown.stdout


@pytest.mark.parametrize("words", [("status",), ("queue", "list"), ("queue", "dead"), ("queue", "show", "5")])
def test_without_a_service_the_member_learns_whom_to_ask(device: Device, words: tuple[str, ...]) -> None:
    done = device.run(*words)

    assert (done.returncode, done.stdout) == (5, "")
    assert f"sudo -u '#{AGENT}' pisync" in done.stderr
    assert "start the service" in done.stderr
    for wrong in ("join its group", "salvage", "not enrolled"):
        assert wrong not in done.stderr


@pytest.mark.parametrize("words", [("status",), ("queue", "list"), ("sync",), ("record", "a.b")])
def test_another_user_learns_to_join_the_group(device: Device, words: tuple[str, ...]) -> None:
    device.start()
    done = device.run(*words, user=OTHER, groups=())

    assert (done.returncode, done.stdout) == (5, "")
    assert "join its group" in done.stderr
    assert "salvage" not in done.stderr


def test_the_service_bounds_its_pages(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(number) for number in range(250)])
    for seq in range(1, 251):
        outbox.move_to_dead_letters(seq, "too_large", "x" * 4000)
    outbox.close()
    for what in ("events", "dead"):
        page = views.answer(tmp_path, None, {"what": what, "limit": 10**9, "all": True})["rows"]
        rest = views.answer(tmp_path, None, {"what": what, "after": 200, "all": True})["rows"]
        assert [row["seq"] for row in page] == list(range(1, views.PAGE + 1))
        assert [row["seq"] for row in rest] == list(range(201, 251))
        assert len(json.dumps(page)) < 100_000


def test_the_doctor_shows_each_user_what_that_user_may_see(device: Device) -> None:
    def seen(user: int, groups: Sequence[int]) -> dict[str, str]:
        done = device.run("doctor", "--json", user=user, groups=groups)
        assert not [secret for secret in (*SECRETS[:3], "psd_secret") if secret in done.stdout]
        return {each["check"]: f"{each['verdict']}: {each['summary']}" for each in json.loads(done.stdout)["findings"]}

    device.start()
    agent, member, other = seen(AGENT, []), seen(MEMBER, [AGENT]), seen(OTHER, [])

    assert agent["outbox"].startswith("ok: sound")
    assert {found["enrollment"] for found in (agent, member)} == {"ok: enrolled as pi-1 at https://192.0.2.1"}
    assert member["outbox"] == "skipped: not checked: only the agent's user may read the file: sudo pisync doctor"
    assert member["rejected"].startswith("bad: 1 event was rejected")
    assert agent["service"].startswith("ok: running")
    assert other["service"] == "skipped: not checked: this user may not ask it: sudo pisync doctor"
    assert other["socket"].startswith("warn: This user may not use the service")
    assert other["enrollment"].startswith("skipped")
