"""What a card can do to the outbox: each fault has a stable name, and nothing acknowledged is lost that can be read."""

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from pisync_agent.doctor.examination import device_checks
from pisync_agent.doctor.findings import Verdict
from pisync_agent.doctor.subject import gather
from pisync_agent.doctor.surroundings import Surroundings
from pisync_agent.errors import AgentError
from pisync_agent.outbox.condition import Condition, inspect
from pisync_agent.outbox.faults import Fault
from pisync_agent.recorder import Recorder
from pisync_agent.service.lock import writer_lock
from tests.support.outboxes import event, events, opened, seqs
from tests.support.processes import AgentProcess, wait_until
from tests.support.services import installed, root
from tests.support.small_disk import read_only_view, small_disk, use_up


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of an outbox with 40 events in its file and 2 in its log, as a killed service leaves it."""
    with closing(opened(tmp_path / "first")) as outbox:
        outbox.append(events(40))
    with closing(opened(tmp_path / "first")) as outbox:
        for number in (41, 42):
            outbox.append([event(number)])
        return shutil.copytree(tmp_path / "first", tmp_path / "home")


def record_until_refused(agent: AgentProcess) -> int:
    """Record through the service until it refuses; return the last seq it acknowledged."""
    last = 0
    with Recorder(agent.home) as recorder, suppress(AgentError):
        while True:
            last = recorder.record("note.taken", data={"text": "x" * 1000})
    return last


def test_an_intact_outbox_has_no_fault(home: Path, tmp_path: Path) -> None:
    """Before there is one, beside the process that writes it, and after that was killed."""
    assert inspect(tmp_path / "none") == Condition(fault=None, detail="", reading=True, writing=True, state=None)
    killed = inspect(home)
    with writer_lock(home / "outbox.lock"), closing(opened(home)):
        beside = inspect(home)
    for found in (killed, beside):
        assert (found.fault, found.detail, found.reading, found.writing) == (None, "", True, True)
        assert found.state is not None
        assert found.state.waiting == 42


def test_a_missing_log_is_noticed_and_the_rest_transferred(home: Path) -> None:
    """A repair of the file system may delete it, or a person who does not know the file."""
    (home / "outbox.db-wal").unlink()

    found = inspect(home)
    assert (found.fault, found.reading) == (Fault.LOG_MISSING, False)
    assert "the log is missing" in found.detail
    assert inspect(home) == found, "looking leaves the proof as it is"

    with closing(opened(home)) as outbox:
        state = outbox.state()
        assert seqs(outbox) == list(range(1, 41))
        assert re.search(r"the log is missing, with \d+ committed frames", state.salvaged[-1].reason)
        assert "events recorded after it may be missing" in state.salvaged[-1].reason
        assert state.sync_events_waiting == 1, "the receiver learns of it"
        assert outbox.append(events(1)) == [41], "of a new stream: no seq names two events"
    assert inspect(home).fault is None


def test_a_log_that_was_written_back_may_be_missing(home: Path) -> None:
    """Nothing was in it that the file does not have."""
    with closing(opened(home)) as outbox:
        outbox.append(events(1))
        with closing(sqlite3.connect(home / "outbox.db")) as file:
            file.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        copy = shutil.copytree(home, home.with_name("copy"))
    (copy / "outbox.db-wal").unlink()

    assert inspect(copy).fault is None
    with closing(opened(copy)) as outbox:
        assert (outbox.state().salvaged, outbox.state().last_seq) == ((), 43)


def test_a_torn_file_is_named_before_it_is_salvaged(home: Path) -> None:
    torn(home)

    assert inspect(home).fault is Fault.DAMAGED
    with closing(opened(home)) as outbox:
        assert len(seqs(outbox)) >= 41, "all but what stood on that page alone"
    assert inspect(home).fault is None


def test_a_newer_file_is_named_and_left_as_it_is(home: Path) -> None:
    of_a_newer_version(home)
    before = (home / "outbox.db").read_bytes()

    found = inspect(home)

    assert (found.fault, found.reading) == (Fault.NEWER_VERSION, False)
    assert "Install the newer PiSync again" in found.detail
    for command in (("run",), ("record", "note.taken"), ("status",)):
        done = AgentProcess(home).run(*command)
        said = " ".join((done.stdout + done.stderr).split())
        assert (done.returncode, "written by a newer PiSync" in said) == (5, True)
    assert (home / "outbox.db").read_bytes() == before


def without_log(home: Path) -> None:
    (home / "outbox.db-wal").unlink()


def torn(home: Path) -> None:
    log = home / "outbox.db-wal"
    content = bytearray(log.read_bytes())
    content[32 + 24 + 100 : 32 + 24 + 200] = b"\xff" * 100
    log.write_bytes(content)


def of_a_newer_version(home: Path) -> None:
    opened(home).close()
    with closing(sqlite3.connect(home / "outbox.db")) as file:
        file.execute("PRAGMA user_version = 99")


def without_database(home: Path) -> None:
    (home / "outbox.db").unlink()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (without_log, Fault.LOG_MISSING),
        (torn, Fault.DAMAGED),
        (of_a_newer_version, Fault.NEWER_VERSION),
        (without_database, Fault.DAMAGED),
    ],
)
def test_status_and_doctor_name_what_is_wrong(home: Path, spoil: Callable[[Path], None], fault: Fault) -> None:
    """Also as JSON, and with the exit code of an unusable store, where no service runs."""
    spoil(home)

    found = AgentProcess(home).json("status", code=5)
    assert found["outbox_fault"]["fault"] == fault
    assert found["outbox_fault"]["detail"]
    judged = {each.check: each for each in device_checks(gather(home), Surroundings(kernel_log=list))}
    assert judged["outbox"].verdict is Verdict.BAD
    assert judged["outbox"].advice


def test_a_full_disk_is_named_while_it_lasts(tmp_path: Path) -> None:
    with small_disk(tmp_path, size=4 * 1024 * 1024) as disk, AgentProcess(disk / "device") as agent:
        agent.log_file = tmp_path / "log"
        agent.start()
        agent.record()
        others = use_up(disk)
        last = record_until_refused(agent)
        status = agent.status()
        assert (status["write_fault"]["fault"], status["waiting"]) == ("full", last)
        found = inspect(agent.home)
        assert (found.fault, found.reading, found.writing) == (Fault.FULL, True, False)
        agent.stop()
        alone = agent.json("status", code=5)
        assert (alone["write_fault"]["fault"], alone["outbox_fault"], alone["waiting"]) == ("full", None, last)

        others.unlink()
        agent.start()
        assert agent.record() == last + 1
        assert agent.status()["write_fault"] is None
        assert inspect(agent.home).fault is None


def test_a_read_only_card_is_named_and_read(home: Path, tmp_path: Path) -> None:
    root("mounting")
    with read_only_view(home, tmp_path / "view") as view:
        found = inspect(view)
    assert (found.fault, found.reading, found.writing) == (Fault.READ_ONLY, True, False)
    assert found.state is not None
    assert found.state.waiting == 42


def test_a_disk_that_fails_to_flush_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Every flush fails with EIO from some moment on: the service goes on, and says so."""
    with AgentProcess(tmp_path / "device") as agent:
        flushes = "fsync,fdatasync"
        fault = ("-e", f"trace={flushes}", "-e", f"inject={flushes}:error=EIO:when=20+")
        own = agent.program
        agent.program = (installed("strace"), "-f", "-o", str(tmp_path / "calls"), *fault, *own)
        agent.start()
        agent.program = own
        pid = agent.status()["service_pid"]
        try:
            last = record_until_refused(agent)
            status, text = agent.status(), agent.run("status").stdout
        finally:
            os.kill(pid, signal.SIGKILL)  # strace ends with it

        assert status["write_fault"]["fault"] == "disk_failed"
        assert "replace the card" in text
        assert last > 0
        wait_until(lambda: agent.ended, "strace ends")
        assert agent.status()["waiting"] >= last
        assert agent.record() > last
