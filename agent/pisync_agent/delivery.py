"""One sync run: what waits is sent (see `sending`), then the run is reported (see `reports`).

Whether there is a link is a hint only: a run that has something to send tries. But where it fails and there is no
link, the device is offline, which is no failure and is not reported.
"""

import secrets
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

from pisync_agent.client import ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.connectivity import has_link
from pisync_agent.errors import DeliveryError, Unreachable
from pisync_agent.outbox import Outbox
from pisync_agent.policy import BatchSize
from pisync_agent.reports import Outcome, Reporter, worth_trying
from pisync_agent.sending import Sending
from pisync_agent.tally import REPORTING, Progress, Show, SyncResult, Tally
from pisync_common.models import Receipt

__all__ = ["Delivery", "Progress", "SyncResult"]

HELLO_S: Final = 6 * 3600.0
"""A device with nothing to send asks for its watermark this often: so it is not taken for silent, and a receiver that
was restored from an older copy is noticed."""


class Delivery:
    """Makes sync runs, one at a time; keep it between them. `stop` may be called from any thread."""

    def __init__(
        self,
        outbox: Outbox,
        client: ReceiverClient,
        *,
        clock: Clock,
        batch_size: BatchSize | None = None,
        link: Callable[[], bool] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        random_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._outbox = outbox
        self._client = client
        self._clock = clock
        self._size = batch_size or BatchSize()
        self._link = link or (lambda: has_link(client.identity.host))
        self._asked_to_stop = threading.Event()
        self._stopping = lambda: self._asked_to_stop.is_set() or stopping()
        self._reporter = Reporter(outbox, client, clock=clock, random_hex=random_hex)
        self._last_contact = clock.monotonic()

    def stop(self) -> None:
        """End the run after the request in flight, and make no other."""
        self._asked_to_stop.set()

    def run(self, *, probe: bool = False, progress: Show = lambda progress: None) -> SyncResult:
        """One sync run. `probe` is for a run that somebody asked for: the receiver is asked even if nothing waits.

        What ended it early is in the result. Raises AgentError where the outbox itself fails.
        """
        bytes_before = self._client.bytes_sent
        linked = self._link()
        tally = Tally(of=self._outbox.state().waiting, monotonic=self._clock.monotonic, show=progress)
        with closing(self._client):
            failure = self._send(tally, probe=probe or self._hello_due())
            offline = _may_be_offline(failure, tally) and not (linked and self._link())
            if failure is not None and not offline:
                tally.errors[failure.kind] += 1
            self._report(tally, failure, offline=offline, linked=linked, forced=probe)
        return SyncResult(
            delivered=tally.delivered,
            duplicates=tally.duplicates,
            rejected=tally.rejected,
            waiting=self._outbox.state().waiting,
            errors=dict(tally.errors),
            seconds=tally.seconds,
            bytes_sent=self._client.bytes_sent - bytes_before,
            speed_mbit=tally.speed_mbit,
            failure=None if offline else failure,
            offline=offline,
        )

    def _send(self, tally: Tally, *, probe: bool) -> DeliveryError | None:
        """What ended it early."""
        sending = Sending(
            self._outbox,
            self._client,
            clock=self._clock,
            size=self._size,
            tally=tally,
            heard=self._heard,
            stopping=self._stopping,
        )
        try:
            sending.run(probe=probe)
            self._outbox.trim()
        except DeliveryError as error:
            return error
        return None

    def _heard(self, receipt: Receipt) -> None:
        self._last_contact = self._clock.monotonic()
        self._reporter.learn(receipt.server_time)

    def _hello_due(self) -> bool:
        quiet = self._clock.monotonic() - self._last_contact
        return quiet >= HELLO_S or self._reporter.failing

    def _report(
        self, tally: Tally, failure: DeliveryError | None, *, offline: bool, linked: bool, forced: bool
    ) -> None:
        outcome = Outcome(
            stamp=self._clock.stamp(),
            files=tally.delivered + tally.duplicates,
            errors=dict(tally.errors),
            bytes=tally.bytes,
            seconds=tally.seconds_sending,
            offline=offline,
            contact=tally.contact,
        )
        self._reporter.add(outcome, forced=forced)
        if failure is not None:
            self._reporter.put_off(failure)
        if (linked or tally.contact) and not offline and worth_trying(failure, reached=tally.bytes > 0):
            if self._reporter.waiting:
                tally.show(REPORTING)
            if self._reporter.send(forced=forced and failure is None, stopping=self._stopping):
                self._last_contact = self._clock.monotonic()


def _may_be_offline(failure: DeliveryError | None, tally: Tally) -> bool:
    """Whether a run ended, or did nothing, as one does without a link."""
    return isinstance(failure, Unreachable) or (failure is None and not tally.contact)
