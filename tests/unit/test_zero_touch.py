"""An enrollment file is taken up safely, and the service enrolls until it succeeds."""

import logging
import os
import shutil
import subprocess
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

import pisync_agent.identity as identities
from pisync_agent.commands.cli import main
from pisync_agent.enrollment import zero_touch
from pisync_agent.enrollment.enroll_file import EnrollFile, load_pending, store_pending
from pisync_agent.enrollment.machine import Machine
from pisync_agent.enrollment.state import PENDING, EnrollmentState, note_state, state_of
from pisync_agent.enrollment.zero_touch import IGNORED, REFUSED_S, ZeroTouch, take_up
from pisync_agent.errors import Refused, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.service.access import acting_as_owner
from pisync_agent.sync.retry import RetryPolicy
from pisync_common.errors import RuleError
from tests.support.processes import wait_until
from tests.support.services import installed, root

CODE = "9RTA-WW4Z-K7MQ-2XPD"
URL = "https://r.example"
TEXT = f'receiver = "{URL}"\ncode = "{CODE}"\n'
HERE = Machine(board="10000000a1b2c3d4")
WANTED = EnrollFile(receiver=URL, code=CODE, device_id="pibook-{serial}", site="Nakuru", also=("https://b.example",))


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    file = tmp_path / "boot" / "pisync-enroll.toml"
    file.parent.mkdir()
    file.write_text(TEXT)
    return file


def take(file: Path, home: Path) -> str:
    return take_up(file, home, HERE, as_owner=nullcontext)


def enroll(home: Path) -> Identity:
    identity = Identity(url=URL, device_id="mine", token="psd_x")
    identities.save(home, identity)
    return identity


# Taking it up


def test_the_file_is_stored_for_the_agent_alone_and_deleted(boot: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = take(boot, home)

    assert CODE not in said
    assert not boot.exists()
    assert (home / PENDING).stat().st_mode & 0o777 == 0o600
    assert load_pending(home) == EnrollFile(receiver=URL, code=CODE)
    assert state_of(home, HERE).kind == "waiting"


def test_it_is_stored_durably_before_it_is_deleted(boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, order = tmp_path / "home", []
    fsync, unlink = os.fsync, Path.unlink

    def note_sync(fd: int) -> None:
        order.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def note_deletion(path: Path, missing_ok: bool = False) -> None:
        order.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "unlink", note_deletion)
    take(boot, home)

    assert order[0].startswith(f".{PENDING}.")
    assert order.index("home") < order.index(boot.name)
    assert order[-1] == "boot"


def test_a_file_that_cannot_be_deleted_is_taken_up_and_named(
    boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, missing_ok: bool = False) -> None:
        if path == boot:
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", fails)
    said = take(boot, tmp_path / "home")

    assert "every user can read its code" in said
    assert load_pending(tmp_path / "home") is not None


def test_a_wrong_file_stays_and_its_fault_is_shown(boot: Path, tmp_path: Path) -> None:
    boot.write_text(f"{TEXT}sight = 'Nakuru'")
    with pytest.raises(RuleError, match="did you mean site"):
        take(boot, tmp_path)

    assert boot.exists()
    shown = state_of(tmp_path, HERE)
    assert shown.kind == "invalid"
    assert "did you mean site" in shown.detail
    assert CODE not in shown.detail


def test_a_file_that_asks_for_a_number_this_machine_lacks_stays(boot: Path, tmp_path: Path) -> None:
    boot.write_text(f'{TEXT}device_id = "pibook-{{serial}}"')
    with pytest.raises(RuleError, match=r"no \{serial\}"):
        take_up(boot, tmp_path, Machine(), as_owner=nullcontext)

    assert boot.exists()
    assert not (tmp_path / PENDING).exists()
    assert f"sudo pisync enroll-file {boot}" in state_of(tmp_path, HERE).detail


def test_an_enrolled_device_sets_the_file_aside(boot: Path, tmp_path: Path) -> None:
    before = enroll(tmp_path)
    said = take(boot, tmp_path)

    assert "mine" in said
    assert not boot.exists()
    assert not (tmp_path / PENDING).exists()
    assert CODE in (tmp_path / IGNORED).read_text()
    assert (tmp_path / IGNORED).stat().st_mode & 0o777 == 0o600
    assert identities.load(tmp_path) == before
    assert "set aside" in state_of(tmp_path, HERE).detail


def test_root_stores_it_as_the_agents_user(boot: Path, tmp_path: Path) -> None:
    root("acting as another user")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 4711, 4712)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    take_up(boot, home, HERE, as_owner=partial(acting_as_owner, home))

    assert os.geteuid() == 0
    assert [(each.stat().st_uid, each.stat().st_gid) for each in home.iterdir()] == [(4711, 4712)]


