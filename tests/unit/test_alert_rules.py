"""When notices go out, what shares a message, and what notices say."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_common.quiet_hours import QuietHours, quiet_hours
from pisync_receiver.alerts.daily import daily_digest
from pisync_receiver.alerts.notices import Links, Notice, notices, parts_of
from pisync_receiver.alerts.rules import Rules, time_zone
from pisync_receiver.domain.fleet import (
    STATES,
    Change,
    Overview,
    SiteCounts,
    State,
    Today,
    TroubledDevice,
    site_records,
    state_counts,
)
from pisync_receiver.domain.notices import Transition

NAIROBI = ZoneInfo("Africa/Nairobi")
RULES = Rules(quiet_hours=None, zone=UTC, digest_over=2)
NIGHT = replace(RULES, quiet_hours=quiet_hours("22:00-06:00"), zone=NAIROBI)
MIDNIGHT = round(datetime(2026, 11, 24, tzinfo=UTC).timestamp() * 1000)
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
W: Final = "well"
F: Final = "failing"
S: Final = "silent"
N: Final = "new"
X: Final = "retired"


def transition(
    number: int, device: str = "a", before: State = W, state: State = F, at_ms: int = MIDNIGHT, site: str | None = None
) -> Transition:
    return Transition(
        id=number,
        device_id=device,
        site=site,
        before=before,
        state=state,
        at_ms=at_ms,
        since_ms=at_ms - HOUR,
        errors='{"dns": 2}',
    )


def due(pending: list[Transition], now_ms: int, rules: Rules, last_ms: int | None = None) -> bool:
    return rules.is_due(
        first_ms=min((each.at_ms for each in pending if each.state != S), default=None),
        first_silent_ms=min((each.at_ms for each in pending if each.state == S), default=None),
        now_ms=now_ms,
        last_notice_ms=last_ms,
    )


def made(
    pending: list[Transition], rules: Rules = RULES, active: dict[str | None, int] | None = None, url: str | None = None
) -> list[Notice]:
    parts = parts_of(pending, active or {})
    return notices(parts, digest=rules.is_digest(pending, len(parts)), zone=rules.zone, links=Links(url))


def titles(pending: list[Transition], now_ms: int, rules: Rules, last_ms: int | None = None) -> list[str]:
    """The titles of the notices that go out now."""
    return [notice.title for notice in made(pending, rules)] if due(pending, now_ms, rules, last_ms) else []


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is pending, as (device, before, state), when that is looked at, and the titles that go out."""

    pending: tuple[tuple[str, State, State], ...]
    after_ms: int
    titles: list[str]
    last_ago_ms: int | None = None


