"""Stored events reach a real RabbitMQ in order and in the documented form, and the position moves only over what was
confirmed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from pisync_receiver.background import AGAIN
from pisync_receiver.errors import DatabaseUnavailable
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.messages import Message
from pisync_receiver.worker.publishing import NOW, PAGE_BYTES, POLL_SECONDS, Publishing
from pisync_receiver.worker.rabbitmq import PublisherUnavailable, RabbitPublisher
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import needs_postgres
from tests.worker.broker import HOST, PORT, URL, Queue, needs_rabbitmq
from tests.worker.database import WorkerDatabase

pytestmark = [needs_postgres, needs_rabbitmq]

T = TypeVar("T")


class Bench:
    """One worker's publishing, step by step."""

    def __init__(
        self,
        database: WorkerDatabase,
        queue: Queue,
        *,
        url: str = URL,
        database_url: str | None = None,
        consumer: str = "test",
        start: int | str | None = None,
        queue_type: str = "quorum",
        page_events: int = 1000,
        message_events: int = 100,
        confirm_seconds: float = 20.0,
        answer_seconds: float = 60.0,
    ) -> None:
        self.database = Database(PostgresUrl(conninfo=database_url or database.url), answer_seconds=answer_seconds)
        self.publisher = RabbitPublisher(
            url, exchange=queue.name, queue=queue.name, queue_type=queue_type, confirm_seconds=confirm_seconds
        )
        self.publishing = Publishing(
            self.database,
            self.publisher,
            consumer=consumer,
            now_ms=lambda: 1_000,
            start=start,
            page_events=page_events,
            message_events=message_events,
        )

    async def drain(self) -> None:
        while await self.publishing.step() == AGAIN:
            pass

    async def close(self) -> None:
        await self.publishing.close()


def with_bench(bench: Bench, work: Callable[[Bench], Awaitable[T]]) -> T:
    async def main() -> T:
        async with AsyncExitStack() as closing:
            closing.push_async_callback(bench.close)
            return await work(bench)

    return asyncio.run(main())


def drain(database: WorkerDatabase, queue: Queue, **settings: Any) -> None:
    with_bench(Bench(database, queue, **settings), Bench.drain)


def test_a_message_is_a_cloud_event_of_one_device(database: WorkerDatabase, queue: Queue) -> None:
    ids = database.add_events([("pibook-1", "s1", 1), ("pibook-2", "s9", 7), ("pibook-1", "s1", 2)], site="Nakuru")
    database.device("pibook-1", "Kisumu")

    drain(database, queue)

    one, two = sorted(queue.take(), key=lambda message: str(message.headers["cloudEvents:subject"]))
    assert {name: value for name, value in one.headers.items() if not name.startswith("x-")} == {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": one.id,
        "cloudEvents:type": "pisync.progress.stored",
        "cloudEvents:source": "/devices/pibook-1/streams/s1",
        "cloudEvents:subject": "pibook-1",
        "cloudEvents:time": one.events[-1]["received_at"],
        "cloudEvents:partitionkey": "pibook-1",
    }
    assert (one.content_type, one.persistent) == ("application/json", True)
    assert one.routing_key.startswith("events.")
    assert [(event["seq"], event["id"], event["site"]) for event in one.events] == [
        (1, ids[0], "Nakuru"),
        (2, ids[2], "Nakuru"),
    ]
    assert one.events[0]["data"] == {"n": 1}
    assert (one.events[0]["type"], one.events[0]["event_id"]) == ("video.watched", "e-1")
    assert (one.events[0]["learner_home"], one.events[0]["learner_id"]) == ("Nakuru", "s-17")
    assert [(event["device_id"], event["seq"]) for event in two.events] == [("pibook-2", 7)]
    assert database.position("test") == ids[-1]


@pytest.mark.parametrize("queue_type", ["quorum", "classic", "stream"])
def test_a_queue_of_each_type_is_declared(database: WorkerDatabase, queue: Queue, queue_type: str) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    drain(database, queue, queue_type=queue_type)
    assert database.position("test") == 1


