"""Stored events reach a real RabbitMQ: in order, in the documented shape, and the position moves over nothing that was
not confirmed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.duty import AGAIN
from pisync_receiver.worker.errors import PublisherUnavailable
from pisync_receiver.worker.feed import Feed
from pisync_receiver.worker.metrics import WorkerMetrics
from pisync_receiver.worker.publishing import Publishing
from pisync_receiver.worker.rabbitmq import Place, RabbitPublisher
from tests.support.fault_proxy import FaultProxy
from tests.support.worker.broker import HOST, PORT, URL, Queue
from tests.support.worker.database import WorkerDatabase

T = TypeVar("T")


class Bench:
    """One worker's publishing, step by step."""

    def __init__(
        self, database: WorkerDatabase, queue: Queue, *, url: str = URL, consumer: str = "test", **settings: Any
    ) -> None:
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)
        self.database = Database(PostgresUrl(conninfo=database.url))
        place = Place(exchange=queue.name, queue=queue.name, queue_type=settings.get("queue_type", "quorum"))
        self.feed = Feed(self.database, consumer, now_ms=lambda: 1_000, page_events=settings.get("page_events", 1000))
        self.publisher = RabbitPublisher(
            url, place, connected=self.metrics.connected, confirm_seconds=settings.get("confirm_seconds", 20.0)
        )
        self.publishing = Publishing(
            self.feed, self.publisher, metrics=self.metrics, message_events=settings.get("message_events", 100)
        )

    async def drain(self) -> None:
        await self.feed.begin()
        while await self.publishing.step() == AGAIN:
            pass

    async def close(self) -> None:
        await self.publisher.close()
        await self.database.close()

    def value(self, name: str) -> float:
        value = self.registry.get_sample_value(name)
        assert value is not None
        return value


def with_bench(bench: Bench, work: Callable[[Bench], Awaitable[T]]) -> T:
    async def main() -> T:
        async with AsyncExitStack() as closing:
            closing.push_async_callback(bench.close)
            return await work(bench)

    return asyncio.run(main())


def drain(database: WorkerDatabase, queue: Queue, **settings: Any) -> Bench:
    bench = Bench(database, queue, **settings)
    with_bench(bench, Bench.drain)
    return bench


def test_a_message_is_a_cloud_event_of_one_device(database: WorkerDatabase, queue: Queue) -> None:
    database.device("pibook-1", "Nakuru")
    ids = database.add_events([("pibook-1", "s1", 1), ("pibook-2", "s9", 7), ("pibook-1", "s1", 2)])

    bench = drain(database, queue)

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
    assert one.events[0]["type"] == "video.watched"
    assert [(event["device_id"], event["seq"], event["site"]) for event in two.events] == [("pibook-2", 7, None)]
    assert bench.value("pisync_worker_events_published_total") == 3
    assert bench.value("pisync_worker_messages_published_total") == 2
    assert bench.value("pisync_worker_lag_events") == 0
    assert database.position("test") == ids[-1]


@pytest.mark.parametrize("queue_type", ["quorum", "classic", "stream"])
def test_a_queue_of_each_kind_is_made(database: WorkerDatabase, queue: Queue, queue_type: str) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    drain(database, queue, queue_type=queue_type)
    assert database.position("test") == 1


def test_pages_and_messages_have_limits_and_the_order_of_a_device_holds(database: WorkerDatabase, queue: Queue) -> None:
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


def test_large_data_does_not_fill_the_memory(database: WorkerDatabase, queue: Queue) -> None:
    large = '{"x": "' + "y" * 60_000 + '"}'
    database.add_events([("pibook-1", "s1", n) for n in range(1, 201)], data=large)
    bench = Bench(database, queue)

    async def work(bench: Bench) -> list[int]:
        await bench.feed.begin()
        sizes = []
        while await bench.feed.prepare():
            async with bench.feed.page() as page:
                assert page is not None
                sizes.append(sum(len(event.data or "") for event in page.events))
        return sizes

    sizes = with_bench(bench, work)
    assert sum(sizes) == 200 * len(large)
    assert max(sizes) <= 8 * 1024 * 1024


def test_another_consumer_begins_at_the_first_event(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 6)])
    drain(database, queue)
    first = queue.take()

    drain(database, queue, consumer="another")

    assert [message.id for message in queue.take()] == [message.id for message in first]
    assert (database.position("test"), database.position("another")) == (5, 5)