A_FAILS = "a (no site) keeps failing"
CASES = {
    "nothing pending": Case(pending=(), after_ms=HOUR, titles=[]),
    "a failure waits for others": Case(pending=(("a", W, F),), after_ms=59_999, titles=[]),
    "a failure goes out after the window": Case(pending=(("a", W, F),), after_ms=MINUTE, titles=[A_FAILS]),
    "silence waits longer": Case(pending=(("a", W, S),), after_ms=HOUR - 1, titles=[]),
    "silence goes out after an hour": Case(pending=(("a", W, S),), after_ms=HOUR, titles=["a (no site) is silent"]),
    "a few go out separately": Case(
        pending=(("a", W, F), ("b", F, W)), after_ms=MINUTE, titles=[A_FAILS, "b (no site) recovered"]
    ),
    "more share a digest": Case(
        pending=(("a", W, F), ("b", W, F), ("c", W, S)),
        after_ms=MINUTE,
        titles=["3 devices: 1 is silent, 2 keep failing"],
    ),
    "what was found at the first start is one digest": Case(
        pending=(("a", N, F), ("b", N, S)), after_ms=MINUTE, titles=["2 devices: 1 is silent, 1 keeps failing"]
    ),
    "failed and recovered": Case(
        pending=(("a", W, F), ("a", F, W)), after_ms=MINUTE, titles=["a (no site) failed and recovered"]
    ),
    "silent and back": Case(
        pending=(("a", W, S), ("a", S, W)), after_ms=MINUTE, titles=["a (no site) was silent and is back"]
    ),
    "known as failing, and failing again": Case(
        pending=(("a", F, W), ("a", W, F)), after_ms=MINUTE, titles=["a (no site) recovered and keeps failing again"]
    ),
    "known as failing, and silent now": Case(pending=(("a", F, S),), after_ms=HOUR, titles=["a (no site) is silent"]),
    "known as silent, and failing now": Case(pending=(("a", S, F),), after_ms=MINUTE, titles=[A_FAILS]),
    "a retired device has no notice": Case(pending=(("a", W, F), ("a", F, X)), after_ms=MINUTE, titles=[]),
    "soon after a notice nothing goes out": Case(
        pending=(("a", W, F),), after_ms=MINUTE, last_ago_ms=15 * MINUTE - 1, titles=[]
    ),
    "later it does": Case(pending=(("a", W, F),), after_ms=MINUTE, last_ago_ms=15 * MINUTE, titles=[A_FAILS]),
    "a notice of the future delays nothing": Case(
        pending=(("a", W, F),), after_ms=MINUTE, last_ago_ms=-HOUR, titles=[A_FAILS]
    ),
    "a transition of the future goes out at once": Case(pending=(("a", W, F),), after_ms=-HOUR, titles=[A_FAILS]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_notices_go_out_when_they_are_due(case: Case) -> None:
    pending = [transition(number, device, before, state) for number, (device, before, state) in enumerate(case.pending)]
    now = MIDNIGHT + case.after_ms
    last = None if case.last_ago_ms is None else now - case.last_ago_ms
    assert titles(pending, now, RULES, last) == case.titles


class TestQuietHours:
    """Midnight in UTC is three in the morning in Nairobi; quiet ends at 03:00 UTC."""

    def test_nothing_goes_out(self) -> None:
        pending = [transition(1), transition(2, "b"), transition(3, "c", state=S)]
        assert titles(pending, MIDNIGHT + 3 * HOUR - 1, NIGHT) == []
        assert not replace(NIGHT, digest_hour=5).is_daily_due(now_ms=MIDNIGHT + 2 * HOUR, last_daily_ms=0)

    def test_their_end_brings_one_digest(self) -> None:
        pending = [transition(1), transition(2, before=F, state=W), transition(3, "b")]
        assert titles(pending, MIDNIGHT + 3 * HOUR, NIGHT) == ["2 devices: 1 keeps failing, 1 failed and recovered"]

    def test_a_single_device_needs_no_digest(self) -> None:
        assert titles([transition(1)], MIDNIGHT + 3 * HOUR, NIGHT) == [A_FAILS]

    def test_changes_of_the_day_go_out_separately(self) -> None:
        pending = [transition(1, at_ms=MIDNIGHT + 4 * HOUR), transition(2, "b", at_ms=MIDNIGHT + 4 * HOUR)]
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


changes = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(STATES[:3]), st.integers(0, 48 * 60)), max_size=60
)


def life(found: list[tuple[str, State, int]]) -> list[Transition]:
    """Transitions in the order of time; each begins in the state in which the device's last one ended."""
    states: dict[str, State] = {}
    every: list[Transition] = []
    for device, state, minute in sorted(found, key=lambda each: each[2]):
        before = states.get(device, W)
        if before != state:
            states[device] = state
            every.append(transition(len(every), device, before, state, MIDNIGHT + minute * MINUTE))
    return every


@given(changes.map(life), st.sampled_from([RULES, NIGHT]), st.integers(0, 4))
def test_every_transition_of_two_days_is_in_one_notice(every: list[Transition], rules: Rules, digest_over: int) -> None:
    rules = replace(rules, digest_over=digest_over)
    covered: list[int] = []
    told: list[int] = []
    for now in range(MIDNIGHT, MIDNIGHT + 61 * HOUR, MINUTE):
        pending = [each for each in every if each.at_ms <= now and each.id not in covered]
        if not due(pending, now, rules, told[-1] if told else None):
            continue
        assert rules.quiet_hours is None or not rules.quiet_hours.includes(now, rules.zone)
        assert not told or now - told[-1] >= 15 * MINUTE
        devices = {each.device_id for each in pending}
        assert len(made(pending, rules)) in (1, len(devices))
        covered += [each.id for each in pending]
        told.append(now)
    assert sorted(covered) == [each.id for each in every]


