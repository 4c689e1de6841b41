"""One sync run: pending events are sent in batches (see `sending`), then the run's sync event (see `sync_events`).

Whether there is a link is only a hint: a run that has something to send tries. But where it fails and there is no
link, the device is offline, which is not a failure and makes no sync event.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pisync_agent.client import ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import DeliveryError, Unreachable
from pisync_agent.network.bodies import Transfer
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.sync.batches import BatchSize
from pisync_agent.sync.progress import SYNC_EVENT, ProgressTracker, Show, SyncResult
from pisync_agent.sync.sending import Sender
from pisync_agent.sync.sync_events import LATEST_MS, RunSummary, SyncEventSender, worth_trying
from pisync_common.models import Receipt

HELLO_S: Final = 6 * 3600.0
"""How often a device with nothing to send asks for its watermark, so that it does not count as silent, and a receiver
restored from an older copy is noticed."""

TIME: Final = "server_time_ms"
"""The outbox's note of a time that the receiver named."""

DAY_MS: Final = 86_400_000
_NUMBER: Final = re.compile("[0-9]{1,13}")


@dataclass(kw_only=True)
class Delivery:
    """Makes sync runs, one at a time; keep it between them. A run ends after the request in flight once `stopping`."""

    outbox: Outbox
    client: ReceiverClient
    clock: Clock
    batch_size: BatchSize = field(default_factory=BatchSize)
    link: Callable[[], bool]
    stopping: Callable[[], bool] = lambda: False
    random_hex: Callable[[int], str] = secrets.token_hex

    def __post_init__(self) -> None:
        self._sync_events = SyncEventSender(
            queue=self.outbox, client=self.client, clock=self.clock, random_hex=self.random_hex
        )
        self._sender = Sender(
            outbox=self.outbox,
            client=self.client,
            clock=self.clock,
            size=self.batch_size,
            link=self.link,
            on_receipt=self._on_receipt,
            stopping=self.stopping,
        )
        self._last_contact = self.clock.monotonic()
        self.client.learn_time(_noted_ms(self.outbox))

    def link_lost(self) -> None:
        """Break the connection: a request in flight would be waited for in vain. May be called from any thread."""
        self.client.abort()
        self.batch_size.interrupted()

    def run(self, *, probe: bool = False, progress: Show = lambda progress: None, final: bool = True) -> SyncResult:
        """Make one sync run. With `probe` (a run that was asked for) ask the receiver even if nothing is pending.

        What ended it early is in the result. Unless it is `final`, a run that reaches nothing makes no sync event:
        it goes on at another address. Raises AgentError where the outbox itself fails.
        """
        bytes_before = self.client.bytes_sent
        linked = self.link()
        tracker = ProgressTracker(
            of=self.outbox.state().waiting,
            monotonic=self.clock.monotonic,
            on_progress=progress,
            transfer=partial(_since, self.client, self.client.transfer),
        )
        failure = self._send(tracker, probe=probe or self._hello_due())
        offline = _may_be_offline(failure, tracker) and not (linked and self.link())
        if failure is not None and not offline:
            tracker.errors[failure.kind] += 1
        if final or tracker.events or not isinstance(failure, Unreachable):
            self._send_sync_events(tracker, failure, offline=offline, linked=linked, forced=probe)
        if offline:
            self.batch_size.interrupted()
        if failure is not None:
            self.client.close()
        return SyncResult(
            delivered=tracker.delivered,
            duplicates=tracker.duplicates,
            rejected=tracker.rejected,
            waiting=self.outbox.state().waiting,
            errors=dict(tracker.errors),
            seconds=tracker.seconds,
            bytes_sent=self.client.bytes_sent - bytes_before,
            speed_mbit=tracker.speed_mbit,
            failure=None if offline else failure,
            offline=offline,
        )

    def _send(self, tracker: ProgressTracker, *, probe: bool) -> DeliveryError | None:
        """Send what is pending; return what ended it early."""
        try:
            self._sender.run(tracker, probe=probe)
            self.outbox.trim()
        except DeliveryError as error:
            return error
        return None

    def _on_receipt(self, receipt: Receipt) -> None:
        self._last_contact = self.clock.monotonic()
        ms = self._sync_events.learn_time(receipt.server_time)
        if ms is None:
            return
        self.client.learn_time(ms)
        if ms >= _noted_ms(self.outbox) + DAY_MS:  # not each time: it is a write to the card
            self.outbox.set_note(TIME, str(ms))

    def _hello_due(self) -> bool:
        quiet = self.clock.monotonic() - self._last_contact
        return quiet >= HELLO_S or self._sync_events.failing

    def _send_sync_events(
        self, tracker: ProgressTracker, failure: DeliveryError | None, *, offline: bool, linked: bool, forced: bool
    ) -> None:
        measured_bytes, measured_seconds = tracker.measured
        summary = RunSummary(
            stamp=self.clock.stamp(),
            files=tracker.delivered + tracker.duplicates,
            errors=dict(tracker.errors),
            bytes=measured_bytes,
            seconds=measured_seconds,
            offline=offline,
            contact=tracker.contact,
        )
        self._sync_events.add(summary, forced=forced)
        if failure is not None:
            self._sync_events.put_off(failure)
        if (linked or tracker.contact) and not offline and worth_trying(failure, reached=tracker.bytes > 0):
            if self._sync_events.pending:
                tracker.show(SYNC_EVENT)
            if self._sync_events.send(forced=forced and failure is None, stopping=self.stopping):
                self._last_contact = self.clock.monotonic()


def _since(client: ReceiverClient, before: Transfer) -> tuple[int, float]:
    spent = client.transfer.since(before)
    return spent.bytes, spent.seconds


def _noted_ms(outbox: Outbox) -> int:
    """Return the newest time of the receiver that was noted; 0 if none was."""
    note = outbox.note(TIME) or ""
    return min(int(note), LATEST_MS) if _NUMBER.fullmatch(note) else 0


def _may_be_offline(failure: DeliveryError | None, tracker: ProgressTracker) -> bool:
    """Return whether a run ended, or did nothing, as without a link."""
    return isinstance(failure, Unreachable) or (failure is None and not tracker.contact)
