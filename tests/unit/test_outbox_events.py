"""An event before and after it has its seq."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.events import NewEvent, renumber, seq_of
from pisync_common.models import Origin, Stamp
from tests.support.outboxes import STAMP, event

OLD = Origin(stream="old", seq=7)


def test_its_text_is_the_wire_format() -> None:
    body = json.loads(event(3).body(17))
    assert body == {
        "seq": 17,
        "type": "video.watched",
        "learner_id": "s-17",
        "object_id": "math/g5/ch02/v03",
        "occurred_at": "2026-11-23T09:00:00.000Z",
        "boot_id": STAMP.boot_id,
        "boottime_ms": 99_001,
        "clock_synced": False,
        "data": {"n": 3},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "Video"},
        {"type": 7},
        {"learner_id": "a\nb"},
        {"learner_id": "x" * 257},
        {"object_id": "line\nbreak"},
        {"object_id": "\ud800"},
        {"data": {"x": float("nan")}},
        {"data": {"x": "\ud800"}},
        {"data": {"x": "y" * 70_000}},
        {"data": ["no", "object"]},
        {"id": ""},
        {"id": "no\nlines"},
        {"stamp": Stamp(at_ms=2**60, boot_id="b", boottime_ms=0, clock_synced=True)},
        {"stamp": Stamp(at_ms=0, boot_id="", boottime_ms=0, clock_synced=True)},
        {"stamp": Stamp(at_ms=0, boot_id="b", boottime_ms=-1, clock_synced=True)},
    ],
)
def test_a_broken_rule_is_an_invalid_event(fields: dict[str, Any]) -> None:
    valid: dict[str, Any] = {"type": "video.watched", "stamp": STAMP}
    with pytest.raises(InvalidEvent):
        NewEvent.create(**(valid | fields))


def test_fields_survive_a_round_trip() -> None:
    for made in (
        event(1),
        event(2, id="k-1"),
        event(4, occurred_at=datetime(2020, 1, 1, tzinfo=UTC)),
        event(3, attempt=2**63 - 1, retried=True),
        NewEvent.create("note.taken", stamp=STAMP),
        NewEvent.create("note.taken", stamp=STAMP, data={"text": 'é "quoted" \\ \u2028 🙂', "big": 2**80, "f": 0.1}),
    ):
        assert NewEvent.from_fields(json.loads(json.dumps(made.fields()))) == made


@pytest.mark.parametrize(
    "damage",
    [
        {"type": None},
        {"stamp": None},
        {"stamp": [1, "b", 2]},
        {"stamp": ["now", "b", 2, True]},
        {"stamp": [1, "b", 2, 1]},
        {"data": "{"},
        {"data": "[]"},
        {"data": {"not": "text"}},
        {"data": '{"x":NaN}'},
        {"data": "[" * 100_000},
        {"attempt": -1},
        {"attempt": 2**63},
        {"attempt": True},
        {"id": 5},
    ],
)
def test_events_from_another_process_are_validated(damage: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        NewEvent.from_fields(event(1).fields() | damage)


def test_the_same_content_is_recognised_with_another_time_and_key_order() -> None:
    later = Stamp(at_ms=5, boot_id="other", boottime_ms=5, clock_synced=True)
    first = event(data={"a": 1, "b": [1, {"c": None}]}).body(1)
    assert event(data={"b": [1, {"c": None}], "a": 1}, stamp=later).same_as(first)
    assert not event(data={"a": 1}).same_as(first)
    assert not event(data=None).same_as(first)
    assert not event(data={"a": 1, "b": [1, {"c": None}]}, learner_id="s-18").same_as(first)
    assert not event(data={"a": 1, "b": [1, {"c": None}]}, object_id=None).same_as(first)


def test_renumbering_keeps_the_first_origin() -> None:
    body = event(data={"seq": 99, "origin": "mine", "text": '{"seq":5,'}).body(7)
    transferred = renumber(body, seq=2, origin=OLD)
    assert json.loads(transferred) == json.loads(body) | {"seq": 2, "origin": {"stream": "old", "seq": 7}}
    assert seq_of(transferred) == 2


def test_renumbering_again_keeps_the_first_origin() -> None:
    once = renumber(event(1).body(7), seq=2, origin=OLD)
    twice = renumber(once, seq=5, origin=Origin(stream="newer", seq=2))
    assert json.loads(twice)["origin"] == {"stream": "old", "seq": 7}
    assert twice.count('"origin"') == 1
    assert json.loads(twice)["seq"] == 5


def test_renumbering_changes_nothing_else() -> None:
    data = '{"price": 1.50, "big": 1e400}'
    body = event(1, data=None).body(7)[:-1] + f',"data":{data}}}'
    assert renumber(body, seq=1, origin=OLD).endswith(f',"data":{data}}}')


@pytest.mark.parametrize(
    "body", ["", "{}", '{"seq":1,', '{"type":"x.y","seq":1}', '[{"seq":1,"a":2}]', '{"seq":01,"a":1}']
)
def test_only_an_events_text_can_be_renumbered(body: str) -> None:
    with pytest.raises(ValueError):
        renumber(body, seq=1, origin=OLD)
