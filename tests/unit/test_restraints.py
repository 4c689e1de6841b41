"""Quiet hours and metered links: what holds sync runs back, and what does not; and how a rate is written."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

import pisync_agent.config as config
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


@pytest.mark.parametrize(
    ("text", "rate"), [("64kbit", 8000), ("1Mbit", 125_000), ("1.5 Mbit/s", 187_500), ("32kbit", 4000), ("", None)]
)
def test_a_rate_is_given_in_bits(text: str, rate: float | None) -> None:
    assert settings(max_rate=text)[config.MAX_RATE] == rate


@pytest.mark.parametrize("text", ["64", "64kB", "31kbit", "0kbit", "-1Mbit", "fast", "1e3kbit"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="max_rate"):
        settings(max_rate=text)
