"""Which events share a message, and what its id says."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.store import EventRow
from pisync_receiver.worker.messages import Message, messages, rounds
from pisync_receiver.worker.rabbitmq import routing_key


def event(number: int, device: str = "pibook-1", stream: str = "s1", data: str | None = None) -> EventRow:
    return EventRow(
        id=number,
        device_id=device,
        site=None,
        stream=stream,
        seq=number,
        type="video.watched",
        learner_id=None,
        object_id=None,
        occurred_at="2026-11-23T08:12:09.120Z",
        boot_id=None,
        boottime_ms=None,
        clock_synced=True,
        data=data,
        received_ms=1_795_500_000_000 + number % 1000,
        best_ms=1_795_500_000_000,
        quality="synced",
    )


histories = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["s1", "s2"])), max_size=60).map(
    lambda found: [event(number, device, stream) for number, (device, stream) in enumerate(found, 1)]
)


def ids(message: Message) -> list[int]:
    return [row["id"] for row in msgspec.json.decode(message.body)]


@given(histories, st.integers(1, 8))
def test_every_event_is_in_one_message_and_in_order(rows: list[EventRow], most: int) -> None:
    made = messages(rows, most_events=most)

    assert sorted(number for message in made for number in ids(message)) == [row.id for row in rows]
    for device in "abc":
        of_device = [number for message in made if message.device_id == device for number in ids(message)]
        assert of_device == [row.id for row in rows if row.device_id == device]
    streams = {row.id: (row.device_id, row.stream) for row in rows}
    for message in made:
        assert {streams[number] for number in ids(message)} == {(message.device_id, message.stream)}
        assert message.count == len(ids(message)) <= most
    assert len({message.id for message in made}) == len(made)


@given(histories, st.integers(1, 8))
def test_the_same_events_are_the_same_messages(rows: list[EventRow], most: int) -> None:
    assert messages(rows, most_events=most) == messages(list(rows), most_events=most)


@given(histories)
def test_a_round_has_one_message_of_a_device(rows: list[EventRow]) -> None:
    made = messages(rows, most_events=2)
    in_rounds = list(rounds(made))

    for each in in_rounds:
        assert len({message.device_id for message in each}) == len(each) > 0
    for device in "abc":
        of_device = [message for message in made if message.device_id == device]
        assert [message for each in in_rounds for message in each if message.device_id == device] == of_device


def test_messages_stay_small() -> None:
    rows = [event(number, data="x" * 300) for number in range(1, 8)]
    made = messages(rows, most_events=100, most_bytes=1000)
    assert [message.count for message in made] == [3, 3, 1]
    assert [message.count for message in messages(rows, most_events=100, most_bytes=10)] == [1] * 7


def test_an_id_tells_everything_apart_that_differs() -> None:
    made = [
        messages([event(1), event(2)], most_events=9)[0].id,
        messages([event(1)], most_events=9)[0].id,
        messages([event(1, device="pibook-2")], most_events=9)[0].id,
        messages([event(1, stream="s2")], most_events=9)[0].id,
        messages([event(2)], most_events=9)[0].id,
    ]
    assert len(set(made)) == len(made)


def test_an_id_is_short_for_the_longest_names() -> None:
    (message,) = messages([event(2**63 - 1, device="d" * 128, stream="s" * 128)], most_events=9)
    assert len(message.id) <= 64


def test_the_id_is_the_same_in_every_version() -> None:
    """Consumers remember ids over an upgrade."""
    (message,) = messages([event(1), event(2)], most_events=9)
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


def test_routing_keys_spread_devices_and_stay() -> None:
    keys = [routing_key(f"pibook-{number}") for number in range(5000)]
    assert len(set(keys)) == 256
    assert routing_key("pibook-1") == routing_key("pibook-1") == "events.51"
