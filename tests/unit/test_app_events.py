"""An event as an app in any language writes it, in whatever way it arrives."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.app_events import new_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.service import decoding, protocol
from pisync_common.models import Stamp

STAMP = Stamp(at_ms=1, boot_id="boot", boottime_ms=1, clock_synced=True)
LEARNERS = ("عائشة", "अनिता", "Nguyễn Ánh", 'O\'Neill "Jo" <jo@x>', "😀")


def decoded(text: str | bytes) -> decoding.Message:
    return decoding.decode_line(text.encode() if isinstance(text, str) else text, lambda: STAMP)


@pytest.mark.parametrize("learner", LEARNERS)
def test_each_field_is_kept_as_it_was_written(learner: str) -> None:
    written = {
        "type": "note.taken", "id": f"{learner}/1", "learner_id": learner, "object_id": learner,
        "occurred_at": "2026-11-23T10:00:00.123+03:00", "data": {"text": learner},
    }  # fmt: skip
    event = new_event(written, STAMP)

    assert (event.id, event.learner_id, event.object_id) == (f"{learner}/1", learner, learner)
    assert event.occurred_at_ms == int(datetime(2026, 11, 23, 7, tzinfo=UTC).timestamp()) * 1000 + 123
    assert json.loads(event.data or "") == {"text": learner}
    assert event.stamp == STAMP


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("text", "not a JSON object"),
        ({"learner_id": "s-17"}, '"type" is missing'),
        ({"type": "a.b", "learner": "s-17"}, "unknown field 'learner'"),
        ({"type": "a.b", "occurred_at": 17}, "occurred_at is not a text"),
        ({"type": "a.b", "occurred_at": "yesterday"}, "occurred_at: "),
        ({"type": "Watched"}, "noun.verb"),
        ({"type": "a.b", "data": []}, "data must be a JSON object"),
        ({"type": "a.b", "id": 7}, "id must be"),
    ],
)
def test_an_event_that_breaks_a_rule_is_refused_with_the_rule(written: object, reason: str) -> None:
    with pytest.raises(InvalidEvent, match=reason):
        new_event(written, STAMP)


def test_a_message_may_mix_both_forms_of_an_event() -> None:
    own = NewEvent.create("a.b", stamp=STAMP, learner_id="s-17", data={"n": 1})
    message = {"do": "record", "events": [own.fields(), {"type": "a.b", "learner_id": "s-17", "data": {"n": 1}}, 5]}
    events = decoded(json.dumps(message)).events or []

    assert [event for event in events if isinstance(event, NewEvent)] == [own, own]
    assert isinstance(events[2], InvalidEvent)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON"),
        ("[" * 60_000, "nested too deep"),
        ("[]", 'not a JSON object with "do"'),
        ('{"do": 5}', 'not a JSON object with "do"'),
        ('{"do": "record"}', '"events", an array'),
        (json.dumps({"do": "record", "events": [{}] * (protocol.RECORD_EVENTS + 1)}), "at most 1000"),
        (json.dumps({"do": "record", "events": [], "x": [0] * decoding.TOKENS}), "values; send fewer"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_line_that_is_no_message_says_what_is_wrong(line: str | bytes, fault: str) -> None:
    message = decoded(line)

    assert (message.do, message.events) == ("", None)
    assert fault in message.fault


def test_text_with_many_commas_is_no_reason_to_refuse() -> None:
    event: dict[str, Any] = {"type": "a.b", "data": {"text": "," * 60_000}}
    (found,) = decoded(json.dumps({"do": "record", "events": [event]})).events or ()

    assert isinstance(found, NewEvent)
