"""Times on the wire: what is read, what is refused, and that whatever is read can be written."""

import pytest

from pisync_common.errors import RuleError
from pisync_common.times import format_ms, parse_ms


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-23T10:00:00.000Z", "2026-11-23T10:00:00.000Z"),
        ("2026-11-23t10:00:00z", "2026-11-23T10:00:00.000Z"),
        ("2026-11-23 10:00:00.5+03:00", "2026-11-23T07:00:00.500Z"),
        ("2026-11-23T10:00:00.123456789Z", "2026-11-23T10:00:00.123Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_is_read_and_written_again(text: str, shown: str) -> None:
    assert format_ms(parse_ms(text)) == shown


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60Z", "2016-12-31T23:59:60.250Z", "2017-01-01T02:59:60+03:00"])
def test_a_leap_second_is_the_last_millisecond_before_it(text: str) -> None:
    assert format_ms(parse_ms(text)) == "2016-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-28T10:00:00.\u0663Z",
        "\u0662026-11-28T10:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "2026-02-30T10:00:00Z",
        "2026-11-28T10:00:61Z",
        "2026-11-28T10:00:00",
        "",
    ],
)
def test_a_time_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(RuleError):
        parse_ms(text)