def test_events_of_a_device_keep_their_order_across_pages_and_messages(database: WorkerDatabase, queue: Queue) -> None:
    sent = [(f"pibook-{n % 3}", f"s{n // 40}", n) for n in range(1, 101)]
    for start in range(0, 100, 7):
        database.add_events(sent[start : start + 7])

    drain(database, queue, page_events=13, message_events=3)

    taken = queue.take()
    assert all(1 <= len(message.events) <= 3 for message in taken)
    assert len({message.id for message in taken}) == len(taken)
    for device in range(3):
        arrived = [event["id"] for each in taken for event in each.events if event["device_id"] == f"pibook-{device}"]
        assert arrived == sorted(arrived)
        assert len(arrived) == len([event for event in sent if event[0] == f"pibook-{device}"])


def test_a_page_is_limited_in_bytes(database: WorkerDatabase, queue: Queue) -> None:
    large = '{"x": "' + "y" * 60_000 + '"}'
    database.add_events([("pibook-1", "s1", n) for n in range(1, 201)], data=large)

    async def work(bench: Bench) -> list[int]:
        ends = [0]
        while await bench.publishing.step() == AGAIN:
            ends.append(database.position("test") or 0)
        return [end - start for start, end in pairwise(ends)]

    pages = with_bench(Bench(database, queue), work)
    assert sum(pages) == 200
    assert max(pages) * len(large) <= PAGE_BYTES


def test_a_new_consumer_starts_at_the_first_event(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 6)])
    drain(database, queue)
    first = queue.take()

    drain(database, queue, consumer="another")

    assert [message.id for message in queue.take()] == [message.id for message in first]
    assert (database.position("test"), database.position("another")) == (5, 5)


def test_a_position_can_be_set_back_and_forward(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 6)])
    drain(database, queue)
    queue.take()

    drain(database, queue, start=4)
    drain(database, queue, start=NOW)

    assert [event["seq"] for message in queue.take() for event in message.events] == [4, 5]


