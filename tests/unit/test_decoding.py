"""Batches as the receiver reads them: a good one whole, a bad event rejected alone, its neighbours stored."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_common import wire as device
from pisync_common.errors import RuleError
from pisync_common.limits import BATCH_EVENTS, DATA_BYTES, DATA_DEPTH, SEQ_MAX
from pisync_common.models import Origin, Stamp
from pisync_common.times import format_ms, parse_ms
from pisync_receiver.api.decoding import decode_batch as decode_with_time
from pisync_receiver.api.decoding import decode_body, decode_enrollment, decode_sync_event, to_ms
from pisync_receiver.api.schemas import CodeRequest, DeviceChanges, TokenRequest
from pisync_receiver.domain.submissions import EventBatch
from pisync_receiver.errors import Problem

STAMP = Stamp(at_ms=1_795_000_000_123, boot_id="b-1", boottime_ms=99_001, clock_synced=True)


def event(seq: Any = 1, **changes: Any) -> dict[str, Any]:
    fields = {"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:12:09.120Z"} | changes
    return {name: value for name, value in fields.items() if value is not ...}


def batch(*events: object, **changes: Any) -> bytes:
    fields = {"device_id": "pi-1", "stream": "s1", "events": list(events)} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def decode_batch(body: bytes) -> EventBatch:
    return decode_with_time(body, 1_795_428_000_000)


def decode(*events: object, **changes: Any) -> EventBatch:
    return decode_batch(batch(*events, **changes))


def test_what_the_device_encodes_arrives_as_it_was() -> None:
    text = device.encode_event(
        seq=7,
        type="note.taken",
        stamp=STAMP,
        learner_id="s-17",
        object_id="math/g5 — ü",
        data='{"text":"naïve \\"x\\"","n":1.50}',
        origin=Origin(stream="old", seq=3),
    )
    found = decode_batch(
        device.encode_batch(device_id="pi-1", stream="s1", sent=STAMP, agent="pisync/0", events=[text])
    )
    assert (found.device_id, found.stream, found.agent, found.sent) == ("pi-1", "s1", "pisync/0", STAMP)
    assert found.invalid == []
    (one,) = found.events
    assert (one.seq, one.type, one.learner_id, one.object_id) == (7, "note.taken", "s-17", "math/g5 — ü")
    assert (one.occurred_at, one.occurred_ms) == (format_ms(STAMP.at_ms), STAMP.at_ms)
    assert (one.boot_id, one.boottime_ms, one.clock_synced) == ("b-1", 99_001, True)
    assert one.data == '{"text":"naïve \\"x\\"","n":1.50}'
    assert one.origin == Origin(stream="old", seq=3)


def test_the_least_an_event_needs_is_enough_and_unknown_fields_are_ignored() -> None:
    found = decode({"seq": 1, "type": "a.b", "occurred_at": "2026-11-23T08:12:09Z", "mood": "good"}, weather="fine")
    (one,) = found.events
    assert (one.learner_id, one.object_id, one.boot_id, one.boottime_ms, one.data) == (None,) * 5
    assert one.clock_synced is False
    assert found.sent is None


def test_null_is_the_same_as_absent() -> None:
    (one,) = decode(event(data=None, learner_id=None, object_id=None, boot_id=None, origin=None), sent=None).events
    assert (one.data, one.learner_id, one.origin) == (None, None, None)


def test_an_empty_batch_is_a_batch() -> None:
    assert decode().events == []


GOOD_DATA = '{"deep":' + "[" * (DATA_DEPTH - 1) + "]" * (DATA_DEPTH - 1) + "}"
BIGGEST_DATA = '{"a":"' + "x" * (DATA_BYTES - 8) + '"}'


@pytest.mark.parametrize("data", ["{}", '{"a":"\\u0000"}', '{"a":1e999}', GOOD_DATA, BIGGEST_DATA, '{"[":"{{{{"}'])
def test_data_is_kept_as_the_text_it_came_in(data: str) -> None:
    body = batch(event(data="HERE")).replace(b'"HERE"', data.encode())
    assert decode_batch(body).events[0].data == data


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "Video"}, "noun.verb"),
        ({"type": "a." + "b" * 127}, "noun.verb"),
        ({"type": "a.b\n"}, "noun.verb"),
        ({"type": 3}, "$.type"),
        ({"type": ...}, "type"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"occurred_at": "2026-11-23T08:12:09.120"}, "occurred_at"),
        ({"occurred_at": "2026-02-30T08:12:09.120Z"}, "occurred_at"),
        ({"occurred_at": "2026-W48-1T08:12:09.120Z"}, "occurred_at"),
        ({"occurred_at": ...}, "occurred_at"),
        ({"learner_id": ""}, "learner_id"),
        ({"learner_id": "s-17\n"}, "learner_id"),
        ({"learner_id": "x" * 257}, "learner_id"),
        ({"id": "a\u0000b"}, "id"),
        ({"learner_home": ""}, "1 to 256"),
        ({"recorded_at": "now"}, "recorded_at"),
        ({"object_id": "a\u0007b"}, "object_id"),
        ({"object_id": "x" * 513}, "object_id"),
        ({"boot_id": "a b"}, "boot_id"),
        ({"boottime_ms": -1}, "boottime_ms"),
        ({"clock_synced": "yes"}, "clock_synced"),
        ({"data": [1]}, "data must be a JSON object"),
        ({"data": "text"}, "data must be a JSON object"),
        ({"data": {"a": "x" * DATA_BYTES}}, "data is over"),
        ({"data": {"a": "é" * (DATA_BYTES // 2)}}, "data is over"),
        ({"origin": {"stream": "a b", "seq": 1}}, "origin.stream"),
        ({"origin": {"stream": "a", "seq": 0}}, "origin.seq"),
    ],
)
def test_a_bad_event_is_rejected_alone_and_its_body_kept(changes: dict[str, Any], says: str) -> None:
    found = decode(event(1), event(2, **changes), event(3))
    assert [each.seq for each in found.events] == [1, 3]
    (bad,) = found.invalid
    assert (bad.seq, bad.code) == (2, "invalid_event")
    assert says in bad.detail
    assert json.loads(bad.body)["seq"] == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "Unicode"),
        (b'{"deep":' + b"[" * DATA_DEPTH + b"]" * DATA_DEPTH + b"}", "deep"),
    ],
)
def test_data_that_is_no_text_or_nests_too_deep_is_rejected_alone(data: bytes, says: str) -> None:
    body = batch(event(1), event(2, data="HERE"), event(3, data={"n": 1.5})).replace(b'"HERE"', data)
    found = decode_batch(body)
    assert [each.seq for each in found.events] == [1, 3]
    assert json.loads(found.events[1].data or "") == {"n": 1.5}
    (bad,) = found.invalid
    assert bad.seq == 2
    assert says in bad.detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"{",
        b"\xff\xfe",
        batch(event())[:-1],
        batch(event()) + b"x",
        batch(event(), device_id=...),
        batch(event(), device_id=1),
        batch(event(), device_id="a b"),
        batch(event(), device_id="a\n"),
        batch(event(), stream=...),
        batch(event(), stream=""),
        batch(event(), events=...),
        batch(event(), events={}),
        batch(1),
        batch(None),
        batch(event(), agent=5),
        batch(event(), agent="\ud800"),
        batch(event(), stream="\ud800"),
        batch(event(seq="\ud800")),
        batch(event(), sent={"at": "now", "boot_id": "b", "boottime_ms": 1}),
        batch(event(), sent={}),
        batch(event(), sent={"at": "now"}),
        batch(event(), sent={"at": "2026-11-23T08:12:09Z", "boot_id": "a b"}),
        batch(event(seq=...)),
        batch(event(seq=0)),
        batch(event(seq=-1)),
        batch(event(seq=1.5)),
        batch(event(seq=True)),
        batch(event(seq="1")),
        batch(event(seq=SEQ_MAX + 1)),
        batch(event()).replace(b'"seq": 1', b'"seq": NaN'),
        b"[" * 100_000,
        b'{"events":' + b"[" * 100_000,
    ],
)
def test_what_is_no_batch_is_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        decode_batch(body)
    assert (caught.value.status, caught.value.problem_code) == (400, "invalid_batch")


def test_more_events_than_a_batch_may_have_are_413() -> None:
    assert len(decode(*(event(n + 1) for n in range(BATCH_EVENTS))).events) == BATCH_EVENTS
    for bad in ({}, {"type": "Bad"}):
        with pytest.raises(Problem) as caught:
            decode(*(event(n + 1, **bad) for n in range(BATCH_EVENTS + 1)))
        assert (caught.value.status, caught.value.problem_code) == (413, "batch_too_large")


@given(
    moment=st.datetimes(),
    fraction=st.text("0123456789", max_size=9),
    offset=st.sampled_from(["Z", "z", "+00:00", "-05:30", "+14:00"]),
    between=st.sampled_from("Tt "),
)
def test_a_time_is_read_as_the_common_rules_read_it(moment: Any, fraction: str, offset: str, between: str) -> None:
    text = moment.strftime(f"{moment.year:04d}-%m-%d{between}%H:%M:%S") + (fraction and f".{fraction}") + offset
    assert _outcome(lambda: to_ms("x", text)) == _outcome(lambda: parse_ms(text))


@given(st.text("0123456789-:.TZW+ ", min_size=24, max_size=24))
def test_no_text_is_a_time_that_the_common_rules_do_not_call_one(text: str) -> None:
    assert _outcome(lambda: to_ms("x", text)) == _outcome(lambda: parse_ms(text))


@given(st.integers(0, 23), st.characters(codec="utf-8"))
def test_no_time_with_one_wrong_character_is_one_either(place: int, character: str) -> None:
    text = "2026-11-23T08:12:09.120Z"
    changed = text[:place] + character + text[place + 1 :]
    assert _outcome(lambda: to_ms("x", changed)) == _outcome(lambda: parse_ms(changed))


def _outcome(read: Any) -> object:
    try:
        return read()
    except RuleError:
        return "no time"


def test_a_whole_number_may_be_written_with_a_point() -> None:
    body = batch(event(1.0, boottime_ms=5.0, data={"n": 2.0}, origin={"stream": "o", "seq": 3.0}))
    sent = {"at": "2026-11-23T08:12:09Z", "boot_id": "b", "boottime_ms": 7.0, "clock_synced": True}
    for text in (
        body,
        batch(event(1.0, boottime_ms=5.0, data={"n": 2.0}, origin={"stream": "o", "seq": 3}), sent=sent),
    ):
        found = decode_batch(text)
        (one,) = found.events
        assert (repr(one.seq), repr(one.boottime_ms), one.data) == ("1", "5", '{"n": 2.0}')
        assert one.origin == Origin(stream="o", seq=3)
    assert found.sent is not None
    assert found.sent.boottime_ms == 7
    report, _ = decode_sync_event(json.dumps(SYNC_EVENT | {"total_errors": 2.0, "errors": {"dns": 2.0}}).encode())
    assert (repr(report.total_errors), report.errors) == ("2", {"dns": 2})


SYNC_EVENT = {
    "device_id": "pi-1",
    "timestamp": "2026-11-23T10:00:00+02:00",
    "total_files_synced": 12,
    "total_errors": 0,
    "internet_speed": 50,
}


def test_a_sync_event_keeps_its_numbers_as_sent() -> None:
    found, at_ms = decode_sync_event(json.dumps(SYNC_EVENT).encode())
    assert at_ms == parse_ms("2026-11-23T08:00:00Z")
    assert found.timestamp == SYNC_EVENT["timestamp"]
    assert isinstance(found.internet_speed, int)
    decimal, _ = decode_sync_event(json.dumps(SYNC_EVENT | {"internet_speed": 50.0}).encode())
    assert isinstance(decimal.internet_speed, float)


@pytest.mark.parametrize(
    "change",
    [
        {"device_id": "a b"},
        {"device_id": 4},
        {"timestamp": "2026-11-23"},
        {"timestamp": 1},
        {"total_files_synced": -1},
        {"total_files_synced": 1.5},
        {"total_files_synced": "1"},
        {"total_files_synced": SEQ_MAX + 1},
        {"total_errors": None},
        {"total_errors": True},
        {"internet_speed": -0.1},
        {"internet_speed": "fast"},
        {"internet_speed": 10**30},
        {"errors": {"rain": 1}},
        {"errors": {"dns": -1}},
        {"errors": []},
    ],
)
def test_a_bad_sync_event_is_400(change: dict[str, object]) -> None:
    with pytest.raises(Problem) as caught:
        decode_sync_event(json.dumps(SYNC_EVENT | change).encode())
    assert (caught.value.status, caught.value.problem_code) == (400, "invalid_sync_event")


@pytest.mark.parametrize("field", list(SYNC_EVENT))
def test_every_field_of_a_sync_event_is_needed(field: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_sync_event(json.dumps({k: v for k, v in SYNC_EVENT.items() if k != field}).encode())
    assert field in caught.value.detail


def test_a_bad_enrollment_is_400_and_does_not_repeat_the_code() -> None:
    for body in (b"{}", b'{"code":""}', b'{"code":5}', b'{"code":"SECRET","device_id":"a b"}', b'{"code":"SECRET'):
        with pytest.raises(Problem) as caught:
            decode_enrollment(body)
        assert (caught.value.status, caught.value.problem_code) == (400, "invalid_enrollment")
        assert "SECRET" not in caught.value.detail


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (TokenRequest, {"scope": "king"}, "scope"),
        (TokenRequest, {"scope": "viewer", "sites": []}, "sites"),
        (TokenRequest, {"scope": "viewer", "sites": ["a\u0000"]}, "sites must be"),
        (TokenRequest, {"scope": "viewer", "label": ""}, "label must be"),
        (TokenRequest, {"scope": "viewer", "expires_in_s": -1}, "expires_in_s"),
        (CodeRequest, {"uses": 0}, "uses"),
        (CodeRequest, {"device_id": "a b"}, "device_id"),
        (DeviceChanges, {"site_since": "yesterday"}, "site_since"),
        (DeviceChanges, [], "object"),
    ],
)
def test_a_bad_act_is_400_and_names_the_field(kind: type, body: object, says: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_body(kind, json.dumps(body).encode())
    assert (caught.value.status, caught.value.problem_code) == (400, "invalid_request")
    assert says in caught.value.detail


def test_the_id_and_times_of_the_app_arrive_as_sent() -> None:
    (found,) = decode(
        event(id="5c1e", learner_home="https://lms", learner_id="é 17", recorded_at="2026-11-23T09:00:00Z")
    ).events
    assert (found.event_id, found.learner_home, found.learner_id) == ("5c1e", "https://lms", "é 17")
    assert (found.recorded_at, found.recorded_ms) == ("2026-11-23T09:00:00Z", parse_ms("2026-11-23T09:00:00Z"))


def test_numbers_of_any_length_and_lone_surrogates_fail_their_event_alone() -> None:
    tail = b'"type":"a.b","occurred_at":"2026-11-23T10:00:00Z"'
    digits = b'{"seq":1,' + tail + b',"learner_id":' + b"1" * 5000 + b',"object_id":"\\ud800"}'
    body = b'{"device_id":"pi-1","stream":"s","events":[%s]}'
    with pytest.raises(Problem, match="invalid batch"):
        decode_batch(body % digits)
    assert [bad.seq for bad in decode_batch(body % (b'{"seq":2,' + tail + b',"\\ud800":1}')).invalid] == [2]