class TestDaily:
    RULES = replace(NIGHT, digest_hour=7)
    SEVEN = MIDNIGHT + 4 * HOUR
    """07:00 in Nairobi."""

    @pytest.mark.parametrize(
        ("now", "last", "is_due"),
        [
            (SEVEN - 1, SEVEN - DAY, False),
            (SEVEN, SEVEN - DAY, True),
            (SEVEN + 9 * HOUR, SEVEN - DAY + 5, True),
            (SEVEN + DAY - 1, SEVEN, False),
            (SEVEN + DAY, SEVEN + 3 * HOUR, True),
            (SEVEN, None, True),
            (SEVEN + HOUR, None, False),
            (SEVEN - 3 * HOUR + MINUTE, SEVEN, False),
            (SEVEN, SEVEN + 70 * 365 * DAY, True),
        ],
        ids=[
            "before its hour", "at its hour", "late after a pause", "made today", "late yesterday", "the first of all",
            "the first waits for its hour", "the clock was set back", "made by a clock in another century",
        ],
    )  # fmt: skip
    def test_it_is_made_once_a_day(self, now: int, last: int | None, is_due: bool) -> None:
        assert self.RULES.is_daily_due(now_ms=now, last_daily_ms=last) is is_due
        assert not RULES.is_daily_due(now_ms=now, last_daily_ms=last)

    @given(st.lists(st.integers(0, 6 * 24 * 60), max_size=300), st.sampled_from([NAIROBI, time_zone("Europe/Berlin")]))
    def test_it_is_made_once_a_day_whenever_it_is_looked_at(self, minutes: list[int], zone: ZoneInfo) -> None:
        rules, days = replace(RULES, digest_hour=2, zone=zone), list[str]()
        start = round(datetime(2026, 10, 22, tzinfo=UTC).timestamp() * 1000)  # clocks change on the 25th in Berlin
        last: int | None = start - DAY
        for minute in sorted(minutes):
            now = start + minute * MINUTE
            if rules.is_daily_due(now_ms=now, last_daily_ms=last):
                last = now
                days.append(datetime.fromtimestamp((now - 2 * HOUR) / 1000, zone).date().isoformat())
        assert sorted(set(days)) == days

    def test_it_names_sites_in_need_and_what_changed(self) -> None:
        sites = {
            "Kisumu": {W: 30, F: 2, S: 1},
            "Nakuru": {S: 34, X: 2},
            "Turkana\n": {F: 33},
            "Voi": {W: 5, N: 2},
            None: {F: 1},
        }
        changed: list[tuple[State, State, int]] = [
            (W, F, 3),
            (N, F, 1),
            (W, S, 2),
            (F, W, 4),
            (N, W, 5),
            (W, X, 1),
            (X, N, 1),
        ]
        notice = daily(sites, changed, incomplete=2, url="https://pisync.example")
        assert notice.kind == "daily"
        assert notice.title == "2 sites need help: 35 well, 36 failing, 35 silent, 2 new"
        assert notice.body.splitlines() == [
            "108 devices at 4 sites: 35 well, 36 failing, 35 silent, 2 new",
            "Nakuru: 34 of 34 devices are silent since 2026-11-24 03:00 EAT",
            "Turkana\\n: 33 of 33 devices keep failing since 2026-11-24 03:00 EAT (mostly dns, tls)",
            "no site: 1 of 1 device keeps failing since 2026-11-24 03:00 EAT (mostly dns, tls)",
            "Kisumu: 1 of 33 devices is silent, 2 keep failing since 2026-11-24 03:00 EAT (mostly dns, tls)",
            "2 incomplete devices, 57 missing events",
            "In the last day: 3 began to fail, 2 fell silent, 4 recovered, 5 reported for the first time, 1 retired",
            "https://pisync.example/",
        ]

    def test_a_well_fleet_is_one_line(self) -> None:
        notice = daily({"Nakuru": {W: 34}}, [])
        assert (notice.title, notice.body) == ("All is well: 34 devices at 1 site", "34 devices at 1 site: 34 well")

    def test_scattered_trouble_is_no_site_in_need(self) -> None:
        assert daily({"Nakuru": {W: 34, F: 1}}, []).title == "Some devices need help: 34 well, 1 failing"

    def test_it_stays_short(self) -> None:
        lines = daily({f"School {n:03}": {F: 10} for n in range(300)}, []).body.splitlines()
        assert (len(lines), lines[-1]) == (22, "and 2,800 devices at 280 more sites")


def daily(
    sites: dict[str | None, dict[str, int]],
    changes: list[tuple[State, State, int]],
    *,
    incomplete: int = 0,
    url: str | None = None,
) -> Notice:
    """The digest of a fleet with these devices of each site in each state."""
    counts = []
    for site, by in sites.items():
        _, failing, silent, new, retired = (by.get(state, 0) for state in STATES)
        counts.append(SiteCounts(site, None, sum(by.values()), failing, silent, new, retired, 0, None))
    troubled = [
        TroubledDevice(site, STATES.index(state), MIDNIGHT, '{"tls": 1, "dns": 2}')
        for site, by in sites.items()
        for state in (F, S)
        for _ in range(by.get(state, 0))
    ]
    records = site_records(counts, {}, troubled)
    overview = Overview(
        at="2026-11-24T00:00:00.000Z",
        devices=state_counts(records),
        incomplete=incomplete,
        cloned=0,
        events_missing=57,
        sites=sum(record.site is not None for record in records),
        sites_in_need=sum(record.in_need for record in records),
        today=Today(runs=0, failed=0, events=0),
        delay=[],
        changes=[
            Change(site="Voi", before=before, state=state, devices=count, since=None)
            for before, state, count in changes
        ],
    )
    return daily_digest(records, overview, zone=NAIROBI, links=Links(url))


