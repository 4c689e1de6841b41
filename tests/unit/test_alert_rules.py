"""When alerts go out, which share a digest, and what notices say."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_common.quiet_hours import QuietHours, quiet_hours
from pisync_receiver.alerts.notices import notices
from pisync_receiver.alerts.rules import Crossing, Rules, time_zone

NAIROBI = ZoneInfo("Africa/Nairobi")
RULES = Rules(quiet_hours=None, zone=UTC, digest_over=2)
NIGHT = replace(RULES, quiet_hours=quiet_hours("22:00-06:00"), zone=NAIROBI)
MIDNIGHT = round(datetime(2026, 11, 24, tzinfo=UTC).timestamp() * 1000)
MINUTE = 60_000
HOUR = 60 * MINUTE


def crossing(
    number: int, device: str = "a", kind: str = "failing", at_ms: int = MIDNIGHT, site: str | None = None
) -> Crossing:
    return Crossing(
        id=number,
        device_id=device,
        site=site,
        kind=kind,
        at_ms=at_ms,
        failing_since_ms=at_ms - HOUR,
        last_errors='{"dns": 2}',
    )


def titles(pending: list[Crossing], now_ms: int, rules: Rules, last_digest_ms: int | None = None) -> list[str]:
    """The titles of the notices that go out now."""
    if not rules.is_due(pending, now_ms=now_ms, last_digest_ms=last_digest_ms):
        return []
    return [notice.title for notice in notices(pending, digest=rules.is_digest(pending), zone=rules.zone)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is pending, as (device, kind), when that is looked at, and the titles that go out."""

    pending: tuple[tuple[str, str], ...]
    after_ms: int
    titles: list[str]
    last_digest_ago_ms: int | None = None


F, R = "failing", "recovered"
A_FAILS = "a (no site) keeps failing"
CASES = {
    "nothing pending": Case(pending=(), after_ms=HOUR, titles=[]),
    "a single alert waits for others": Case(pending=(("a", F),), after_ms=59_999, titles=[]),
    "a single alert goes out after the window": Case(pending=(("a", F),), after_ms=60_000, titles=[A_FAILS]),
    "a few go out separately": Case(
        pending=(("a", F), ("b", R)), after_ms=MINUTE, titles=[A_FAILS, "b (no site) recovered"]
    ),
    "more share a digest": Case(
        pending=(("a", F), ("b", F), ("c", F)), after_ms=MINUTE, titles=["3 devices: 3 keep failing"]
    ),
    "crossings of one device are one alert": Case(
        pending=(("a", F), ("a", R), ("a", F), ("a", R)), after_ms=MINUTE, titles=["a (no site) failed and recovered"]
    ),
    "known as failing, and failing again": Case(
        pending=(("a", R), ("a", F)), after_ms=MINUTE, titles=["a (no site) recovered and keeps failing again"]
    ),
    "failed, recovered, failing": Case(
        pending=(("a", F), ("a", R), ("a", F)),
        after_ms=MINUTE,
        titles=["a (no site) recovered and keeps failing again"],
    ),
    "soon after a digest nothing goes out": Case(
        pending=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=15 * MINUTE - 1, titles=[]
    ),
    "later it does": Case(pending=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=15 * MINUTE, titles=[A_FAILS]),
    "a digest of the future delays nothing": Case(
        pending=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=-HOUR, titles=[A_FAILS]
    ),
    "a crossing of the future goes out at once": Case(pending=(("a", F),), after_ms=-HOUR, titles=[A_FAILS]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_alerts_go_out_when_they_are_due(case: Case) -> None:
    pending = [crossing(number, device, kind) for number, (device, kind) in enumerate(case.pending)]
    now = MIDNIGHT + case.after_ms
    last = None if case.last_digest_ago_ms is None else now - case.last_digest_ago_ms
    assert titles(pending, now, RULES, last) == case.titles


class TestQuietHours:
    """Midnight in UTC is three in the morning in Nairobi; quiet ends at 03:00 UTC."""

    def test_nothing_goes_out(self) -> None:
        pending = [crossing(1), crossing(2, "b"), crossing(3, "c")]
        assert titles(pending, MIDNIGHT + 3 * HOUR - 1, NIGHT) == []

    def test_their_end_brings_one_digest(self) -> None:
        pending = [crossing(1), crossing(2, kind="recovered"), crossing(3, "b")]
        assert titles(pending, MIDNIGHT + 3 * HOUR, NIGHT) == ["2 devices: 1 keeps failing, 1 failed and recovered"]

    def test_a_single_device_needs_no_digest(self) -> None:
        assert titles([crossing(1)], MIDNIGHT + 3 * HOUR, NIGHT) == [A_FAILS]

    def test_alerts_of_the_day_go_out_separately(self) -> None:
        pending = [crossing(1, at_ms=MIDNIGHT + 4 * HOUR), crossing(2, "b", at_ms=MIDNIGHT + 4 * HOUR)]
        assert len(titles(pending, MIDNIGHT + 5 * HOUR, NIGHT)) == 2

    @pytest.mark.parametrize(
        ("hours", "minute", "quiet"),
        [
            ("22:00-06:00", "21:59", False),
            ("22:00-06:00", "22:00", True),
            ("22:00-06:00", "00:00", True),
            ("22:00-06:00", "05:59", True),
            ("22:00-06:00", "06:00", False),
            ("12:00 - 13:30", "11:59", False),
            ("12:00 - 13:30", "12:00", True),
            ("12:00 - 13:30", "13:29", True),
            ("12:00 - 13:30", "13:30", False),
        ],
    )
    def test_they_include_the_first_minute_and_exclude_the_last(self, hours: str, minute: str, quiet: bool) -> None:
        moment = datetime.fromisoformat(f"2026-11-24T{minute}:30+03:00")
        assert quiet_hours(hours).includes(round(moment.timestamp() * 1000), NAIROBI) is quiet

    @pytest.mark.parametrize("value", ["22-6", "22:00", "24:00-06:00", "22:60-06:00", "06:00-06:00", "a:00-b:00"])
    def test_invalid_hours_are_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match=r"two times of day|start equals the end"):
            quiet_hours(value)

    @given(st.times(), st.times(), st.integers(0, 4_000_000_000_000))
    def test_hours_and_their_complement_share_the_day(self, start: time, end: time, moment: int) -> None:
        if start != end:
            hours, rest = QuietHours(start=start, end=end), QuietHours(start=end, end=start)
            assert hours.includes(moment, NAIROBI) is not rest.includes(moment, NAIROBI)

    def test_local_time_counts_when_clocks_change(self) -> None:
        """02:30 comes twice in Berlin on 25 October 2026, and both are quiet."""
        zone = time_zone("Europe/Berlin")
        for utc in ("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"):
            moment = round(datetime.fromisoformat(utc).timestamp() * 1000)
            assert quiet_hours("02:00-03:00").includes(moment, zone)

    @pytest.mark.parametrize("value", ["Kenya/Nairobi", "", "../etc/passwd", "UTC+25"])
    def test_an_unknown_zone_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a time zone"):
            time_zone(value)

    def test_utc_needs_no_zone_file(self) -> None:
        assert time_zone("UTC") is UTC


crossings = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([F, R]), st.integers(0, 48 * 60)), max_size=60
).map(
    lambda found: [
        crossing(number, device, kind, MIDNIGHT + minute * MINUTE)
        for number, (device, kind, minute) in enumerate(sorted(found, key=lambda each: each[2]))
    ]
)


