"""The small parts of the service: systemd's notices, the lock and its holder, the log, requests, enrolling."""

import argparse
import io
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent import commands, enrolling, holder, home, logs, ndjson, requests, systemd
from pisync_agent import identity as identities
from pisync_agent.cli import WrongUsage
from pisync_agent.errors import InvalidEvent, NotEnrolled, OutboxFull, Refused, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox import NewEvent, Outbox, open_outbox
from pisync_agent.recorder import Recorder
from pisync_agent.wakeup import Wakeup
from pisync_common.errors import LockHeld, RuleError
from pisync_common.models import Stamp

STAMP = Stamp(at_ms=1, boot_id="boot", boottime_ms=1, clock_synced=True)
URL = "https://r.example"


# systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(20)
        name = f"@pisync-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        listening.bind("\0" + name[1:] if abstract else name)
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": name})
        assert listening.recv(100) == b"READY=1"


def test_where_systemd_does_not_listen_nothing_happens(tmp_path: Path) -> None:
    assert not systemd.notify("READY=1", {})
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 120),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "7"}, 1),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_systemd_wants_to_hear(environ: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_interval(environ, pid=7) == seconds


# The lock


def test_who_holds_the_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outbox.lock"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(LockHeld, match=rf"process {other.pid} \("), holder.writer_lock(path, patience=0):
            pass
        other.communicate("")
    with holder.writer_lock(path, patience=0):
        assert str(os.getpid()) in holder.describe(path)


def test_a_lock_that_is_soon_free_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "outbox.lock"
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with holder.writer_lock(path, patience=20):
            pass


def test_without_the_kernel_s_table_it_is_another_process(tmp_path: Path) -> None:
    (tmp_path / "outbox.lock").touch()
    assert holder.describe(tmp_path / "outbox.lock", locks=tmp_path / "none") == "another process"
    (tmp_path / "locks").write_text("")
    assert holder.describe(tmp_path / "outbox.lock", locks=tmp_path / "locks") == "another process"


# The log


def logged(formatter: logging.Formatter, *, error: BaseException | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "first\nsecond", (), info))
    return stream.getvalue()


def test_the_journal_gets_a_level_on_each_line() -> None:
    assert logged(logs.JournalFormatter()) == "<4>first\n<4>second\n"


def test_elsewhere_a_line_has_its_time() -> None:
    assert logged(logs.PlainFormatter()).endswith("Z WARNING first\nsecond\n")


def test_the_text_of_an_error_that_nobody_foresaw_is_not_logged() -> None:
    foreign = logged(logs.JournalFormatter(), error=KeyError("learner s-17"))
    assert "KeyError" in foreign
    assert "s-17" not in foreign
    assert "the disk is full" in logged(logs.JournalFormatter(), error=OutboxFull("the disk is full"))


def test_the_log_is_for_the_journal_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    stream = io.StringIO()
    logs.configure("warning", stream=stream, environ={"JOURNAL_STREAM": "8:1"})
    logging.getLogger("pisync_agent.x").warning("careful")
    logging.getLogger("pisync_agent.x").info("chat")

    assert stream.getvalue() == "<4>careful\n"


# Waking


def test_signals_and_threads_wake_the_loop() -> None:
    selector = selectors.DefaultSelector()
    woken: list[str] = []
    noted: list[int] = []
    wakeup = Wakeup(selector, lambda: woken.append("woken"))
    before = signal.getsignal(signal.SIGUSR1)
    with wakeup.signals(noted.append, (signal.SIGUSR1,)):
        os.kill(os.getpid(), signal.SIGUSR1)
        for key, mask in selector.select(20):
            key.data(mask)
    for _ in range(100_000):
        wakeup.wake()  # more than the socket holds: nothing blocks
    for key, mask in selector.select(20):
        key.data(mask)
    wakeup.close()
    wakeup.wake()
    selector.close()

    assert noted == [signal.SIGUSR1]
    assert woken == ["woken", "woken"]
    assert signal.getsignal(signal.SIGUSR1) == before


# Requests


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = open_outbox(tmp_path / "home")
    yield made
    made.close()


def asked(*types: str) -> requests.Request:
    events = [NewEvent.create(type, stamp=STAMP).fields() for type in types]
    return requests.read(json.dumps({"do": "record", "events": events}).encode())


def test_all_requests_are_recorded_in_one_call(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    append = outbox.append

    def counted(events: list[NewEvent]) -> list[object]:
        calls.append(len(events))
        return list(append(events))

    monkeypatch.setattr(outbox, "append", counted)
    answers = requests.record(outbox, [asked("a.b"), requests.read(b'{"do": "status"}'), asked("a.b", "a.c")])

    assert answers == [{"seqs": [1]}, None, {"seqs": [2, 3]}]
    assert calls == [3]


def test_an_outbox_that_is_full_is_told_to_each(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(events: object) -> list[int]:
        raise OutboxFull("no room")

    monkeypatch.setattr(outbox, "append", full)
    answers = requests.record(outbox, [asked("a.b"), asked("a.c")])

    assert answers == [{"error": {"code": "outbox_full", "detail": "no room"}}] * 2


def test_what_nobody_foresaw_spoils_one_request_alone(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = outbox.append

    def picky(events: list[NewEvent]) -> list[object]:
        if any(event.type == "bad.event" for event in events):
            raise ZeroDivisionError
        return list(append(events))

    monkeypatch.setattr(outbox, "append", picky)
    first, bad, last = requests.record(outbox, [asked("a.b"), asked("bad.event"), asked("a.c")])

    assert (first, last) == ({"seqs": [1]}, {"seqs": [2]})
    assert bad is not None
    assert bad["error"]["code"] == "store_unusable"  # type: ignore[index]
    assert "recording failed" in caplog.text


# Lines of events


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b'{"type": "a.b"}\n' + b"[" * 3_000_000)
    out = io.StringIO()
    with (
        file.open("rb") as source,
        Recorder(tmp_path / "home") as recorder,
        pytest.raises(InvalidEvent, match="line 2"),
    ):
        ndjson.record(recorder, ndjson.whole_event, source=source.fileno(), out=out)

    assert out.getvalue() == "1\n"


# Where home is


def test_home_from_flag_or_variable_needs_no_settings(tmp_path: Path) -> None:
    environ = {"PISYNC_AGENT_HOME": "/var/lib/pisync"}
    assert home.quick_home(None, None, environ) == Path("/var/lib/pisync")
    assert home.quick_home("/tmp/x", None, environ) == Path("/tmp/x")
    assert home.quick_home(None, "file.toml", environ) is None
    assert home.quick_home(None, None, {}) is None


def test_root_becomes_the_owner_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become someone else")
    folder = tmp_path / "home"
    folder.mkdir()
    became: list[tuple[str, object]] = []
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda value, name=name: became.append((name, value)))
    commands.become_owner(folder)
    assert became == []
    os.chown(folder, 4711, 4712)
    commands.become_owner(folder)

    assert became == [("setgroups", []), ("setgid", 4712), ("setuid", 4711)]
    commands.become_owner(tmp_path / "none")


# Enrolling


class Receiver:
    """Gives out identities, or refuses some ids."""

    def __init__(self, *, refused: tuple[str | None, ...] = (), url: str = URL) -> None:
        self.asked: list[str | None] = []
        self._refused = refused
        self._url = url

    def __call__(self, device_id: str | None) -> Identity:
        self.asked.append(device_id)
        if device_id in self._refused or "*" in self._refused:
            raise Refused("no", kind="auth")
        return Identity(url=self._url, device_id=device_id or "given", token=f"psd_{len(self.asked)}")


def enroll(
    folder: Path, receiver: Receiver, *, url: str = URL, device_id: str | None = None, again: bool = False
) -> Identity:
    return enrolling.enroll(folder, url, ask=receiver, device_id=device_id, again=again, remark=lambda text: None)


def test_an_id_that_was_named_is_asked_for_and_no_other(tmp_path: Path) -> None:
    receiver = Receiver(refused=("mine",))
    with pytest.raises(Refused):
        enroll(tmp_path, receiver, device_id="mine")

    assert receiver.asked == ["mine"]
    assert identities.load(tmp_path) is None


def test_an_id_that_was_only_proposed_is_given_up(tmp_path: Path) -> None:
    proposed = identities.suggested_device_id()
    receiver = Receiver(refused=(proposed,))

    assert enroll(tmp_path, receiver).device_id == "given"
    assert receiver.asked[-1] is None
    assert identities.load(tmp_path) is not None


def test_a_device_keeps_its_id(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    receiver = Receiver()

    assert enroll(tmp_path, receiver, url=f"{URL}/").device_id == "mine"
    assert receiver.asked == ["mine"]


def test_a_device_that_is_refused_under_its_id_does_not_become_another(tmp_path: Path) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    with pytest.raises(Refused):
        enroll(tmp_path, Receiver(refused=("mine",)))

    kept = identities.load(tmp_path)
    assert kept is not None
    assert kept.device_id == "mine"


@pytest.mark.parametrize(("url", "device_id"), [(URL, "other"), ("https://other.example", None)])
def test_another_history_has_to_be_meant(tmp_path: Path, url: str, device_id: str | None) -> None:
    enroll(tmp_path, Receiver(), device_id="mine")
    receiver = Receiver(url=url)
    with pytest.raises(WrongUsage, match="--again"):
        enroll(tmp_path, receiver, url=url, device_id=device_id)
    assert receiver.asked == []

    enroll(tmp_path, receiver, url=url, device_id=device_id, again=True)
    kept = identities.load(tmp_path)
    assert kept is not None
    assert (kept.url, kept.device_id) == (url, device_id or "mine")


def test_a_damaged_identity_can_be_replaced(tmp_path: Path) -> None:
    identities.path(tmp_path).write_text("{")
    remarks: list[str] = []
    enrolling.enroll(tmp_path, URL, ask=Receiver(), device_id="mine", again=False, remark=remarks.append)

    assert "damaged" in remarks[0]
    assert identities.load(tmp_path) is not None


def test_a_bad_id_is_refused_before_anyone_is_asked(tmp_path: Path) -> None:
    receiver = Receiver()
    with pytest.raises(RuleError):
        enroll(tmp_path, receiver, device_id="no spaces")

    assert receiver.asked == []


def test_a_receiver_that_is_away_is_not_asked_twice(tmp_path: Path) -> None:
    wanted: list[str | None] = []

    def away(device_id: str | None) -> Identity:
        wanted.append(device_id)
        raise Unreachable("no answer", kind="timeout")

    with pytest.raises(Unreachable):
        enrolling.enroll(tmp_path, URL, ask=away, device_id=None, again=False, remark=lambda text: None)

    assert len(wanted) == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreUnusable, NotEnrolled)):
        enroll(tmp_path / "file" / "home", Receiver(), device_id="mine")


def test_the_parsed_line_is_all_that_a_command_gets() -> None:
    with pytest.raises(WrongUsage, match="whole event"):
        commands._line_reader(argparse.Namespace(type="-", learner="s-1", object=None, data=None, id=None))
