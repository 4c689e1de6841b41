"""Another address of the receiver: it is proved with the device's own token before it is stored."""

import gzip
from typing import Final

from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.identity import Identity
from pisync_common.models import Receipt
from pisync_common.wire import encode_batch

NO_STREAM: Final = "none"
"""The stream to ask about where nothing was recorded yet; asking makes none."""


def prove(identity: Identity, *, stream: str, clock: Clock) -> Receipt:
    """Ask the receiver at the identity's address for the watermark of a stream; return its receipt.

    So it is a receiver, and it knows this device and its token. Raises DeliveryError.
    """
    with ReceiverClient(identity, clock=clock) as client:
        body = encode_batch(device_id=identity.device_id, stream=stream, sent=clock.stamp(), agent=AGENT, events=())
        return client.post_batch(gzip.compress(body), stream=stream)
