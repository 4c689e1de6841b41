"""Notices: each change of a state is in exactly one, whatever restarts and whatever the clocks do."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry

from pisync_receiver.alerts.alerts import CLAIM_MS, POLL_SECONDS, WATCH_SECONDS, AlertMetrics, Alerts
from pisync_receiver.alerts.notices import Links
from pisync_receiver.alerts.rules import Rules
from pisync_receiver.alerts.services import Service, ServiceUnavailable
from pisync_receiver.background import AGAIN
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, Enroll
from tests.support.blocking import BlockingStore, sync, written
from tests.support.submissions import DAY, HOUR, MINUTE, NOON, sync_event

AT_ONCE: Final = Rules(quiet_hours=None, zone=UTC, window=0, silence_window=0, every=0)


class Hook:
    """A service that keeps what it accepts, or refuses it."""

    def __init__(self, name: str = "hook") -> None:
        self.target = self.name = name
        self.failing = False
        self.dies = False
        """Accept, and do not live to say so."""
        self.accepted: list[tuple[str, str]] = []

    @property
    def titles(self) -> list[str]:
        return [title for title, _ in self.accepted]

    async def send(self, title: str, body: str) -> None:
        if self.failing:
            raise ServiceUnavailable("it did not accept a notice; it is kept and sent again")
        self.accepted.append((title, body))
        if self.dies:
            raise asyncio.CancelledError


class Receiver:
    """One receiver's alerts on a store, by a clock that the test sets."""

    def __init__(self, store: BlockingStore, *services: Service, rules: Rules = AT_ONCE) -> None:
        self.now_ms = NOON
        self.registry = CollectorRegistry()
        self._store = store
        self.alerts = Alerts(
            store.store,
            services,
            rules=rules,
            silent_after_ms=7 * DAY,
            links=Links("https://pisync.example"),
            now_ms=lambda: self.now_ms,
            uniform=lambda low, high: low,
            metrics=AlertMetrics(self.registry),
        )

    def step(self, now_ms: int) -> None:
        """Watch, make the notices that are due, and send them."""
        self.now_ms = now_ms
        while self.watch() == AGAIN:
            pass
        self.run(self.alerts.make_notices())
        for service in self.alerts.services:
            while self.send(service) == AGAIN:
                pass

    def watch(self) -> float:
        return float(self.run(self.alerts.watch()))

    def send(self, service: Service) -> float:
        return float(self.run(self.alerts.send_next(service)))

    def run(self, work: Any) -> Any:
        return self._store.run(work)

    def gauge(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


def fails(store: BlockingStore, device: str, at_ms: int, times: int = 3) -> None:
    for minute in range(times):
        claimed = at_ms + minute * MINUTE
        sync(store, sync_event(claimed, device=device, failed=True, errors={"dns": 1}, received_ms=claimed))


def succeeds(store: BlockingStore, device: str, at_ms: int) -> None:
    sync(store, sync_event(at_ms, device=device, received_ms=at_ms))


def school(store: BlockingStore, site: str, devices: int, at_ms: int) -> list[str]:
    """Devices of a site, each with its last success a minute after that of the one before."""
    made = [f"{site.lower()}-{number:02}" for number in range(devices)]
    for minute, device in enumerate(made):
        succeeds(store, device, at_ms + minute * MINUTE)
        written(store, DeviceChange(device_id=device, at_ms=at_ms, site=site))
    return made


def set_limit(store: BlockingStore, site: str, silent_after_ms: int) -> None:
    store.act((), lambda _: [("put_site", {"site": site, "silent_after": silent_after_ms, "at": NOON})])


def transitions(store: BlockingStore, **asked: Any) -> list[tuple[str, str, str]]:
    """The device, the state before and the state of each, the oldest first."""
    rows = store.transitions(limit=1000, **asked).rows
    return [(row.device_id, row.before, row.state) for row in reversed(rows)]


class NoticeConformance:
    @pytest.fixture
    def hook(self) -> Hook:
        return Hook()

    def test_failing_and_recovery_are_two_notices(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        succeeds(store, "a", NOON - HOUR)
        receiver.step(NOON - HOUR)
        fails(store, "a", NOON)
        receiver.step(NOON + HOUR)
        receiver.step(NOON + HOUR)
        succeeds(store, "a", NOON + 2 * HOUR)
        receiver.step(NOON + 2 * HOUR)
        receiver.step(NOON + 3 * HOUR)
        assert hook.accepted == [
            (
                "a (no site) keeps failing",
                "no site: 1 device keeps failing since 2026-11-23 12:00 UTC (dns): a\nhttps://pisync.example/devices/a",
            ),
            ("a (no site) recovered", "no site: 1 device recovered: a\nhttps://pisync.example/devices/a"),
        ]
        assert transitions(store) == [("a", "well", "failing"), ("a", "failing", "well")]
        assert (receiver.gauge("pisync_alerts_pending"), receiver.gauge("pisync_notices_pending")) == (0, 0)

    def test_silence_comes_with_time_alone(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        succeeds(store, "a", NOON)
        for hours in range(0, 9 * 24, 12):
            receiver.step(NOON + hours * HOUR)
        assert hook.titles == ["a (no site) is silent"]
        assert store.transitions().rows[0].since == "2026-11-23T12:00:00.000Z"
        succeeds(store, "a", NOON + 10 * DAY)
        receiver.step(NOON + 10 * DAY)
        assert hook.titles[1:] == ["a (no site) recovered"]

    def test_a_site_has_its_own_limit(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        school(store, "Kisumu", 1, NOON)
        school(store, "Nakuru", 1, NOON)
        set_limit(store, "Nakuru", 30 * DAY)
        for day in range(29):
            receiver.step(NOON + day * DAY)
        assert hook.titles == ["kisumu-00 (Kisumu) is silent"]
        receiver.step(NOON + 31 * DAY)
        assert hook.titles[1:] == ["nakuru-00 (Nakuru) is silent"]

    def test_another_limit_ends_silence_without_a_notice(self, store: BlockingStore, hook: Hook) -> None:
        """A limit for the holidays makes a school well; when they have passed, its silence is news again."""
        receiver = Receiver(store, hook)
        school(store, "Nakuru", 3, NOON)
        receiver.step(NOON)
        receiver.step(NOON + 8 * DAY)
        set_limit(store, "Nakuru", 30 * DAY)
        receiver.step(NOON + 9 * DAY)
        assert hook.titles == ["Nakuru is silent: 3 of 3 devices"]
        receiver.step(NOON + 31 * DAY)
        assert hook.titles[1:] == ["Nakuru is silent: 3 of 3 devices"]

    def test_a_dead_site_is_one_notice(self, store: BlockingStore, hook: Hook) -> None:
        """Its devices fall silent one after another, for as long as their last contacts took."""
        receiver = Receiver(store, hook, rules=Rules(quiet_hours=None, zone=UTC))
        school(store, "Nakuru", 34, NOON)
        school(store, "Kisumu", 5, NOON + 8 * DAY)
        for minute in range(-5, 200):
            receiver.step(NOON + 7 * DAY + minute * MINUTE)
        assert hook.accepted == [
            (
                "Nakuru is silent: 34 of 34 devices",
                "Nakuru is silent: 34 of 34 devices since 2026-11-23 12:00 UTC\nhttps://pisync.example/sites/Nakuru",
            )
        ]

    def test_the_first_start_is_one_digest(self, store: BlockingStore, hook: Hook) -> None:
        school(store, "Nakuru", 4, NOON)
        fails(store, "b", NOON + 8 * DAY)
        succeeds(store, "c", NOON + 8 * DAY)
        written(store, DeviceChange(device_id="nakuru-00", at_ms=NOON, retire=True))
        receiver = Receiver(store, hook)
        receiver.step(NOON + 8 * DAY + HOUR)
        assert hook.titles == ["4 devices: 3 are silent, 1 keeps failing"]
        assert sorted(transitions(store)) == [
            ("b", "new", "failing"),
            *((f"nakuru-0{number}", "new", "silent") for number in (1, 2, 3)),
        ]

    def test_a_restart_tells_nothing_twice(self, store: BlockingStore, hook: Hook) -> None:
        fails(store, "a", NOON)
        for step in range(3):
            Receiver(store, hook).step(NOON + HOUR + step)
        assert hook.titles == ["a (no site) keeps failing"]

    def test_a_clock_that_is_set_back_tells_nothing(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook, rules=replace(AT_ONCE, digest_hour=1))
        succeeds(store, "a", NOON)
        fails(store, "b", NOON)
        for day in (0, 8):
            receiver.step(NOON + day * DAY)
        before = hook.titles
        assert "a (no site) is silent" in before
        for moment in (NOON + DAY, NOON - 400 * DAY, NOON + 8 * DAY, NOON + 8 * DAY + HOUR):
            receiver.step(moment)
        assert hook.titles == before

    def test_a_first_report_is_a_transition_and_no_notice(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        written(store, CodeCreate(code_hash="c", at_ms=NOON, expires_ms=NOON + DAY, uses=1))
        written(store, Enroll(code_hash="c", device_id="b", fallback_device_id="x", token_hash="u", at_ms=NOON))
        receiver.step(NOON)
        succeeds(store, "b", NOON + HOUR)
        receiver.step(NOON + 2 * HOUR)
        assert (transitions(store), hook.titles) == ([("b", "new", "well")], [])
        assert receiver.gauge("pisync_alerts_pending") == 0

    def test_a_retired_device_is_no_notice(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        fails(store, "a", NOON)
        receiver.step(NOON + HOUR)
        written(store, DeviceChange(device_id="a", at_ms=NOON, retire=True))
        for hour in (2, 3):
            receiver.step(NOON + hour * HOUR)
        assert len(hook.titles) == 1
        assert transitions(store)[1:] == [("a", "failing", "retired")]
        assert receiver.gauge("pisync_alerts_pending") == 0

    def test_many_devices_are_noted_step_by_step(
        self, store: BlockingStore, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pisync_receiver.alerts.alerts.WATCHED_AT_ONCE", 2)
        school(store, "Nakuru", 5, NOON)
        receiver = Receiver(store, hook)
        receiver.now_ms = NOON + 8 * DAY
        assert [receiver.watch() for _ in range(4)] == [AGAIN, AGAIN, AGAIN, WATCH_SECONDS]
        receiver.step(NOON + 8 * DAY)
        assert hook.titles == ["Nakuru is silent: 5 of 5 devices"]

    def test_the_daily_digest_is_made_once_a_day(self, store: BlockingStore, hook: Hook) -> None:
        rules = replace(AT_ONCE, digest_hour=13)
        receivers = [Receiver(store, hook, rules=rules) for _ in range(2)]
        receivers[0].step(NOON + HOUR)
        assert hook.titles == [], "no device yet"
        school(store, "Nakuru", 3, NOON)
        for hour in range(1, 3 * 24):
            receivers[hour % 2].step(NOON + hour * HOUR)
            Receiver(store, hook, rules=rules).step(NOON + hour * HOUR)
        assert (
            hook.accepted
            == [("All is well: 3 devices at 1 site", "3 devices at 1 site: 3 well\nhttps://pisync.example/")] * 3
        )
        fails(store, "nakuru-00", NOON + 3 * DAY)
        receivers[0].step(NOON + 3 * DAY + HOUR)
        assert hook.accepted[-1] == (
            "Some devices need help: 2 well, 1 failing",
            "3 devices at 1 site: 2 well, 1 failing\n"
            "Nakuru: 1 of 3 devices keeps failing since 2026-11-26 12:00 UTC (dns)\n"
            "In the last day: 1 began to fail\nhttps://pisync.example/",
        )

    def test_a_service_that_refuses_holds_up_no_other(self, store: BlockingStore, hook: Hook) -> None:
        other = Hook("other")
        receiver = Receiver(store, hook, other)
        hook.failing = True
        fails(store, "a", NOON)
        with pytest.raises(ServiceUnavailable, match="kept and sent again"):
            receiver.step(NOON + HOUR)
        assert receiver.send(other) == AGAIN
        assert receiver.send(other) == POLL_SECONDS
        receiver.run(receiver.alerts.make_notices())
        assert receiver.gauge("pisync_notices_pending") == 1
        hook.failing = False
        receiver.step(NOON + HOUR)
        assert hook.titles == other.titles == ["a (no site) keeps failing"]

    def test_a_notice_refused_for_a_day_lets_the_others_pass(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        for device, at_ms in (("a", NOON), ("b", NOON + 2 * DAY)):
            hook.failing = True
            fails(store, device, at_ms)
            with pytest.raises(ServiceUnavailable):
                receiver.step(at_ms + HOUR)
        hook.failing = False
        receiver.step(NOON + 2 * DAY + HOUR)
        assert hook.titles == ["b (no site) keeps failing", "a (no site) keeps failing"]

    def test_a_death_before_the_mark_repeats_a_notice_once(self, store: BlockingStore, hook: Hook) -> None:
        fails(store, "a", NOON)
        dying, other = Receiver(store, hook), Receiver(store, hook)
        hook.dies = True
        with pytest.raises(asyncio.CancelledError):
            dying.step(NOON + HOUR)
        hook.dies = False
        other.step(NOON + HOUR + CLAIM_MS - 1)
        assert len(hook.titles) == 1, "claimed"
        other.step(NOON + HOUR + CLAIM_MS)
        other.step(NOON + 2 * HOUR)
        assert hook.titles == ["a (no site) keeps failing"] * 2

    def test_notices_go_out_in_their_order(self, store: BlockingStore, hook: Hook) -> None:
        """While one receiver sends a notice, another sends none of those after it."""
        fails(store, "a", NOON)
        dying, other = Receiver(store, hook), Receiver(store, hook)
        hook.dies = True
        with pytest.raises(asyncio.CancelledError):
            dying.step(NOON + HOUR)
        hook.dies = False
        succeeds(store, "a", NOON + HOUR + 1)
        other.step(NOON + HOUR + 1)
        assert len(hook.titles) == 1
        other.step(NOON + 2 * HOUR)
        assert hook.titles[1:] == ["a (no site) keeps failing", "a (no site) recovered"]

    def test_the_log_has_every_notice_once(self, store: BlockingStore, caplog: pytest.LogCaptureFixture) -> None:
        fails(store, "a", NOON)
        receiver = Receiver(store)
        receiver.step(NOON + HOUR)
        receiver.step(NOON + 2 * HOUR)
        assert [(each.levelno, each.message) for each in caplog.records if each.name == "pisync_receiver.alerts"] == [
            (logging.WARNING, "a (no site) keeps failing")
        ]

    def test_old_rows_are_deleted(self, store: BlockingStore, hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
        receiver = Receiver(store, hook)
        hook.failing = True
        fails(store, "a", NOON)
        with pytest.raises(ServiceUnavailable):
            receiver.step(NOON + HOUR)
        receiver.now_ms = NOON + 30 * DAY
        receiver.run(receiver.alerts.clean_up())
        assert len(store.notices().rows) == 2
        receiver.now_ms = NOON + 31 * DAY
        receiver.run(receiver.alerts.clean_up())
        assert (store.notices().rows, len(store.transitions().rows)) == ([], 1)
        assert "deleted notices that no service accepted" in caplog.text
        receiver.now_ms = NOON + 91 * DAY
        receiver.run(receiver.alerts.clean_up())
        assert store.transitions().rows == []

    def test_pages_of_transitions_and_notices(self, store: BlockingStore, hook: Hook) -> None:
        receiver = Receiver(store, hook)
        school(store, "Nakuru", 3, NOON)
        school(store, "Kisumu", 2, NOON + 8 * DAY)
        fails(store, "kisumu-01", NOON + 8 * DAY + 2 * MINUTE)
        receiver.step(NOON + 8 * DAY + HOUR)
        assert [device for device, *_ in transitions(store, sites=["Kisumu"])] == ["kisumu-01"]
        assert [device for device, *_ in transitions(store, site="Nakuru")] == [f"nakuru-0{n}" for n in range(3)]
        assert transitions(store, device_id="nakuru-01") == [("nakuru-01", "new", "silent")]
        assert transitions(store, since_ms=NOON + 9 * DAY) == []
        assert list(self._pages(store.transitions)) == [row.id for row in store.transitions().rows]
        assert list(self._pages(store.notices)) == [row.id for row in store.notices().rows]
        shown = [(row.target, row.kind, row.sent_at is not None) for row in store.notices().rows]
        assert shown == [("hook", "digest", True), ("log", "digest", True)]
        assert store.notices(since_ms=NOON + 9 * DAY).rows == []

    def _pages(self, query: Any) -> Iterator[int]:
        cursor = None
        while True:
            page = query(limit=1, cursor=cursor)
            yield from (row.id for row in page.rows)
            if (cursor := page.next) is None:
                return
