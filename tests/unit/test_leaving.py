"""`unenroll`, `reset` and `seal`: what they delete, and what they refuse to."""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

import pisync_agent.identity as identities
from pisync_agent.commands import leaving
from pisync_agent.commands.cli import main
from pisync_agent.enrollment.enroll_file import EnrollFile, store_pending
from pisync_agent.enrollment.machine import Machine
from pisync_agent.enrollment.state import PENDING
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.service.lock import writer_lock
from tests.support.outboxes import deliver, events, opened

COMMANDS = ("reset", "seal")
DISCARD = {"reset": "--discard-pending", "seal": "--discard-test-events"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device with a delivered and a pending event, an identity, and a file of its user."""
    monkeypatch.setattr(leaving, "MACHINE_ID", tmp_path / "machine-id")
    leaving.MACHINE_ID.write_text("0123456789abcdef0123456789abcdef\n")
    folder = tmp_path / "home"
    with contextlib.closing(opened(folder)) as outbox:
        outbox.append(events(2))
        deliver(outbox, 1)
    identities.save(folder, Identity(url="https://r.example", device_id="mine", token="psd_x"))
    (folder / "notes.txt").write_text("a user's own")
    (folder / "outbox-1.broken.db").write_text("set aside")
    (folder / "receiver-ca.pem").write_text("PEM")
    return folder


def run(*arguments: str, home: Path) -> int:
    return main([*arguments, "--home", str(home), *(("--keep-machine-id",) if arguments[0] == "seal" else ())])


def names(home: Path) -> list[str]:
    return sorted(each.name for each in home.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_pending_events_are_not_deleted_unasked(home: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    before = names(home)
    assert run(command, "--yes", home=home) == 1

    said = capsys.readouterr().err
    assert "1 event pending" in said
    assert DISCARD[command] in said
    assert set(before) <= set(names(home))
    with contextlib.closing(opened(home)) as outbox:
        assert outbox.state().waiting == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_it_says_what_it_deletes_and_leaves_the_rest(
    home: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(command, "--yes", DISCARD[command], home=home) == 0

    said = capsys.readouterr().out
    assert "1 event pending, 0 rejected, 1 delivered event, 0 files set aside, the identity mine" in said
    assert names(home) == ["notes.txt", "outbox.lock"]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_terminal_it_needs_yes(home: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))

    assert run(command, DISCARD[command], home=home) == 2
    assert "identity.json" in names(home)


@pytest.mark.parametrize(("typed", "code"), [("yes\n", 0), ("\n", 2), ("", 2)])
def test_on_a_terminal_it_asks(home: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int) -> None:
    terminal = io.StringIO(typed)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)

    assert run("reset", "--discard-pending", home=home) == code
    assert ("identity.json" in names(home)) is (code != 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_running_writer_is_named(home: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with writer_lock(files.lock(home)):
        assert run(command, "--yes", DISCARD[command], home=home) == 5

    said = capsys.readouterr().err
    assert f"process {os.getpid()}" in said
    assert "systemctl stop pisync-agent.socket pisync-agent" in said
    assert "identity.json" in names(home)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_outbox_that_cannot_be_read_is_not_deleted_unasked(
    home: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    files.database(home).write_bytes(b"no database" * 1000)

    assert run(command, "--yes", home=home) == 1
    assert "unknown" in capsys.readouterr().err
    assert files.database(home).exists()
    assert run(command, "--yes", DISCARD[command], home=home) == 0


def test_seal_keeps_an_enrollment_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_pending(home, EnrollFile(receiver="https://r.example", code="9RTA-WW4Z-K7MQ-2XPD"))
    identities.propose_id(home, Machine(), "proposed")

    assert run("seal", "--yes", "--discard-test-events", home=home) == 0
    assert names(home) == [PENDING, "notes.txt", "outbox.lock"]
    assert "by the file that was taken up" in capsys.readouterr().out
    assert leaving.MACHINE_ID.read_text() != ""


def test_seal_empties_the_machine_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["seal", "--yes", "--discard-test-events", "--home", str(home)]) == 2
    assert leaving.MACHINE_ID.read_text() != ""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["seal", "--yes", "--discard-test-events", "--home", str(home)]) == 0

    assert leaving.MACHINE_ID.read_bytes() == b""


def test_unenroll_deletes_the_token_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("unenroll", "--yes", home=home) == 0
    assert "device retire mine" in capsys.readouterr().out
    assert identities.load(home) is None
    with contextlib.closing(opened(home)) as outbox:
        assert outbox.state().waiting == 1
    assert identities.proposed_id(home, Machine()) == "mine"
    assert run("unenroll", "--yes", home=home) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_apps_are_learners_work_too(home: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """A copy must not deliver them again under another device's name."""
    with contextlib.closing(opened(home)) as outbox:
        deliver(outbox, 2)
    spool = home / "spool"
    spool.mkdir()
    for name in ("notes.ndjson", "old.ndjson.refused", ".notes.tmp"):
        (spool / name).write_text("{}")
    (spool / "link.ndjson").symlink_to(home / "notes.txt")
    assert run(command, "--yes", home=home) == 1
    assert "3 files in the spool folder" in capsys.readouterr().err
    assert len(names(spool)) == 4

    assert run(command, "--yes", DISCARD[command], home=home) == 0
    assert "3 files in the spool folder" in capsys.readouterr().out
    assert names(home) == ["notes.txt", "outbox.lock", "spool"]
    assert names(spool) == []