def test_only_one_worker_publishes_a_page(
    database: WorkerDatabase, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    first, second = Bench(database, queue), Bench(database, queue)
    publish = first.publisher.publish
    pauses: list[float] = []

    async def publish_beside(histories: Sequence[Sequence[Message]]) -> None:
        pauses.append(await second.publishing.step() if histories else POLL_SECONDS)
        await publish(histories)

    async def work(bench: Bench) -> None:
        await bench.drain()
        await second.close()

    monkeypatch.setattr(first.publisher, "publish", publish_beside)
    with_bench(first, work)

    assert pauses == [POLL_SECONDS] * 3
    assert [event["seq"] for message in queue.take() for event in message.events] == [1]


def test_events_are_kept_while_no_queue_is_bound(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    bench = Bench(database, queue, queue_type="none")

    async def work(bench: Bench) -> None:
        with pytest.raises(PublisherUnavailable, match="no queue is bound"):
            await bench.drain()
        assert database.position("test") == 0
        await asyncio.to_thread(queue.make, {"x-queue-type": "quorum"})
        await bench.drain()

    with_bench(bench, work)

    assert [event["seq"] for message in queue.take() for event in message.events] == [1]


def test_refused_messages_are_published_later_in_order(database: WorkerDatabase, queue: Queue) -> None:
    queue.make({"x-max-length": 1, "x-overflow": "reject-publish"})
    database.add_events([("pibook-1", "s1", n) for n in range(1, 7)])
    taken: list[int] = []
    bench = Bench(database, queue, queue_type="none", message_events=2)

    async def work(bench: Bench) -> None:
        with pytest.raises(PublisherUnavailable, match="refused a message"):
            await bench.drain()

    for _ in range(2):
        with_bench(bench, work)
        taken += [event["seq"] for message in queue.take() for event in message.events]
        assert database.position("test") == 0
    queue.delete()
    queue.make({"x-queue-type": "quorum"})
    with_bench(bench, Bench.drain)
    taken += [event["seq"] for message in queue.take() for event in message.events]

    first_seen = list(dict.fromkeys(taken))
    assert first_seen == [1, 2, 3, 4, 5, 6]
    assert database.position("test") == 6


def test_a_message_is_sent_when_the_one_before_is_accepted(
    database: WorkerDatabase, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker refused the first and accepted the second, their order would be lost."""
    database.add_events([(f"pibook-{n % 2}", "s1", n) for n in range(8)])
    bench = Bench(database, queue, message_events=1)
    under_way: list[str] = []
    most: list[int] = []

    async def work(bench: Bench) -> None:
        await bench.publisher.publish(())
        exchange = bench.publisher._exchange
        assert exchange is not None
        publish = exchange.publish

        async def record(message: Any, key: str) -> None:
            assert key not in under_way
            under_way.append(key)
            most.append(len(under_way))
            await publish(message, key)
            under_way.remove(key)

        monkeypatch.setattr(exchange, "publish", record)
        await bench.drain()

    with_bench(bench, work)
    assert (len(most), max(most)) == (8, 2)


def test_a_lost_confirmation_repeats_the_same_messages(database: WorkerDatabase, queue: Queue) -> None:
    """The confirmation is lost and more events arrive; the repetition has the same messages."""
    with FaultProxy(HOST, PORT) as proxy:
        bench = Bench(database, queue, url=URL.replace(str(PORT), str(proxy.port)), confirm_seconds=60.0)

        async def work(bench: Bench) -> None:
            await bench.publishing.step()
            database.add_events([("pibook-1", "s1", n) for n in range(1, 4)])
            proxy.drop_answers = 1
            with pytest.raises(PublisherUnavailable):
                await bench.publishing.step()
            database.add_events([("pibook-1", "s1", n) for n in range(4, 7)])
            await bench.drain()

        with_bench(bench, work)

    taken = queue.take()
    assert [[event["seq"] for event in message.events] for message in taken] == [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert taken[0].id == taken[1].id != taken[2].id


def test_a_silent_broker_is_abandoned_in_time(database: WorkerDatabase, queue: Queue) -> None:
    with FaultProxy(HOST, PORT) as proxy:
        bench = Bench(database, queue, url=URL.replace(str(PORT), str(proxy.port)), confirm_seconds=0.2)

        async def work(bench: Bench) -> None:
            await bench.publishing.step()
            database.add_events([("pibook-1", "s1", n) for n in range(1, 4)])
            proxy.blackhole = True
            with pytest.raises(PublisherUnavailable, match="TimeoutError"):
                await bench.publishing.step()
            proxy.heal()
            await bench.drain()

        with_bench(bench, work)

    assert database.position("test") == 3
    assert len({message.id for message in queue.take()}) == 1


@pytest.mark.parametrize("silent_from", ["connecting", "a statement"])
def test_a_silent_database_is_abandoned_in_time(database: WorkerDatabase, queue: Queue, silent_from: str) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    with FaultProxy(*database.server[:2]) as proxy:
        url = database.through(proxy.port) + "?connect_timeout=2"
        bench = Bench(database, queue, database_url=url, answer_seconds=0.2)

        async def work(bench: Bench) -> None:
            if silent_from == "a statement":
                await bench.publishing.step()
            proxy.blackhole = True
            with pytest.raises(DatabaseUnavailable):
                await bench.publishing.step()
            proxy.heal()
            await bench.drain()

        with_bench(bench, work)

    assert database.position("test") == 1


def test_an_event_with_damaged_data_is_marked(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 4)])
    database.rows("UPDATE events SET data = '{' WHERE seq = 2")

    drain(database, queue)

    events = [event for message in queue.take() for event in message.events]
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert events[1]["data"] == {"unreadable": "{"}
    assert database.position("test") == 3


@pytest.mark.parametrize(
    ("error", "raised"), [(Exception(), PublisherUnavailable), (TypeError("ours"), TypeError)], ids=["aiormq's", "ours"]
)
def test_a_connection_that_ends_without_a_reason_counts_as_unavailable(
    database: WorkerDatabase, queue: Queue, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """When the connection breaks while it opens, aiormq may raise Exception itself."""

    async def breaks() -> None:
        raise error

    async def publish(bench: Bench) -> None:
        monkeypatch.setattr(bench.publisher, "_open", breaks)
        with pytest.raises(raised):
            await bench.publisher.publish(())

    with_bench(Bench(database, queue), publish)
