"""RabbitMQ: a durable topic exchange, persistent messages, publisher confirms.

A CloudEvents attribute is a header of the same name behind `cloudEvents:`, as the AMQP binding's binary mode says; the
content type is the message's own. The routing key is `events.` and two hexadecimal digits of a hash of the device id:
`events.#` is everything, and queues that share the 256 keys among them share the devices, each in its order.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pisync_common.settings import mask_url
from pisync_receiver.errors import MissingExtra
from pisync_receiver.worker.errors import PublisherUnavailable
from pisync_receiver.worker.messages import CONTENT_TYPE, Message

if TYPE_CHECKING:
    import aio_pika
    from aio_pika.abc import AbstractConnection, AbstractExchange

EVERYTHING: Final = "events.#"
PREFIX: Final = "cloudEvents:"
_CONNECT_SECONDS: Final = 10.0
_CONFIRM_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where messages go."""

    exchange: str
    queue: str
    queue_type: str
    """`quorum`, `stream`, `classic`, or `none`: then who wants messages binds a queue of their own."""


class RabbitPublisher:
    """A `Publisher` on one connection, opened when it is needed. `connected` is told whether there is one.

    Raises MissingExtra where aio-pika is not installed.
    """

    def __init__(
        self,
        url: str,
        place: Place,
        *,
        connected: Callable[[bool], None],
        confirm_seconds: float = _CONFIRM_SECONDS,
    ) -> None:
        try:
            import aio_pika
        except ImportError as error:
            raise MissingExtra("broker", error) from error
        self._pika = aio_pika
        self._url = url
        self._place = place
        self._connected = connected
        self._confirm_seconds = confirm_seconds
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Publisher`."""
        try:
            exchange = await self._open()
            async with asyncio.timeout(self._confirm_seconds):
                await _all(exchange.publish(self._amqp(each), routing_key(each.device_id)) for each in messages)
        except BaseException as error:
            await self.close()  # nobody knows what became of what was under way
            if self._is_away(error):
                raise PublisherUnavailable(self._why(error)) from error
            raise

    async def close(self) -> None:
        """Let go of the connection. The next message opens another."""
        connection, self._connection, self._exchange = self._connection, None, None
        self._connected(False)
        if connection is not None:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.close()
            except Exception as error:
                if not self._is_away(error):  # if it is, the connection is gone either way
                    raise

    async def _open(self) -> "AbstractExchange":
        if self._exchange is not None and self._connection is not None and not self._connection.is_closed:
            return self._exchange
        await self.close()
        async with asyncio.timeout(_CONNECT_SECONDS):
            self._connection = await self._pika.connect(self._url)
            channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            exchange = await channel.declare_exchange(self._place.exchange, self._pika.ExchangeType.TOPIC, durable=True)
            if self._place.queue_type != "none":
                arguments: dict[str, Any] = {"x-queue-type": self._place.queue_type}
                queue = await channel.declare_queue(self._place.queue, durable=True, arguments=arguments)
                await queue.bind(exchange, EVERYTHING)
        self._exchange = exchange
        self._connected(True)
        return exchange

    def _is_away(self, error: BaseException) -> bool:
        """Whether it says that RabbitMQ cannot be had. For a connection that ended without a reason, aiormq raises
        Exception itself."""
        return (
            isinstance(error, (*self._pika.exceptions.CONNECTION_EXCEPTIONS, TimeoutError)) or type(error) is Exception
        )

    def _amqp(self, message: Message) -> "aio_pika.Message":
        return self._pika.Message(
            message.body,
            content_type=CONTENT_TYPE,
            delivery_mode=self._pika.DeliveryMode.PERSISTENT,
            message_id=message.id,
            headers={PREFIX + name: value for name, value in message.attributes.items()},
        )

    def _why(self, error: BaseException) -> str:
        known = self._pika.exceptions
        kept = "the events stay in the database and go again"
        if isinstance(error, known.PublishError):
            return f"no queue is bound to {self._place.exchange} for a message; {kept}. Bind a queue to {EVERYTHING}"
        if isinstance(error, known.DeliveryError):
            return f"RabbitMQ refused a message (is the queue full?); {kept}"
        if isinstance(error, known.ChannelPreconditionFailed):
            return (
                f"exchange {self._place.exchange} or queue {self._place.queue} exists in another form; {kept}. "
                "Name another, or delete it"
            )
        return f"RabbitMQ at {mask_url(self._url)} is away ({type(error).__name__}); {kept}"


def routing_key(device_id: str) -> str:
    """`events.00` to `events.ff`, always the same for a device."""
    return f"events.{hashlib.sha256(device_id.encode()).hexdigest()[:2]}"


async def _all(work: Iterable[Coroutine[object, object, object]]) -> None:
    """Do all of it at once, wait for all, and raise the first error."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