def test_handing_on_begins_again_where_it_is_told_to(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", n) for n in range(1, 6)])
    drain(database, queue)
    queue.take()

    async def again(bench: Bench) -> None:
        await bench.feed.begin_from(4)
        await bench.drain()
        await bench.feed.begin_from(None)
        await bench.drain()

    with_bench(Bench(database, queue), again)

    assert [event["seq"] for message in queue.take() for event in message.events] == [4, 5]


def test_a_page_is_one_workers(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    other = Bench(database, queue)

    async def work(bench: Bench) -> None:
        await bench.feed.begin()
        assert await bench.feed.prepare()
        async with bench.feed.page() as page, AsyncExitStack() as closing:
            closing.push_async_callback(other.close)
            assert page is not None
            assert not await other.feed.prepare()
            async with other.feed.page() as taken:
                assert taken is None
        assert not await bench.feed.prepare()

    with_bench(Bench(database, queue), work)

    assert database.position("test") == 1


def test_what_no_queue_takes_is_kept(database: WorkerDatabase, queue: Queue) -> None:
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


def test_what_the_broker_refuses_is_kept_and_stays_in_order(database: WorkerDatabase, queue: Queue) -> None:
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


def test_an_answer_lost_on_the_way_repeats_the_same_messages(database: WorkerDatabase, queue: Queue) -> None:
    """The confirm does not arrive, and more events do: what goes again is cut as before."""
    database.add_events([("pibook-1", "s1", n) for n in range(1, 4)])
    with FaultProxy(HOST, PORT) as proxy:
        bench = Bench(database, queue, url=URL.replace(str(PORT), str(proxy.port)), confirm_seconds=60.0)

        async def work(bench: Bench) -> None:
            await bench.feed.begin()
            await bench.publisher.publish(())
            proxy.drop_answers = 1
            with pytest.raises(PublisherUnavailable):
                await bench.publishing.step()
            assert bench.value("pisync_worker_broker_connected") == 0
            database.add_events([("pibook-1", "s1", n) for n in range(4, 7)])
            await bench.drain()
            assert bench.value("pisync_worker_broker_connected") == 1

        with_bench(bench, work)

    taken = queue.take()
    assert [[event["seq"] for event in message.events] for message in taken] == [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert taken[0].id == taken[1].id != taken[2].id


def test_a_broker_that_hangs_is_given_up_in_time(database: WorkerDatabase, queue: Queue) -> None:
    database.add_events([("pibook-1", "s1", 1)])
    with FaultProxy(HOST, PORT) as proxy:
        bench = Bench(database, queue, url=URL.replace(str(PORT), str(proxy.port)), confirm_seconds=0.2)

        async def work(bench: Bench) -> None:
            await bench.feed.begin()
            await bench.publisher.publish(())
            proxy.blackhole = True
            with pytest.raises(PublisherUnavailable, match="TimeoutError"):
                await bench.publishing.step()
            proxy.heal()
            await bench.drain()

        with_bench(bench, work)

    assert database.position("test") == 1
    assert {message.id for message in queue.take()} == {queue_id(database)}


def queue_id(database: WorkerDatabase) -> str:
    from pisync_receiver.worker.messages import messages

    async def work(bench: Bench) -> str:
        await bench.feed.begin()
        assert await bench.feed.prepare()
        async with bench.feed.page() as page:
            assert page is not None
            (message,) = messages(page.events, most_events=100)
        return message.id

    return with_bench(Bench(database, Queue("unused"), consumer="reader"), work)


@pytest.mark.parametrize(
    ("error", "raised"), [(Exception(), PublisherUnavailable), (TypeError("ours"), TypeError)], ids=["aiormq's", "ours"]
)
def test_a_connection_that_ends_without_a_reason_is_away_and_does_not_end_the_worker(
    database: WorkerDatabase, queue: Queue, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """Where the link breaks in the middle of opening, aiormq may raise Exception and nothing more."""

    async def breaks() -> None:
        raise error

    async def publish(bench: Bench) -> None:
        monkeypatch.setattr(bench.publisher, "_open", breaks)
        with pytest.raises(raised):
            await bench.publisher.publish(())

    with_bench(Bench(database, queue), publish)
