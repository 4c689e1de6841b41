"""What operators are told and when: nothing twice, nothing lost, nobody woken, one message for many."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.worker.alerts.plan import NOTHING, Crossing, Rules, State, plan
from pisync_receiver.worker.alerts.quiet import QuietHours, quiet_hours, time_zone
from pisync_receiver.worker.alerts.words import notices

NAIROBI = ZoneInfo("Africa/Nairobi")
RULES = Rules(quiet_hours=None, zone=UTC, digest_over=2, digest_window=60.0, digest_every=900.0)
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
        consecutive_failures=3,
        failing_since_ms=at_ms - HOUR,
        last_errors='{"dns": 2}',
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What waits, given as (device, kind); when that is looked at; and who is told of, None for nobody."""

    waiting: tuple[tuple[str, str], ...]
    after_ms: int
    told: dict[str, State] | None
    digest: bool = False
    last_digest_ago_ms: int | None = None
    rules: Rules = RULES


F, R = "failing", "recovered"
CASES = {
    "nothing waits": Case(waiting=(), after_ms=HOUR, told=None),
    "a single one waits for others": Case(waiting=(("a", F),), after_ms=59_999, told=None),
    "a single one goes after the window": Case(waiting=(("a", F),), after_ms=60_000, told={"a": State.FAILING}),
    "a few go each by itself": Case(
        waiting=(("a", F), ("b", R)), after_ms=MINUTE, told={"a": State.FAILING, "b": State.RECOVERED}
    ),
    "more go as one": Case(
        waiting=(("a", F), ("b", F), ("c", F)),
        after_ms=MINUTE,
        told=dict.fromkeys("abc", State.FAILING),
        digest=True,
    ),
    "one device is one story": Case(
        waiting=(("a", F), ("a", R), ("a", F), ("a", R)), after_ms=MINUTE, told={"a": State.FAILED_AND_RECOVERED}
    ),
    "told of as failing before, and failing again": Case(
        waiting=(("a", R), ("a", F)), after_ms=MINUTE, told={"a": State.FAILING_AGAIN}
    ),
    "failed, recovered, failing": Case(
        waiting=(("a", F), ("a", R), ("a", F)), after_ms=MINUTE, told={"a": State.FAILING_AGAIN}
    ),
    "soon after a digest nothing goes": Case(
        waiting=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=14 * MINUTE, told=None
    ),
    "later it does": Case(
        waiting=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=15 * MINUTE, told={"a": State.FAILING}
    ),
    "a digest of the future holds nothing up": Case(
        waiting=(("a", F),), after_ms=MINUTE, last_digest_ago_ms=-HOUR, told={"a": State.FAILING}
    ),
    "a crossing of the future is told at once": Case(waiting=(("a", F),), after_ms=-HOUR, told={"a": State.FAILING}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_told_when(case: Case) -> None:
    waiting = [crossing(number, device, kind) for number, (device, kind) in enumerate(case.waiting)]
    now = MIDNIGHT + case.after_ms
    last = None if case.last_digest_ago_ms is None else now - case.last_digest_ago_ms

    decided = plan(waiting, now_ms=now, last_digest_ms=last, rules=case.rules)

    if case.told is None:
        assert decided == NOTHING
    else:
        assert {story.device_id: story.state for story in decided.stories} == case.told
        assert decided.digest is case.digest
        assert decided.crossings == tuple(each.id for each in waiting)


class TestQuietHours:
    """Midnight in UTC is three in the morning in Nairobi; quiet ends at 03:00 UTC."""

    def test_nobody_is_woken(self) -> None:
        waiting = [crossing(1), crossing(2, "b"), crossing(3, "c")]
        assert plan(waiting, now_ms=MIDNIGHT + 3 * HOUR - 1, last_digest_ms=None, rules=NIGHT) == NOTHING

    def test_the_morning_brings_one_message(self) -> None:
        waiting = [crossing(1), crossing(2, kind="recovered"), crossing(3, "b")]
        decided = plan(waiting, now_ms=MIDNIGHT + 3 * HOUR, last_digest_ms=None, rules=NIGHT)
        assert decided.digest
        (notice,) = notices(decided, NAIROBI)
        assert notice.title == "2 devices: 1 keeps failing, 1 failed and recovered"

    def test_a_single_device_speaks_for_itself(self) -> None:
        decided = plan([crossing(1)], now_ms=MIDNIGHT + 3 * HOUR, last_digest_ms=None, rules=NIGHT)
        (notice,) = notices(decided, NAIROBI)
        assert (notice.digest, notice.title) == (False, "a keeps failing")

    def test_what_came_by_day_goes_as_by_day(self) -> None:
        waiting = [crossing(1, at_ms=MIDNIGHT + 4 * HOUR), crossing(2, "b", at_ms=MIDNIGHT + 4 * HOUR)]
        assert not plan(waiting, now_ms=MIDNIGHT + 5 * HOUR, last_digest_ms=None, rules=NIGHT).digest

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
    def test_from_a_minute_until_before_another(self, hours: str, minute: str, quiet: bool) -> None:
        moment = datetime.fromisoformat(f"2026-11-24T{minute}:30+03:00")
        assert quiet_hours(hours).includes(round(moment.timestamp() * 1000), NAIROBI) is quiet

    @pytest.mark.parametrize("value", ["22-6", "22:00", "24:00-06:00", "22:60-06:00", "06:00-06:00", "a:00-b:00"])
    def test_what_are_no_hours(self, value: str) -> None:
        with pytest.raises(ValueError, match=r"two times of day|no time or all day"):
            quiet_hours(value)

    @given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 4_000_000_000_000))
    def test_hours_and_the_rest_share_the_day(self, start: int, end: int, moment: int) -> None:
        if start != end:
            hours, rest = QuietHours(start=start, end=end), QuietHours(start=end, end=start)
            assert hours.includes(moment, NAIROBI) is not rest.includes(moment, NAIROBI)

    def test_when_clocks_change_the_wall_counts(self) -> None:
        """02:30 comes twice in Berlin on 25 October 2026, and both are quiet."""
        zone = time_zone("Europe/Berlin")
        for utc in ("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"):
            moment = round(datetime.fromisoformat(utc).timestamp() * 1000)
            assert quiet_hours("02:00-03:00").includes(moment, zone)

    @pytest.mark.parametrize("value", ["Kenya/Nairobi", "", "../etc/passwd", "UTC+25"])
    def test_what_is_no_zone(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a time zone"):
            time_zone(value)

    def test_utc_needs_no_file(self) -> None:
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
def test_two_days_of_looking_tell_everything_once(every: list[Crossing], rules: Rules, digest_over: int) -> None:
    rules = replace(rules, digest_over=digest_over)
    told: list[int] = []
    digests: list[int] = []
    messages = 0
    for now in range(MIDNIGHT, MIDNIGHT + 61 * HOUR, MINUTE):
        waiting = [each for each in every if each.at_ms <= now and each.id not in told]
        decided = plan(waiting, now_ms=now, last_digest_ms=digests[-1] if digests else None, rules=rules)
        if decided == NOTHING:
            continue
        assert rules.quiet_hours is None or not rules.quiet_hours.includes(now, rules.zone)
        assert not digests or now - digests[-1] >= 15 * MINUTE
        devices = [story.device_id for story in decided.stories]
        assert sorted(set(devices)) == sorted({each.device_id for each in waiting}) == devices
        assert decided.digest or len(devices) <= max(1, digest_over)
        told += decided.crossings
        messages += len(notices(decided, rules.zone))
        if decided.digest:
            digests.append(now)
    assert sorted(told) == [each.id for each in every], "everything, and once"
    assert messages <= len(every)


class TestWords:
    def test_a_site_is_named(self) -> None:
        decided = plan([crossing(1, site="Nakuru")], now_ms=MIDNIGHT + MINUTE, last_digest_ms=None, rules=RULES)
        (notice,) = notices(decided, NAIROBI)
        assert notice.title == "a (Nakuru) keeps failing"
        assert notice.body == "3 sync runs in a row failed since 2026-11-24 02:00 EAT (dns)."

    def test_a_digest_of_many_sites_stays_short(self) -> None:
        waiting = [
            crossing(n, f"d{n:04}", site=f"School {n % 300:03}" if n % 300 else None, kind=F if n % 2 else R)
            for n in range(6000)
        ]
        decided = plan(waiting, now_ms=MIDNIGHT + MINUTE, last_digest_ms=None, rules=RULES)
        (notice,) = notices(decided, UTC)
        lines = notice.body.splitlines()
        assert notice.title == "6,000 devices: 3,000 keep failing, 3,000 recovered"
        assert len(lines) == 51
        assert lines[-1] == "and 5,000 devices at 250 more sites"
        assert len(notice.body) < 8_000

    def test_a_few_devices_are_named(self) -> None:
        waiting = [crossing(1, "a", site="X"), crossing(2, "b", site="X"), crossing(3, "c", kind=R)]
        decided = plan(waiting, now_ms=MIDNIGHT + MINUTE, last_digest_ms=None, rules=RULES)
        (notice,) = notices(decided, UTC)
        assert notice.body.splitlines() == [
            "X: 2 devices keep failing since 2026-11-23 23:00 UTC (dns): a, b",
            "no site: 1 device recovered: c",
        ]
