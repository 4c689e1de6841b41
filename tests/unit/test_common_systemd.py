"""Notices to systemd, its watchdog, and the sockets it passes."""

import contextlib
import os
import socket
from collections.abc import Iterator
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


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors in a row as systemd passes them: a TCP socket, and Unix sockets `other` and `agent.sock`."""
    made = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    for listening, name in zip(made[1:], ("other", "agent.sock"), strict=True):
        listening.bind(str(tmp_path / name))
        listening.listen()
    numbers = list(range(900, 903))
    for listening, number in zip(made, numbers, strict=True):
        os.dup2(listening.fileno(), number, inheritable=True)
        listening.close()
    yield numbers
    for number in numbers:
        with contextlib.suppress(OSError):
            os.close(number)


def test_the_socket_at_the_path_is_taken_over(tmp_path: Path, passed: list[int]) -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "3"}
    found = systemd.passed_listener(tmp_path / "agent.sock", environ, pid=7, first=passed[0])
    assert found is not None
    with found:
        assert found.getsockname() == str(tmp_path / "agent.sock")
        assert not any(os.get_inheritable(number) for number in passed), "no child of the service holds them open"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "7"},
        {"LISTEN_PID": "8", "LISTEN_FDS": "3"},  # for the parent of this process
        {"LISTEN_PID": "7", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "-1"},
    ],
)
def test_no_socket_is_taken_that_was_not_passed_for_this(
    tmp_path: Path, passed: list[int], environ: dict[str, str]
) -> None:
    assert systemd.passed_listener(tmp_path / "agent.sock", environ, pid=7, first=passed[0]) is None
    for number in passed:
        os.fstat(number)
