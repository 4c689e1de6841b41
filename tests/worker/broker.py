"""A separate queue for each test on a real RabbitMQ, and the messages in it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel

from tests.support.services import needs

URL: Final = os.environ.get("PISYNC_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672/")
HOST: Final = urlsplit(URL).hostname or "127.0.0.1"
PORT: Final = urlsplit(URL).port or 5672
_numbers = count(1)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A message as a consumer receives it."""

    id: str
    headers: dict[str, Any]
    content_type: str | None
    routing_key: str
    persistent: bool
    events: list[dict[str, Any]]


class Queue:
    """An exchange and a queue with names of their own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def take(self) -> list[Taken]:
        """Return every message in the queue, in its order."""
        return run(self._take)

    def make(self, arguments: dict[str, Any]) -> None:
        """Declare the queue with these arguments and bind it to every event."""

        async def work(channel: AbstractChannel) -> None:
            exchange = await channel.declare_exchange(self.name, aio_pika.ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(self.name, durable=True, arguments=arguments)
            await queue.bind(exchange, "events.#")

        run(work)

    def delete(self) -> None:
        async def work(channel: AbstractChannel) -> None:
            await channel.queue_delete(self.name)

        run(work)

    async def _take(self, channel: AbstractChannel) -> list[Taken]:
        queue = await channel.get_queue(self.name, ensure=False)
        taken = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            taken.append(
                Taken(
                    id=message.message_id or "",
                    headers=dict(message.headers),
                    content_type=message.content_type,
                    routing_key=message.routing_key or "",
                    persistent=message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT,
                    events=msgspec.json.decode(message.body),
                )
            )
        return taken


def run(work: Callable[[AbstractChannel], Awaitable[T]]) -> T:
    """Run `work` with a new channel."""

    async def main() -> T:
        async with await aio_pika.connect(URL) as connection, connection.channel() as channel:
            return await work(channel)

    return asyncio.run(main())


async def _ping(channel: AbstractChannel) -> None:
    """Opening the channel was the test."""


needs_rabbitmq = needs("RabbitMQ", "PISYNC_TEST_RABBITMQ", lambda: run(_ping), OSError, aio_pika.exceptions.AMQPError)


@contextmanager
def queue_of_its_own() -> Iterator[Queue]:
    """Delete the queue at the end."""
    queue = Queue(f"pisync-worker-test-{os.getpid()}-{next(_numbers)}")

    async def clean(channel: AbstractChannel) -> None:
        await channel.queue_delete(queue.name)
        await channel.exchange_delete(queue.name)

    try:
        yield queue
    finally:
        run(clean)
