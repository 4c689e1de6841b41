"""Which events share a message, what its id says, and events that cannot be rendered."""

import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.worker.messages import Event, Message, render
from pisync_receiver.worker.messages import histories as histories_of
from pisync_receiver.worker.rabbitmq import routing_key

RECEIVED_MS = 1_795_500_000_000


def row(
    number: int,
    device: str = "pibook-1",
    stream: str = "s1",
    *,
    data: str | None = None,
    received_ms: int = RECEIVED_MS,
    quality: int = 0,
) -> tuple[Any, ...]:
    """The columns of the table `events`."""
    place = (device, stream, number, "video.watched", "Nakuru", "Nakuru", "s-17", None, "e-1", "2026-11-23T08:12:09Z")
    return (number, *place, None, None, None, True, data, received_ms, RECEIVED_MS, quality, b"")


def event(number: int, device: str = "pibook-1", stream: str = "s1", size: int = 0) -> Event:
    data = f'{{"filler": "{"x" * size}"}}'
    (rendered,) = render([row(number, device, stream, data=data, received_ms=RECEIVED_MS + number % 1000)])
    return rendered


arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["s1", "s2"])), max_size=60).map(
    lambda found: [event(number, device, stream) for number, (device, stream) in enumerate(found, 1)]
)


def messages(events: list[Event], *, max_events: int) -> list[Message]:
    return [message for history in histories_of(events, max_events=max_events) for message in history]


def ids(message: Message) -> list[int]:
    return [shown["id"] for shown in msgspec.json.decode(message.body)]


@given(arrivals, st.integers(1, 8))
def test_every_event_is_in_one_message_and_in_order(events: list[Event], most: int) -> None:
    made = messages(events, max_events=most)

    assert sorted(number for message in made for number in ids(message)) == [each.record.id for each in events]
    for device in "abc":
        of_device = [number for message in made if message.device_id == device for number in ids(message)]
        assert of_device == [each.record.id for each in events if each.record.device_id == device]
    streams = {each.record.id: (each.record.device_id, each.record.stream) for each in events}
    for message in made:
        ((device, stream),) = {streams[number] for number in ids(message)}
        assert (message.device_id, message.attributes["source"]) == (device, f"/devices/{device}/streams/{stream}")
        assert 1 <= len(ids(message)) <= most
    assert len({message.id for message in made}) == len(made)


def test_a_history_is_of_one_device() -> None:
    events = [event(number, device) for number, device in enumerate("abcabca", 1)]
    devices = [{message.device_id for message in history} for history in histories_of(events, max_events=1)]
    assert devices == [{"a"}, {"b"}, {"c"}]


def test_messages_are_limited_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(number, size=3000) for number in range(1, 8)]
    for most, sizes in ((11_000, [3, 3, 1]), (10, [1] * 7)):
        monkeypatch.setattr("pisync_receiver.worker.messages.MAX_BYTES", most)
        assert [len(ids(message)) for message in messages(events, max_events=100)] == sizes


def test_different_events_have_different_message_ids() -> None:
    made = [
        messages([event(1), event(2)], max_events=9)[0].id,
        messages([event(1)], max_events=9)[0].id,
        messages([event(1, device="pibook-2")], max_events=9)[0].id,
        messages([event(1, stream="s2")], max_events=9)[0].id,
        messages([event(2)], max_events=9)[0].id,
    ]
    assert len(set(made)) == len(made)


def test_a_message_id_is_short_for_the_longest_names() -> None:
    (message,) = messages([event(2**63 - 1, device="d" * 128, stream="s" * 128)], max_events=9)
    assert len(message.id) <= 64


def test_a_message_id_is_the_same_in_every_version() -> None:
    """Consumers remember ids across an upgrade."""
    (message,) = messages([event(1), event(2)], max_events=9)
    assert message.id == "1-53eb2234b756aba8f75451a057144a08"
    assert message.attributes == {
        "specversion": "1.0",
        "id": message.id,
        "type": "pisync.progress.stored",
        "source": "/devices/pibook-1/streams/s1",
        "subject": "pibook-1",
        "time": "2026-11-24T06:00:00.002Z",
        "partitionkey": "pibook-1",
    }


def test_an_event_is_rendered_as_the_api_shows_it() -> None:
    (rendered,) = render([row(1, data='{"n": 1}')])
    shown = msgspec.json.decode(rendered.body)
    assert (shown["id"], shown["seq"], shown["site"], shown["event_id"], shown["data"]) == (
        1,
        1,
        "Nakuru",
        "e-1",
        {"n": 1},
    )
    assert (shown["quality"], shown["received_at"]) == ("synced", "2026-11-24T06:00:00.000Z")


@pytest.mark.parametrize(
    ("data", "shown"),
    [("{broken", {"unreadable": "{broken"}), ('{"n":NaN}', {"unreadable": '{"n":NaN}'}), ('{"n":1}', {"n": 1})],
)
def test_data_that_is_not_json_is_marked(data: str, shown: dict[str, object]) -> None:
    (rendered,) = render([row(2, data=data, quality=9)])
    body = msgspec.json.decode(rendered.body)
    assert (body["data"], body["quality"]) == (shown, "estimated")


@pytest.mark.parametrize("number", ["9" * 5000, "1e400", "-0.0"])
def test_number_beyond_a_float_is_rendered_as_it_was_sent(number: str) -> None:
    (rendered,) = render([row(2, data='{"n":' + number + "}")])
    assert b'"data":{"n":%b}' % number.encode() in rendered.body


def test_an_event_that_cannot_be_rendered_is_logged_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        rendered = render([row(1), row(2)[:-1], row(3)])
    assert [each.record.id for each in rendered] == [1, 3]
    (record,) = caplog.records
    assert record.__dict__["pisync_fields"]["event_id"] == 2


def test_routing_keys_spread_devices_and_never_change() -> None:
    keys = [routing_key(f"pibook-{number}") for number in range(5000)]
    assert len(set(keys)) == 256
    assert routing_key("pibook-1") == "events.51"
