"""Notices to systemd, and its watchdog."""

import os
import socket
from pathlib import Path

import pytest

from pisync_common import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_a_notice_reaches_systemd(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(20)
        name = f"@pisync-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        listening.bind("\0" + name[1:] if abstract else name)
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": name})
        assert listening.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent(tmp_path: Path) -> None:
    assert not systemd.notify("READY=1", {})
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nothing")})


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
def test_the_watchdogs_interval_is_read_from_the_environment(environ: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_interval(environ, pid=7) == seconds


def test_a_full_socket_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        sent = [systemd.notify("STATUS=x", {"NOTIFY_SOCKET": str(tmp_path / "notify")}) for _ in range(100_000)]
        assert not all(sent)
