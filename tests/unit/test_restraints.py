"""Quiet hours, metered links and a cap on the rate: what holds sending back, and what does not."""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pisync_agent.config as config
from pisync_agent.network.metered import BUSCTL, is_metered
from pisync_agent.network.throttle import Throttle
from pisync_agent.service.restraints import ASKED_S, Restraints
from pisync_common.errors import SettingError
from pisync_common.models import Stamp
from pisync_common.quiet_hours import quiet_hours
from pisync_common.settings import Settings, load
from pisync_common.times import to_ms

NOON = Stamp(at_ms=to_ms(datetime(2026, 11, 30, 12, 0, tzinfo=UTC)), boot_id="b" * 8, boottime_ms=0, clock_synced=True)


class StillClock:
    def __init__(self, stamp: Stamp) -> None:
        self.now = stamp

    def stamp(self) -> Stamp:
        return self.now

    def monotonic(self) -> float:
        return 1000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the device's local time UTC."""
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def settings(**given: str) -> Settings:
    environ = {config.PREFIX + name.upper(): value for name, value in given.items()}
    return load(config.SETTINGS, prefix=config.PREFIX, environ=environ, flags={}, toml_file=None)


def restraints(stamp: Stamp = NOON, **given: str) -> Restraints:
    return Restraints.from_settings(settings(**given), StillClock(stamp))


# Quiet hours


def test_the_end_of_quiet_hours_is_named() -> None:
    quiet = restraints(quiet_hours="08:00-15:00").quiet()

    assert quiet is not None
    assert quiet.at == 1000 + 3 * 3600
    assert quiet.why == "quiet hours until 15:00"


@pytest.mark.parametrize("hours", ["", "12:01-15:00", "08:00-12:00"])
def test_outside_of_quiet_hours_nothing_is_held_back(hours: str) -> None:
    assert restraints(quiet_hours=hours).quiet() is None


def test_a_clock_that_is_not_synchronised_holds_nothing_back() -> None:
    assert restraints(replace(NOON, clock_synced=False), quiet_hours="08:00-15:00").quiet() is None


@pytest.mark.parametrize(
    ("hours", "left"), [("11:00-12:30", 1800), ("22:00-12:30", 1800), ("11:00-01:00", 13 * 3600), ("12:30-12:00", 0)]
)
def test_the_seconds_left_may_span_midnight(hours: str, left: float) -> None:
    assert quiet_hours(hours).left_s(NOON.at_ms, UTC) == left


# Metered links


@pytest.mark.parametrize(
    ("answer", "metered"),
    [
        ("echo 'u 1'", True),
        ("echo 'u 3'", True),
        ("echo 'u 2'", False),
        ("echo 'u 4'", False),
        ("echo 'u 0'", False),
        ("echo 's \"u 1\"'", False),
        ("echo 'u 1'; exit 1", False),
        ("head -c 100000 /dev/zero", False),
        ("exec sleep 60", False),
    ],
)
def test_networkmanagers_answer_says_whether_the_link_is_metered(tmp_path: Path, answer: str, metered: bool) -> None:
    program = tmp_path / "busctl"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    assert is_metered([str(program), *BUSCTL[1:]], patience=0.5 if "sleep" in answer else 30) is metered


def test_without_the_command_no_link_is_metered(tmp_path: Path) -> None:
    assert is_metered([str(tmp_path / "busctl")]) is False


def test_a_link_is_asked_about_once_until_it_changes() -> None:
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return len(asked) == 1

    made = Restraints(ask_metered=ask)
    assert made.metered(100)
    assert made.metered(101)
    made.link_changed()
    assert not made.metered(102)
    assert len(asked) == 2
    made.metered(102 + ASKED_S)
    assert len(asked) == 3


@pytest.mark.parametrize(("setting", "metered"), [("yes", True), ("no", False)])
def test_the_setting_decides_without_asking(setting: str, metered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert restraints(metered=setting).metered(0) is metered


# The rate


def test_bytes_are_spread_over_time() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(rate=8000, monotonic=lambda: now[0], sleep=sleep)
    for _ in range(4):
        throttle.take(4000)
    assert slept == [0.5, 0.5, 0.5]
    now[0] += 60
    throttle.take(4000)
    assert len(slept) == 3, "time in which nothing was sent is not saved up, and is not waited for"
    throttle.take(4000)
    assert slept[3:] == [0.5]


@pytest.mark.parametrize(
    ("text", "rate"), [("64kbit", 8000), ("1Mbit", 125_000), ("1.5 Mbit/s", 187_500), ("32kbit", 4000), ("", None)]
)
def test_a_rate_is_given_in_bits(text: str, rate: float | None) -> None:
    assert settings(max_rate=text)[config.MAX_RATE] == rate


@pytest.mark.parametrize("text", ["64", "64kB", "31kbit", "0kbit", "-1Mbit", "fast", "1e3kbit"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="max_rate"):
        settings(max_rate=text)


def test_the_rate_bounds_what_a_connection_sends() -> None:
    """A real connection; the waits are taken down instead of being slept."""
    import socket
    import threading

    import httpcore

    from pisync_agent.network.connections import Deadline, _Backend

    taken: list[int] = []

    class Counting(Throttle):
        def take(self, size: int) -> None:
            taken.append(size)

    throttle = Counting(rate=1.0, monotonic=lambda: 0.0, sleep=lambda seconds: None)
    deadline = Deadline(lambda: 0.0, throttle)
    deadline.begin(60)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def receive() -> None:
            peer, _ = server.accept()
            with peer:
                while part := peer.recv(65536):
                    received.append(part)

        receiving = threading.Thread(target=receive)
        receiving.start()
        stream: Any = _Backend(None, deadline, None).connect_tcp("127.0.0.1", server.getsockname()[1])
        assert isinstance(stream, httpcore.NetworkStream)
        stream.write(bytes(10_000))
        stream.close()
        receiving.join()
    assert sum(map(len, received)) == sum(taken) == 10_000
    assert max(taken) <= 4096