class TestNotices:
    def test_a_notice_has_site_time_causes_and_its_page(self) -> None:
        (notice,) = made([transition(1, site="Nakuru")], replace(RULES, zone=NAIROBI), url="https://pisync.example")
        assert notice.title == "a (Nakuru) keeps failing"
        assert notice.body == (
            "Nakuru: 1 device keeps failing since 2026-11-24 02:00 EAT (dns): a\nhttps://pisync.example/devices/a"
        )

    def test_a_dead_site_is_one_notice(self) -> None:
        pending = [transition(n, f"d{n}", state=S, site="Nakuru/Süd") for n in range(34)]
        (notice,) = made(pending, active={"Nakuru/Süd": 40}, url="https://pisync.example")
        assert notice.title == "Nakuru/Süd is silent: 34 of 40 devices"
        assert notice.body == (
            "Nakuru/Süd is silent: 34 of 40 devices since 2026-11-23 23:00 UTC\n"
            "https://pisync.example/sites/Nakuru%2FS%C3%BCd"
        )
        assert made(pending, active={"Nakuru/Süd": 69})[0].title == "34 devices: 34 are silent"
        assert len(made(pending[:2], active={"Nakuru/Süd": 2})) == 2

    def test_a_site_stands_beside_other_devices(self) -> None:
        pending = [transition(n, f"d{n}", site="Nakuru") for n in range(3)]
        pending += [transition(3, "e", F, W, site="Nakuru"), transition(4, "f", W, S, site=None)]
        (notice,) = made(pending, active={"Nakuru": 4})
        assert notice.title == "5 devices: 1 is silent, 3 keep failing, 1 recovered"
        assert notice.body.splitlines() == [
            "Nakuru keeps failing: 3 of 4 devices since 2026-11-23 23:00 UTC (dns)",
            "Nakuru: 1 device recovered: e",
            "no site: 1 device is silent since 2026-11-23 23:00 UTC: f",
        ]

    def test_devices_without_a_site_are_no_site(self) -> None:
        pending = [transition(n, f"d{n}", state=S) for n in range(3)]
        assert made(pending, active={None: 3})[0].title == "3 devices: 3 are silent"

    def test_a_digest_of_many_sites_stays_short(self) -> None:
        pending = [
            transition(n, f"d{n:04}", *((W, F) if n % 2 else (F, W)), site=f"School {n % 300:03}" if n % 300 else None)
            for n in range(6000)
        ]
        (notice,) = made(pending, active={f"School {n:03}": 100 for n in range(300)})
        lines = notice.body.splitlines()
        assert notice.title == "6,000 devices: 3,000 keep failing, 3,000 recovered"
        assert len(lines) == 21
        assert lines[-1] == "and 5,600 devices at 280 more sites"
        assert len(notice.body) < 4_000

    @pytest.mark.parametrize("errors", [None, "{", "[1]"], ids=["none", "not JSON", "not an object"])
    def test_a_transition_without_readable_errors_has_a_notice(self, errors: str | None) -> None:
        row = transition(1)
        (notice,) = made([Transition(**{**{f: getattr(row, f) for f in row.__struct_fields__}, "errors": errors})])
        assert notice.body == "no site: 1 device keeps failing since 2026-11-23 23:00 UTC: a"

    @pytest.mark.parametrize(
        ("site", "shown"),
        [
            ("two\nlines", "two\\nlines"),
            ("\u202egnp.exe", "\\u202egnp.exe"),
            ("a\u2066b\u2069\u200f", "a\\u2066b\\u2069\\u200f"),
            ("\x1b[31m", "\\x1b[31m"),
            ("<script>", "<script>"),
            ("=HYPERLINK(1)", "=HYPERLINK(1)"),
            ("مدرسة نور", "مدرسة نور"),
            ("می\u200cخواهم", "می\u200cخواهم"),
        ],
    )
    def test_a_hostile_name_is_one_line_of_text(self, site: str, shown: str) -> None:
        (notice,) = made([transition(1, site=site)])
        assert notice.title == f"a ({shown}) keeps failing"
        assert notice.body.splitlines() == [f"{shown}: 1 device keeps failing since 2026-11-23 23:00 UTC (dns): a"]
