"""RabbitMQ: a durable topic exchange, persistent messages, publisher confirms.

A CloudEvents attribute is a header of the same name after `cloudEvents:`, as the binary mode of the AMQP binding says.
The routing key is `events.` and two hexadecimal digits of a hash of the device id: `events.#` is everything, and queues
that divide the 256 keys divide the devices, each in its order.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pisync_common.settings import mask_url
from pisync_receiver.errors import MissingExtra, Unavailable
from pisync_receiver.worker.messages import Message

if TYPE_CHECKING:
    import aio_pika
    from aio_pika.abc import AbstractConnection, AbstractExchange

EVERYTHING: Final = "events.#"
PREFIX: Final = "cloudEvents:"
_CONNECT_SECONDS: Final = 10.0
_CONFIRM_SECONDS: Final = 60.0
"""For a page; below the time after which PostgreSQL ends an idle transaction, which `begin` in worker.sql sets."""


class PublisherUnavailable(Unavailable):
    """The broker did not confirm; the position stays, and the same messages are sent again."""

    code = "publisher_unavailable"


class RabbitPublisher:
    """Publishes to a topic exchange on one connection, opened when needed.

    Declares `queue` for every event, of the type `quorum`, `stream` or `classic`; with `none` consumers bind queues of
    their own. Raises MissingExtra if aio-pika is not installed.
    """

    def __init__(
        self, url: str, *, exchange: str, queue: str, queue_type: str, confirm_seconds: float = _CONFIRM_SECONDS
    ) -> None:
        try:
            import aio_pika
        except ImportError as error:
            raise MissingExtra("broker", error) from error
        self._pika = aio_pika
        self._url = url
        self._exchange_name = exchange
        self._queue_name = queue
        self._queue_type = queue_type
        self._confirm_seconds = confirm_seconds
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    async def publish(self, histories: Sequence[Sequence[Message]]) -> None:
        """Return once the broker has durably accepted every message; without messages, once it is connected.

        The messages of a history are sent in turn, each when the message before it is accepted, because their order
        would be lost if the broker refused a message and accepted the next. Histories are sent side by side. Raises
        PublisherUnavailable if any message is not accepted within a bounded time; then all are to be sent again.
        """
        try:
            exchange = await self._open()
            async with asyncio.timeout(self._confirm_seconds):
                await asyncio.gather(*(self._send(exchange, history) for history in histories))
        except BaseException as error:
            await self.close()  # the outcome of unconfirmed messages is unknown
            if self._is_unavailable(error):
                raise PublisherUnavailable(self._reason(error)) from error
            raise

    async def close(self) -> None:
        """Close the connection. `publish` opens another."""
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.close()
            except Exception as error:
                if not self._is_unavailable(error):  # if it is, the connection is gone either way
                    raise

    async def _send(self, exchange: "AbstractExchange", history: Sequence[Message]) -> None:
        for message in history:
            await exchange.publish(self._amqp(message), routing_key(message.device_id))

    async def _open(self) -> "AbstractExchange":
        if self._exchange is not None and self._connection is not None and not self._connection.is_closed:
            return self._exchange
        await self.close()
        async with asyncio.timeout(_CONNECT_SECONDS):
            self._connection = await self._pika.connect(self._url)
            channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            exchange = await channel.declare_exchange(self._exchange_name, self._pika.ExchangeType.TOPIC, durable=True)
            if self._queue_type != "none":
                arguments: dict[str, Any] = {"x-queue-type": self._queue_type}
                queue = await channel.declare_queue(self._queue_name, durable=True, arguments=arguments)
                await queue.bind(exchange, EVERYTHING)
        self._exchange = exchange
        return exchange

    def _is_unavailable(self, error: BaseException) -> bool:
        """Whether the broker is the cause. For a connection that ends without a reason, aiormq raises Exception."""
        return (
            isinstance(error, (*self._pika.exceptions.CONNECTION_EXCEPTIONS, TimeoutError)) or type(error) is Exception
        )

    def _amqp(self, message: Message) -> "aio_pika.Message":
        return self._pika.Message(
            message.body,
            content_type="application/json",
            delivery_mode=self._pika.DeliveryMode.PERSISTENT,
            message_id=message.id,
            headers={PREFIX + name: value for name, value in message.attributes.items()},
        )

    def _reason(self, error: BaseException) -> str:
        known = self._pika.exceptions
        kept = "the events stay in the database and are published later"
        if isinstance(error, known.PublishError):
            return f"no queue is bound to exchange {self._exchange_name}; {kept}. Bind a queue to {EVERYTHING}"
        if isinstance(error, known.DeliveryError):
            return f"RabbitMQ refused a message (is the queue full?); {kept}"
        if isinstance(error, known.ChannelPreconditionFailed):
            return (
                f"exchange {self._exchange_name} or queue {self._queue_name} exists with other properties; {kept}. "
                "Choose another name, or delete it"
            )
        return f"RabbitMQ at {mask_url(self._url)} is unavailable ({type(error).__name__}); {kept}"


def routing_key(device_id: str) -> str:
    """`events.00` to `events.ff`, always the same for a device."""
    return f"events.{hashlib.sha256(device_id.encode()).hexdigest()[:2]}"