@pytest.mark.parametrize("ending", ["", ".txt"])
def test_the_command_finds_the_boot_file(
    boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    file = boot.rename(boot.with_name(boot.name + ending))
    monkeypatch.setattr(zero_touch, "BOOT_FILES", (boot, boot.with_name(f"{boot.name}.txt")))

    assert main(["enroll-file", "--home", str(tmp_path / "home")]) == 0
    assert f"{file} is taken up" in capsys.readouterr().out
    assert main(["enroll-file", "--home", str(tmp_path / "home")]) == 2
    assert "no enrollment file" in capsys.readouterr().err


# Enrolling


class Receiver:
    """Answers each request as the next of `outcomes` says."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.asked: list[tuple[EnrollFile, str | None]] = []
        self._outcomes = list(outcomes)

    def __call__(self, wanted: EnrollFile, device_id: str | None, ca_file: str | None) -> Identity:
        self.asked.append((wanted, device_id))
        outcome = self._outcomes.pop(0) if self._outcomes else None
        if outcome is not None:
            raise outcome
        return Identity(url=wanted.receiver, device_id=device_id or "given", token="psd_x")


def zero(home: Path, receiver: Receiver, done: threading.Event, *, delays: float = 0.0) -> ZeroTouch:
    policy = RetryPolicy(base=delays, cap=max(delays, 0.001), random=lambda low, high: delays)
    return ZeroTouch(home=home, here=HERE, request=receiver, enrolled=done.set, policy=policy)


def test_it_is_tried_until_the_receiver_answers(tmp_path: Path) -> None:
    store_pending(tmp_path, WANTED)
    receiver, done = Receiver(*[Unreachable("no answer", kind="dns")] * 3), threading.Event()
    zero(tmp_path, receiver, done).wake()

    assert done.wait(30)
    assert receiver.asked == [(WANTED, "pibook-10000000a1b2c3d4")] * 4
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.device_id, kept.others, kept.machine) == (
        "pibook-10000000a1b2c3d4", ("https://b.example",), HERE.fingerprint,
    )  # fmt: skip
    assert sorted(each.name for each in tmp_path.iterdir()) == [identities.FILE]


def test_a_refused_code_waits_long_and_another_file_ends_the_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_pending(tmp_path, WANTED)
    receiver, done = Receiver(Refused("the code has expired", kind="auth")), threading.Event()
    unattended = zero(tmp_path, receiver, done)
    unattended.wake()
    wait_until(lambda: state_of(tmp_path, HERE).kind == "refused", "the refusal is noted")
    assert "the code has expired" in state_of(tmp_path, HERE).detail
    for _ in range(3):
        unattended.link_up()
    assert not unattended._woken
    assert len(receiver.asked) == 1

    unattended.wake()
    assert done.wait(30)
    assert CODE not in caplog.text


def test_a_link_ends_the_wait_for_a_receiver_that_was_away(tmp_path: Path) -> None:
    store_pending(tmp_path, WANTED)
    receiver, done = Receiver(Unreachable("no answer", kind="dns")), threading.Event()
    unattended = zero(tmp_path, receiver, done, delays=3600.0)
    unattended.wake()
    wait_until(lambda: state_of(tmp_path, HERE).detail.endswith("no answer"), "the first attempt failed")
    unattended.link_up()

    assert done.wait(30)
    assert len(receiver.asked) == 2


def test_the_waits_are_those_of_the_policy(tmp_path: Path) -> None:
    store_pending(tmp_path, WANTED)
    receiver = Receiver(Unreachable("no answer", kind="dns"), Refused("no", kind="auth"))
    unattended = zero(tmp_path, receiver, threading.Event(), delays=7.0)

    assert unattended._attempt(1) == 7.0
    assert unattended._attempt(2) == 7.0 + REFUSED_S
    assert unattended._attempt(3) is None


def test_a_number_that_the_machine_lacks_is_shown(tmp_path: Path) -> None:
    store_pending(tmp_path, WANTED)
    unattended = zero(tmp_path, Receiver(), threading.Event())
    unattended.here = Machine()

    assert unattended._attempt(1) is None
    assert "no {serial}" in state_of(tmp_path, Machine()).detail


def test_a_random_id_stays_while_answers_are_lost(tmp_path: Path) -> None:
    store_pending(tmp_path, EnrollFile(receiver=URL, code=CODE, device_id="r-{random}"))
    receiver, done = Receiver(*[Unreachable("lost", kind="timeout")] * 2), threading.Event()
    zero(tmp_path, receiver, done).wake()

    assert done.wait(30)
    assert len({device_id for _, device_id in receiver.asked}) == 1


def test_a_file_is_forgotten_once_the_device_is_enrolled(tmp_path: Path) -> None:
    store_pending(tmp_path, WANTED)
    enroll(tmp_path)
    receiver, done = Receiver(), threading.Event()
    zero(tmp_path, receiver, done).wake()

    assert done.wait(30)
    assert receiver.asked == []
    wait_until(lambda: not (tmp_path / PENDING).exists(), "the code is deleted")


def test_a_file_that_stays_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service reads its identity again at the news, and looks for a file again."""
    store_pending(tmp_path, WANTED)
    unlink = Path.unlink

    def fails(path: Path, missing_ok: bool = False) -> None:
        if path.name == PENDING:
            raise OSError(30, "Read-only file system")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fails)
    receiver, news = Receiver(), []
    unattended = zero(tmp_path, receiver, threading.Event())
    unattended.enrolled = lambda: news.append(identities.load(tmp_path))

    assert [unattended._attempt(1) for _ in range(3)] == [None] * 3
    assert len(receiver.asked) == len(news) == 1


