"""How pages write times, numbers and names, and how rows of the API become days of a chart."""

import pytest

from pisync_common.models import ERROR_CODES
from pisync_common.times import format_ms
from pisync_receiver.window.advice import advice, cause
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.filters import NOW_MS, bidi, duration, number, ranges, size, when
from pisync_receiver.window.i18n import LANGUAGES, choose_language
from pisync_receiver.window.runs import causes_of, clock_error_s, days_of, speeds_of
from pisync_receiver.window.series import by_day, by_name, days_until

NOON = 1_795_435_200_000
DAY = 86_400_000


@pytest.mark.parametrize(
    ("ago_ms", "said"),
    [
        (0, "just now"), (59_000, "just now"), (60_000, "1 minute ago"), (7_140_000, "119 minutes ago"),
        (7_200_000, "2 hours ago"), (47 * 3_600_000, "47 hours ago"), (2 * DAY, "2 days ago"),
        (2_000 * DAY, "2,000 days ago"), (-30_000, "just now"), (-3 * DAY, "in 3 days"),
    ],
)  # fmt: skip
def test_times_are_relative_with_the_exact_value_at_hand(ago_ms: int, said: str) -> None:
    NOW_MS.set(NOON)
    time = format_ms(NOON - ago_ms)
    exact = time.replace("T", " ").replace(".000Z", " UTC")
    assert when(time) == f'<time datetime="{time}" title="{exact}">{said}</time>'


def test_numbers_sizes_and_ranges() -> None:
    assert [number(value) for value in (0, 1234567, 1.0, 2.55)] == ["0", "1,234,567", "1", "2.5"]
    assert [size(value) for value in (0, 1023, 1024, 5 * 1024**3)] == ["0 B", "1,023 B", "1 KiB", "5 GiB"]
    assert duration(0) == "0 seconds"
    assert duration(1) == "1 second"
    assert duration(3_600) == "1 hour"
    assert ranges([[108, 120], [1500, 1500]]) == "108 to 120, 1,500"


def test_a_name_is_escaped_and_keeps_its_direction() -> None:
    assert bidi('<b>"x"') == "<bdi>&lt;b&gt;&#34;x&#34;</bdi>"
    assert path_of("/sites/{}/notes", "a/b ?é\u202e") == "/sites/a%2Fb%20%3F%C3%A9%E2%80%AE/notes"


def test_every_error_code_of_a_device_has_advice() -> None:
    for code in ERROR_CODES:
        assert cause(code) != code
        assert advice(code)
    assert cause("new_code") == "new_code"
    assert advice("new_code") is None


@pytest.mark.parametrize(
    ("asked", "remembered", "accepted", "chosen"),
    [
        (None, None, "", "en"),
        (None, None, "de-DE,xx;q=0.9", "en"),
        ("en", "xx", "de", "en"),
        (None, "xx", "en-GB", "en"),
    ],
)
def test_a_language_that_is_not_there_is_english(
    asked: str | None, remembered: str | None, accepted: str, chosen: str
) -> None:
    assert choose_language(asked=asked, remembered=remembered, accepted=accepted) is LANGUAGES[chosen]


def test_rows_become_days_from_the_first_with_numbers() -> None:
    days = days_until(NOON, 5)
    assert days == ["2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"]
    rows = [
        {"day": "2026-11-20", "code": "dns", "errors": 2},
        {"day": "2026-11-20", "code": "tls", "errors": 1},
        {"day": "2026-11-20", "code": "dns", "errors": 1},
        {"day": "2026-11-22", "code": "auth", "errors": 1},
    ]
    assert by_name(rows, days, name="code", value="errors", most=1, other="other") == (
        ["dns", "other"],
        [["2026-11-20", 3, 1], ["2026-11-21", 0, 0], ["2026-11-22", 0, 1], ["2026-11-23", 0, 0]],
    )
    assert by_name([], days, name="code", value="errors", most=1, other="other") == ([], [])
    speeds = [{"day": "2026-11-22", "speed": 1.5}]
    assert by_day(speeds, days, "speed", empty=None) == [["2026-11-22", 1.5], ["2026-11-23", None]]


def run(
    at: str, *, received: str | None = None, errors: int = 0, code: str = "dns", speed: float = 0, id: int = 1
) -> dict[str, object]:
    record = {"id": id, "timestamp": at, "received_at": received or at, "total_errors": errors, "internet_speed": speed}
    return record | ({"errors": {code: errors}} if errors else {})


def test_runs_of_a_device_by_day() -> None:
    runs = [
        run("2026-11-22T08:00:00Z", errors=2),
        run("2026-11-22T09:00:00Z", speed=3),
        run("2026-11-22T10:00:00Z", speed=1),
        run("2026-11-23T08:00:00Z", errors=1, code="tls"),
    ]
    kinds = [(day.day, day.kind) for day in days_of(runs, ["2026-11-21", "2026-11-22", "2026-11-23"])]
    assert kinds == [("2026-11-21", "none"), ("2026-11-22", "mixed"), ("2026-11-23", "failed")]
    assert causes_of(runs) == [{"code": "dns", "runs": 1}, {"code": "tls", "runs": 1}]
    assert speeds_of(runs) == [{"day": "2026-11-22", "speed": 3}]


def test_the_clock_is_judged_by_the_newest_arrival() -> None:
    late = run("2026-11-20T08:00:00Z", received="2026-11-23T08:00:00Z", id=1)
    ahead = run("2098-11-23T08:00:00Z", received="2026-11-23T09:00:00Z", id=2)
    right = run("2026-11-23T10:00:00Z", received="2026-11-23T10:00:05Z", id=3)
    assert clock_error_s([]) is None
    assert clock_error_s([late]) == -3 * 86_400
    assert (clock_error_s([late, ahead]) or 0) > 72 * 365 * 86_400
    assert clock_error_s([right, ahead, late]) is None