@given(crossings, st.sampled_from([RULES, NIGHT]), st.integers(0, 4))
def test_every_crossing_of_two_days_is_in_one_notice(every: list[Crossing], rules: Rules, digest_over: int) -> None:
    rules = replace(rules, digest_over=digest_over)
    notified: list[int] = []
    digests: list[int] = []
    sent = 0
    for now in range(MIDNIGHT, MIDNIGHT + 61 * HOUR, MINUTE):
        pending = [each for each in every if each.at_ms <= now and each.id not in notified]
        if not rules.is_due(pending, now_ms=now, last_digest_ms=digests[-1] if digests else None):
            continue
        assert rules.quiet_hours is None or not rules.quiet_hours.includes(now, rules.zone)
        assert not digests or now - digests[-1] >= 15 * MINUTE
        digest = rules.is_digest(pending)
        made = notices(pending, digest=digest, zone=rules.zone)
        devices = {each.device_id for each in pending}
        assert digest or len(devices) <= max(1, digest_over)
        assert len(made) == (1 if digest else len(devices))
        notified += [each.id for each in pending]
        sent += len(made)
        if digest:
            digests.append(now)
    assert sorted(notified) == [each.id for each in every]
    assert sent <= len(every)


class TestNotices:
    def test_a_notice_has_site_time_and_causes(self) -> None:
        (notice,) = notices([crossing(1, site="Nakuru")], digest=False, zone=NAIROBI)
        assert notice.title == "a (Nakuru) keeps failing"
        assert notice.body == "Nakuru: 1 device keeps failing since 2026-11-24 02:00 EAT (dns): a"

    def test_a_digest_of_many_sites_stays_short(self) -> None:
        pending = [
            crossing(n, f"d{n:04}", site=f"School {n % 300:03}" if n % 300 else None, kind=F if n % 2 else R)
            for n in range(6000)
        ]
        (notice,) = notices(pending, digest=True, zone=UTC)
        lines = notice.body.splitlines()
        assert notice.title == "6,000 devices: 3,000 keep failing, 3,000 recovered"
        assert len(lines) == 51
        assert lines[-1] == "and 5,000 devices at 250 more sites"
        assert len(notice.body) < 8_000

    def test_a_digest_names_a_few_devices(self) -> None:
        pending = [crossing(1, "a", site="X"), crossing(2, "b", site="X"), crossing(3, "c", kind=R)]
        (notice,) = notices(pending, digest=True, zone=UTC)
        assert notice.body.splitlines() == [
            "X: 2 devices keep failing since 2026-11-23 23:00 UTC (dns): a, b",
            "no site: 1 device recovered: c",
        ]

    @pytest.mark.parametrize("errors", [None, "{", "[1]"], ids=["none", "not JSON", "not an object"])
    def test_a_crossing_without_readable_errors_is_notified(self, errors: str | None) -> None:
        (notice,) = notices([replace(crossing(1), last_errors=errors)], digest=False, zone=UTC)
        assert notice.body == "no site: 1 device keeps failing since 2026-11-23 23:00 UTC: a"

    def test_the_causes_of_most_devices_come_first(self) -> None:
        pending = [
            replace(crossing(number, f"d{number}"), last_errors=errors)
            for number, errors in enumerate(['{"tls": 9}', '{"dns": 1, "tls": 1}', '{"http": 1, "auth": 1}', None])
        ]
        (notice,) = notices(pending, digest=True, zone=UTC)
        assert "(mostly tls, auth, dns)" in notice.body
