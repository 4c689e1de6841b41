"""What a broker must be able to do."""

from collections.abc import Sequence
from typing import Protocol

from pisync_receiver.worker.messages import Message


class Publisher(Protocol):
    """A way to a broker. Kafka or NATS need one more class like `rabbitmq.RabbitPublisher`."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once the broker has durably taken every message.

        No two of the messages are of one device, so they may go in any order, or at once. Raises PublisherUnavailable
        where any is not confirmed within a bounded time; then all of them come again, with the same ids, also those
        that the broker did take. Without messages it only makes sure that the broker is there.
        """
        ...
