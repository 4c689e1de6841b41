"""`pisync status`: the first line, the width, the time zone, the exit code; and what it may load."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.commands import status, status_text
from tests.support.processes import AgentProcess

FAILED = {"code": "unreachable", "kind": "dns", "detail": "the name cannot be found"}
HEAVY = {
    "_sqlite3", "_ssl", "asyncio", "ctypes", "dataclasses", "email", "http", "httpcore", "httpx", "inspect", "logging",
    "platformdirs", "shutil", "sqlite3", "ssl", "subprocess", "tempfile", "tenacity", "textwrap", "tomllib", "zipfile",
}  # fmt: skip
RECORDING = HEAVY - {"_sqlite3", "ctypes", "dataclasses", "inspect", "sqlite3"}
"""A recorder must be able to write the outbox itself."""


def found(**changes: Any) -> dict[str, Any]:
    """A device on which all is well."""
    run = {"at_ms": 1_764_000_000_000, "ago_s": 60.0, "delivered": 3, "rejected": 0, "failure": None}
    return {
        "device_id": "pibook-1", "url": "https://r.example", "enrolled": True, "stream": "a" * 16, "last_seq": 3,
        "delivered": 3, "watermark": 3, "waiting": 0, "dead": 0, "kept_from": 1, "bytes_used": 4096,
        "sync_events_waiting": 0, "salvaged": [], "service": True, "service_pid": 7, "service_fault": None,
        "syncing": False, "last_run": run, "next_run_in_s": 60.0, "next_run_why": "the interval", "last_error": None,
        "write_fault": None, "clock": {"now": "2026-11-23T10:00:00Z", "synced": True},
        "disk": {"free_bytes": 2**30, "read_only": False, "outbox_bytes": 4096}, "outbox_fault": None, "link": True,
        "spool": {"pending": 0, "left": 0, "refused": 0},
        "home": "/var/lib/pisync", "enrollment": {"kind": "enrolled", "detail": ""},
    } | changes  # fmt: skip


def failed(failure: dict[str, str]) -> dict[str, Any]:
    run: dict[str, Any] = found()["last_run"]
    return run | {"failure": failure}


def unsettled(kind: str) -> dict[str, Any]:
    return {"enrolled": False, "waiting": 9, "enrollment": {"kind": kind, "detail": "why"}}


@pytest.mark.parametrize(
    ("changes", "said", "code"),
    [
        ({}, "This device is fine: everything is delivered.", 0),
        ({"last_seq": 0}, "This device is fine: nothing was recorded yet.", 0),
        ({"last_run": failed(FAILED)}, "This device is fine: everything is delivered.", 0),
        ({"waiting": 1}, "1 event waits. Nothing to do: the next run is in 60 s.", 1),
        ({"waiting": 132, "link": False}, "132 events wait: this device has no link. Nothing to do", 1),
        ({"waiting": 2, "last_run": failed(FAILED)}, "2 events wait: the last run failed (dns). Nothing to do yet", 3),
        ({"waiting": 2, "syncing": True}, "2 events wait: being delivered now.", 1),
        ({"waiting": 2, "service": False, "next_run_in_s": None, "home": "/home/p"}, "`pisync sync` delivers now.", 1),
        ({"waiting": 2, "service": False}, "Needs help: the service does not run; 2 events wait: sudo systemctl", 1),
        ({"dead": 1}, "Needs help: 1 event rejected, and kept. See `pisync queue dead`.", 1),
        ({"dead": 1, "waiting": 5}, "Needs help: 1 event rejected, and kept; 5 events wait.", 1),
        ({"last_run": failed({"code": "refused", "kind": "auth", "detail": "no"})}, "Needs help: the receiver ref", 4),
        ({"enrolled": False, "waiting": 9}, "Needs help: this device is not enrolled; 9 events wait.", 4),
        (unsettled("moved"), "Needs help: this card was enrolled on another machine; 9 events wait.", 4),
        (unsettled("refused"), "Needs help: the enrollment file does not work; 9 events wait.", 4),
        (unsettled("invalid"), "Needs help: the enrollment file does not work; 9 events wait.", 4),
        ({"write_fault": {"since_ms": 0, "count": 2, "detail": "full"}}, "Needs help: apps cannot record.", 5),
        ({"spool": {"pending": 3, "left": 2, "refused": 0}}, "Needs help: files of apps were not recorded.", 1),
        ({"spool": {"pending": 0, "left": 0, "refused": 1}}, "Needs help: files of apps were not recorded.", 1),
        ({"spool": {"pending": 3, "left": 0, "refused": 0}}, "This device is fine", 0),
        ({"spool": None}, "This device is fine", 0),
        ({"write_fault": {"fault": "full", "detail": "no room"}}, "Needs help: apps cannot record.", 5),
        ({"outbox_fault": {"fault": "damaged", "detail": "x"}}, "Needs help: the outbox cannot be read.", 5),
        (
            {"outbox_fault": {"fault": "busy", "detail": "x"}, "service_fault": "hangs"},
            "Needs help: the service runs but does not answer.",
            5,
        ),
    ],
)
def test_the_first_line_says_whether_this_device_is_fine(changes: dict[str, Any], said: str, code: int) -> None:
    state = found(**changes)

    assert said in status_text.text(state).partition("\n\n")[0].replace("\n", " ")
    assert status.verdict(state) == code


@given(st.text(min_size=1, max_size=300).filter(str.strip), st.integers(0, 2**53))
def test_no_line_is_wider_than_a_terminal(text: str, number: int) -> None:
    long = f"/{'x' * 300}/{text}"
    salvaged = [{"at_ms": 0, "reason": text, "transferred": number, "damaged": number, "file": long}]
    shown = status_text.text(
        found(
            device_id="d" * 128, url=f"https://{'r' * 250}.example", waiting=number, dead=number, last_seq=number,
            home=long, salvaged=salvaged, service_fault=text, next_run_why=text,
            write_fault={"since_ms": 0, "count": number, "detail": long}, last_run=failed({**FAILED, "detail": long}),
        )
    )  # fmt: skip

    assert max(map(len, shown.split("\n"))) <= 80


def test_every_time_is_local_and_its_zone_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-05:45")
    time.tzset()
    try:
        shown = status_text.text(found())
    finally:
        monkeypatch.undo()
        time.tzset()

    assert "2025-11-24 21:45:00 (60 s ago)" in shown
    assert shown.count("(UTC+05:45)") == 1
    assert not re.search(r"\dZ|GMT", shown)


# With a running service


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        yield made.start()


def loaded(agent: AgentProcess, *words: str) -> set[str]:
    """Return the modules that a command has loaded when it ends."""
    code = (
        "import sys; sys.path += sys.argv.pop(1).split(':')\n"
        "from pisync_agent.__main__ import main\n"
        "main(); print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-IS", "-c", code, ":".join(sys.path), *words, "--home", str(agent.home)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def test_status_loads_no_module_that_it_does_not_need(agent: AgentProcess) -> None:
    """Each takes milliseconds, on a Pi Zero ten times as many; with all of them `status` took three times as long."""
    assert loaded(agent, "status") & HEAVY == set()
    assert loaded(agent, "status", "--json") & HEAVY == set()


def test_record_loads_no_module_that_it_does_not_need(agent: AgentProcess) -> None:
    assert loaded(agent, "record", "note.taken") & RECORDING == set()


def test_the_service_and_the_file_show_the_same(agent: AgentProcess) -> None:
    agent.command("record", "-", stdin='{"type": "note.taken"}\n' * 3)
    through_service = agent.status()
    agent.kill()
    from_file = agent.status()

    alone = {"service", "service_pid", "next_run_in_s", "next_run_why", "disk", "clock"}
    assert through_service["service"]
    assert not from_file["service"]
    assert {name: through_service[name] for name in through_service.keys() - alone} == {
        name: from_file[name] for name in from_file.keys() - alone
    }
    assert json.dumps(from_file["clock"]["synced"]) == json.dumps(through_service["clock"]["synced"])
