"""Other addresses of the receiver: proved with the device's own token, announced by the receiver, used by turns.

A receiver that moves announces its new address in its answers. A device believes it as far as it believes the receiver:
over TLS, for TLS. It stores the address only after the receiver there has shown that it knows this device and all that
it delivered, and keeps the old address for the case that the new one fails later.
"""

import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pisync_agent.identity as identities
from pisync_agent.answers import printable
from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import DeliveryError, NotEnrolled
from pisync_agent.identity import Identity
from pisync_agent.outbox.outbox import Outbox
from pisync_common.errors import RuleError
from pisync_common.models import Receipt
from pisync_common.wire import encode_batch

log = logging.getLogger(__name__)

NO_STREAM: Final = "none"
"""The stream to ask about where nothing was recorded yet; asking makes none."""
AGAIN_S: Final = 24 * 3600.0
"""How long to wait after an announced address: after a failure, and where two receivers announce each other."""


def prove(identity: Identity, *, stream: str, clock: Clock) -> Receipt:
    """Ask the receiver at the identity's address for the watermark of a stream; return its receipt.

    So it is a receiver, and it knows this device and its token. Raises DeliveryError.
    """
    with ReceiverClient(identity, clock=clock) as client:
        body = encode_batch(device_id=identity.device_id, stream=stream, sent=clock.stamp(), agent=AGENT, events=())
        return client.post_batch(gzip.compress(body), stream=stream)


def turned(identity: Identity, turn: int) -> Identity:
    """Return the identity at the address that has this turn; the first is preferred."""
    urls = (identity.url, *identity.others)
    return identity if turn % len(urls) == 0 else identity.at(urls[turn % len(urls)])


@dataclass(kw_only=True)
class Announcements:
    """Takes up addresses that the receiver announces."""

    home: Path
    outbox: Outbox
    clock: Clock
    prove: Callable[..., Receipt] = prove
    _not_before: float = 0.0

    def follow(self, identity: Identity, url: str, *, by: str) -> Identity:
        """Return the identity to use, stored, after the receiver at the address `by` announced `url`."""
        if url.rstrip("/") == identity.url or self.clock.monotonic() < self._not_before:
            return identity
        self._not_before = self.clock.monotonic() + AGAIN_S
        try:
            moved = self._proved(identity, url, by)
            if identities.load(self.home) != identity:
                return identity  # a person changed it meanwhile, or deleted it
            identities.save(self.home, moved)
        except (RuleError, DeliveryError, NotEnrolled, OSError) as error:
            log.warning("the receiver announced the address %s, which is not used: %s", printable(url), error)
            return identity
        log.info("the receiver has another address: %s from now on; %s if that fails", moved.url, identity.url)
        return moved

    def _proved(self, identity: Identity, url: str, by: str) -> Identity:
        if by.startswith("https:") and not url.startswith("https:"):
            raise RuleError("it is plain HTTP")
        moved = identity.at(url, identity.url, *identity.others)
        receipt = self.prove(moved, stream=self.outbox.stream, clock=self.clock)
        if receipt.watermark < (known := self.outbox.state().watermark):
            raise RuleError(f"it has this device's events up to {receipt.watermark} only, not to {known}")
        return moved