def test_a_damaged_identity_is_replaced(tmp_path: Path) -> None:
    identities.path(tmp_path).write_text("{")
    store_pending(tmp_path, WANTED)

    assert zero(tmp_path, Receiver(), threading.Event())._attempt(1) is None
    assert identities.load(tmp_path) is not None


def test_a_corrected_file_gives_another_id(boot: Path, tmp_path: Path) -> None:
    for pattern, device_id in (("wrong-{serial}", "wrong-10000000a1b2c3d4"), ("r-{serial}", "r-10000000a1b2c3d4")):
        boot.write_text(f"{TEXT}device_id = '{pattern}'")
        take(boot, tmp_path)
        receiver = Receiver(Unreachable("no answer", kind="dns"))
        zero(tmp_path, receiver, threading.Event())._attempt(1)
        assert [asked for _, asked in receiver.asked] == [device_id]


def test_without_a_file_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    zero(tmp_path, Receiver(), threading.Event()).wake()

    assert threading.active_count() == before


def test_the_same_state_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may wait for weeks: each attempt must not wear the card."""
    writes: list[Path] = []
    real = identities.store

    def store(file: Path, content: bytes) -> None:
        writes.append(file)
        real(file, content)

    monkeypatch.setattr(identities, "store", store)
    for _ in range(3):
        note_state(tmp_path, EnrollmentState(kind="waiting", detail="no answer"))

    assert len(writes) == 1


def test_the_log_names_each_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store_pending(tmp_path, WANTED)
    with caplog.at_level(logging.INFO):
        unattended = zero(tmp_path, Receiver(Unreachable("no answer", kind="dns")), threading.Event())
        unattended._attempt(1)
        unattended._attempt(2)

    assert [record.getMessage() for record in caplog.records] == [
        "waiting to enroll: no answer",
        f"enrolled as pibook-10000000a1b2c3d4 at {URL}",
    ]


def test_the_unit_looks_where_the_command_looks(tmp_path: Path) -> None:
    unit = Path(__file__).parents[2] / "agent/systemd/pisync-enroll.service"
    text = unit.read_text()
    assert [line.partition("=|")[2] for line in text.splitlines() if line.startswith("ConditionPathExists")] == [
        str(place) for place in zero_touch.BOOT_FILES
    ]
    analyze = installed("systemd-analyze")
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/usr/bin/pisync", shutil.which("true") or "/bin/true"))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
