"""The rules of identifiers, and times and events as they are written on the wire."""

import json
from collections.abc import Callable

import pytest

from pisync_common import rules, times, wire
from pisync_common.errors import RuleError
from pisync_common.models import Stamp

STAMP = Stamp(at_ms=1_000, boot_id="b", boottime_ms=5, clock_synced=True)
BEYOND_TEXT = ["", "a\nb", "a\x00", "\x7f", "\x85", "\u2028", "\ud800"]


@pytest.mark.parametrize("value", ["a", "7", "._x", "pibook-0042", "A:b@c+d-e_f.g", "x" * 128])
def test_ids_have_a_letter_or_digit(value: str) -> None:
    assert rules.check_id("device_id", value) == value


@pytest.mark.parametrize("value", ["", ".", "..", "-", "._:@+-", "a/b", "a b", "é", "x" * 129, "a\n", 7, None])
def test_other_ids_are_rejected_by_name(value: object) -> None:
    with pytest.raises(RuleError, match="stream must be"):
        rules.check_id("stream", value)  # type: ignore[arg-type]


TEXTS = [
    (rules.check_learner_id, 256),
    (rules.check_object_id, 512),
    (rules.check_event_id, 128),
    (rules.check_site, 256),
]


@pytest.mark.parametrize(("check", "chars"), TEXTS)
def test_text_ids_take_any_script_up_to_their_length(check: Callable[[str], str], chars: int) -> None:
    for value in ("s-17", "2024/017", "فاطمة الزهراء", "सीता देवी", "क्\u200dष", "a@b.org", "😀" * chars):
        assert check(value) == value
    for value in (*BEYOND_TEXT, "x" * (chars + 1)):
        with pytest.raises(RuleError, match=f"1 to {chars} characters"):
            check(value)


def test_the_patterns_of_text_ids_are_ascii_and_say_their_length() -> None:
    assert rules.LEARNER_ID_PATTERN == r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\ud800-\udfff]{1,256}$"
    assert rules.LEARNER_ID_PATTERN.replace("256", "512") == rules.OBJECT_ID_PATTERN


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999-00:01", "٢٠٢٦-11-23T10:00:00Z", "2026-02-30T00:00:00Z"],
)
def test_times_that_cannot_be_written_again_are_rejected(text: str) -> None:
    with pytest.raises(RuleError):
        times.parse_ms(text)


@pytest.mark.parametrize("ms", [times.EARLIEST_MS, 0, times.LATEST_MS])
def test_every_time_in_range_is_read_as_it_was_written(ms: int) -> None:
    assert times.parse_ms(times.format_ms(ms)) == ms


def test_an_event_without_the_apps_time_says_once_when_it_was_recorded() -> None:
    head = {"occurred_at": "1970-01-01T00:00:01.000Z", "boot_id": "b", "boottime_ms": 5, "clock_synced": True}
    for occurred_at_ms in (None, STAMP.at_ms):
        text = wire.encode_event(seq=1, type="video.watched", stamp=STAMP, occurred_at_ms=occurred_at_ms)
        assert json.loads(text) == {"seq": 1, "type": "video.watched"} | head


def test_the_apps_own_time_and_id_travel_beside_the_time_of_recording() -> None:
    text = wire.encode_event(seq=1, type="video.watched", stamp=STAMP, occurred_at_ms=0, id="k 1", learner_id="فا")
    assert list(json.loads(text).items()) == [
        ("seq", 1),
        ("type", "video.watched"),
        ("id", "k 1"),
        ("learner_id", "فا"),
        ("occurred_at", "1970-01-01T00:00:00.000Z"),
        ("recorded_at", "1970-01-01T00:00:01.000Z"),
        ("boot_id", "b"),
        ("boottime_ms", 5),
        ("clock_synced", True),
    ]
