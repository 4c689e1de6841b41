"""The sync runs of a device: by which of the receiver's addresses, under which identity, and what is noted of each."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pisync_agent.identity as identities
from pisync_agent.client import ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.enrollment.addresses import Announcements, turned
from pisync_agent.enrollment.binding import begin_stream_of, bound
from pisync_agent.enrollment.enroll_file import pending_host
from pisync_agent.enrollment.machine import Machine, read_machine
from pisync_agent.enrollment.state import EnrollmentState, state_of
from pisync_agent.errors import NotEnrolled, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.network.throttle import Throttle
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.service import history
from pisync_agent.sync.connectivity import has_link, own_addresses
from pisync_agent.sync.progress import Show, SyncResult
from pisync_agent.sync.run import Delivery

log = logging.getLogger(__name__)

PREFERRED_S: Final = 3600.0
"""How long another address of the receiver is used before the preferred is tried again."""
ASKED_AGAIN_S: Final = 60.0
"""How long further requests for a sync are ignored after a request, which may be repeated in each answer."""


@dataclass(kw_only=True)
class SyncRunner:
    """Makes sync runs under the present identity, and notes the result of each.

    `run` is for the scheduler's thread; the rest may be called from any thread.
    """

    home: Path
    outbox: Outbox
    clock: Clock
    stopping: Callable[[], bool]
    here: Machine = field(default_factory=read_machine)
    max_rate: float | None = None
    """Bytes a second."""
    _identity: Identity | None = None
    _delivery: tuple[Identity, Delivery] | None = None
    _turn: int = 0
    """Which of the receiver's addresses is used; 0 for the preferred."""
    _turned_at: float = 0.0
    _asked: bool = False
    _asked_at: float = -ASKED_AGAIN_S

    def __post_init__(self) -> None:
        self._announcements = Announcements(home=self.home, outbox=self.outbox, clock=self.clock)

    @property
    def identity(self) -> Identity | None:
        return self._identity

    @property
    def enrolled(self) -> bool:
        return self._identity is not None

    def reload(self) -> None:
        """Read the identity again; the next run uses it. An identity that may not be used here counts as none."""
        try:
            known = identities.load(self.home)
        except NotEnrolled:
            known = None
        self._turn = 0
        self._identity = bound(self.home, self.outbox, known, self.here)

    def link(self) -> bool:
        """Return whether there is a way to the receiver, as far as this device can tell without a packet."""
        identity = self._identity
        if identity is None:
            host = pending_host(self.home)
            return host is not None and has_link(host)
        return any(has_link(turned(identity, turn).host) for turn in range(1 + len(identity.others)))

    def enrollment(self) -> EnrollmentState:
        """Return what stands between this device and delivery."""
        return state_of(self.home, self.here)

    def link_lost(self) -> None:
        """Note that the link is gone: a request in flight ends."""
        if (delivery := self._delivery) is not None:
            delivery[1].link_lost()

    def close(self) -> None:
        """Close the connection."""
        if self._delivery is not None:
            self._delivery[1].client.close()

    def route(self) -> frozenset[str]:
        """Return by which of its addresses this device reaches the world, to notice another link; empty without one."""
        return own_addresses() | {""} if self.link() else frozenset()

    def run(self, *, probe: bool, progress: Show) -> SyncResult:
        """Make one sync run. Failures of delivery are in the result; raises NotEnrolled, or an error of the outbox."""
        result, client = self._run_by_turns(probe=probe, progress=progress)
        note = {"at_ms": self.clock.stamp().at_ms} | result.fields()
        self.outbox.end_run(None if result.offline else json.dumps(note))
        if not result.offline:
            history.append(self.home, note)
        if result.delivered or result.duplicates or result.rejected:
            log.info("sync: %s", result)
        self._note_request(client)
        self._follow_announcement(client)  # now that everything is stored: it may take as long as a request
        return result

    def _run_by_turns(self, *, probe: bool, progress: Show) -> tuple[SyncResult, ReceiverClient]:
        """Run at the address that last worked; while nothing is reached, at the receiver's others."""
        if self._turn and self.clock.monotonic() - self._turned_at > PREFERRED_S:
            self._turn = 0
        delivery = self._current()
        begin_stream_of(self.outbox, delivery.client.device_id)
        left = len(self._identity.others) if self._identity else 0
        result = delivery.run(probe=probe, progress=progress, final=not left)
        while left and _is_unreached(result) and not self.stopping():
            left -= 1
            self._turn, self._turned_at = self._turn + 1, self.clock.monotonic()
            delivery = self._current()
            if not result.offline:  # a device without a link looks for one each minute
                log.info("the receiver is not reached; trying %s", delivery.client.identity.url)
            result = delivery.run(probe=probe, progress=progress, final=not left)
        return result, delivery.client

    def take_request(self) -> bool:
        """Return, once, whether the receiver asked for a sync during the last run."""
        asked, self._asked = self._asked, False
        return asked

    def _note_request(self, client: ReceiverClient) -> None:
        asked, client.sync_asked = client.sync_asked, False
        if asked and self.clock.monotonic() - self._asked_at >= ASKED_AGAIN_S:
            self._asked, self._asked_at = True, self.clock.monotonic()
            log.info("the receiver asks for a sync: everything is delivered now")

    def _follow_announcement(self, client: ReceiverClient) -> None:
        known = self._identity
        if known is not None and client.announced is not None and not self.stopping():
            moved = self._announcements.follow(known, client.announced, by=client.identity.url)
            if moved is not known and self._identity is known:
                self._identity, self._turn = moved, 0

    def _current(self) -> Delivery:
        """Return what delivers under the present identity; its connection is kept from run to run."""
        identity = self._identity
        if identity is None:
            raise NotEnrolled(self.enrollment().detail)
        identity = turned(identity, self._turn)
        if self._delivery is None or self._delivery[0] != identity:
            self.close()
            throttle = self.max_rate and Throttle(rate=self.max_rate, monotonic=self.clock.monotonic, sleep=time.sleep)
            client = ReceiverClient(identity, clock=self.clock, throttle=throttle or None)
            delivery = Delivery(
                outbox=self.outbox, client=client, clock=self.clock, link=self.link, stopping=self.stopping
            )
            self._delivery = identity, delivery
        return self._delivery[1]


def _is_unreached(result: SyncResult) -> bool:
    """Return whether a run got nowhere, for want of a way to the receiver."""
    reached = result.delivered or result.duplicates or result.rejected
    return not reached and (result.offline or isinstance(result.failure, Unreachable))
