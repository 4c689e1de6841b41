"""One sync run: pending events are sent batch by batch, then the run's sync event (see `sync_events`).

At most two batches are in memory, one in flight and the next being packed. The receiver's receipt decides how the
outbox moves on, or back. 413, and a time-out after something was sent, halve the batch and go on; so does a broken
connection, if a batch got through since the previous break. A batch that the receiver declines is halved too. A
single event that is refused with 413, or that the receiver declines while it accepts an empty batch, becomes a dead
letter. Anything else, a time-out of a single event too, ends the run: nothing is dropped, and sending the same events
again is safe.

Whether there is a link is only a hint: a run that has something to send tries. But where it fails and there is no
link, the device is offline, which is not a failure and makes no sync event.
"""

import logging
import re
import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from pisync_agent.answers import check_receipt
from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import Declined, DeliveryError, TooLarge, Unreachable
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.sync.batches import Batch, BatchSize, Packer, Prefetcher
from pisync_agent.sync.progress import ASKING, SENDING, SYNC_EVENT, ProgressTracker, Show, SyncResult
from pisync_agent.sync.sync_events import LATEST_MS, RunSummary, SyncEventSender, worth_trying
from pisync_common.models import Receipt

log = logging.getLogger(__name__)

HELLO_S: Final = 6 * 3600.0
"""How often a device with nothing to send asks for its watermark, so that it does not count as silent, and a receiver
restored from an older copy is noticed."""

CONFLICT: Final = "conflict"
"""The code of a rejection that reveals a cloned card; and the outbox's note of the stream that met one."""

TIME: Final = "server_time_ms"
"""The outbox's note of a time that the receiver named."""

DAY_MS: Final = 86_400_000
_NUMBER: Final = re.compile("[0-9]{1,13}")

STREAMS_A_RUN: Final = 3
"""How many streams one run may follow: the outbox begins another when its file breaks, or after a conflict."""

LATE_BATCHES: Final = 3
"""How many more batches a run may send after everything that was pending at its start. Without this bound, steady new
events would keep the run going for ever, without a sync event and without time to gather into larger batches."""


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
        self._last_contact = self.clock.monotonic()
        self.client.learn_time(_noted_ms(self.outbox))

    def run(self, *, probe: bool = False, progress: Show = lambda progress: None) -> SyncResult:
        """Make one sync run. With `probe` (a run that was asked for) ask the receiver even if nothing is pending.

        What ended it early is in the result. Raises AgentError where the outbox itself fails.
        """
        bytes_before = self.client.bytes_sent
        linked = self.link()
        tracker = ProgressTracker(of=self.outbox.state().waiting, monotonic=self.clock.monotonic, on_progress=progress)
        failure = self._send(tracker, probe=probe or self._hello_due())
        offline = _may_be_offline(failure, tracker) and not (linked and self.link())
        if failure is not None and not offline:
            tracker.errors[failure.kind] += 1
        self._send_sync_events(tracker, failure, offline=offline, linked=linked, forced=probe)
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
        sending = _Sending(
            outbox=self.outbox,
            client=self.client,
            clock=self.clock,
            size=self.batch_size,
            tracker=tracker,
            on_receipt=self._on_receipt,
            stopping=self.stopping,
        )
        try:
            sending.run(probe=probe)
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


def _noted_ms(outbox: Outbox) -> int:
    """Return the newest time of the receiver that was noted; 0 if none was."""
    note = outbox.note(TIME) or ""
    return min(int(note), LATEST_MS) if _NUMBER.fullmatch(note) else 0


def _may_be_offline(failure: DeliveryError | None, tracker: ProgressTracker) -> bool:
    """Return whether a run ended, or did nothing, as without a link."""
    return isinstance(failure, Unreachable) or (failure is None and not tracker.contact)


@dataclass(kw_only=True)
class _Sending:
    """The batches of one run. `on_receipt` is called with each receipt."""

    outbox: Outbox
    client: ReceiverClient
    clock: Clock
    size: BatchSize
    tracker: ProgressTracker
    on_receipt: Callable[[Receipt], None]
    stopping: Callable[[], bool]
    _got_through: bool = False

    def run(self, *, probe: bool) -> None:
        """Send everything pending; with `probe` ask for the watermark if nothing is.

        Raises the DeliveryError that ended it, or an error of the outbox.
        """
        self.outbox.begin_run()
        renewed = self._renew()
        for _ in range(STREAMS_A_RUN):
            stream = self.outbox.stream
            try:
                self._send_stream(stream, probe=probe)
            finally:
                renewed = renewed or self._renew()
            if self.outbox.stream == stream or self.stopping():
                return

    def _send_stream(self, stream: str, *, probe: bool) -> None:
        packer = Packer(self.outbox, device_id=self.client.device_id, stream=stream, agent=AGENT)
        with closing(Prefetcher(packer, self.size)) as prefetcher:
            after, last, late = self.outbox.delivered, self.outbox.state().last_seq, 0
            while not self.stopping() and self.outbox.stream == stream:
                late += after >= last
                batch = prefetcher.take(after) if late <= LATE_BATCHES else None
                if batch is None:
                    if not probe or self.tracker.contact:
                        return
                    after = self._deliver(packer.of([]))
                    probe = False
                else:
                    prefetcher.prepare(batch.last)
                    after = self._send(batch, packer)

    def _send(self, batch: Batch, packer: Packer) -> int:
        """Send a batch, or react to its failure; return the event to go on after."""
        sent_before = self.client.bytes_sent
        try:
            return self._deliver(batch)
        except TooLarge as error:
            self._halve(batch)
            return self._after_refusal(batch, error, "too_large")
        except Declined as error:
            self._halve(batch)
            if len(batch.seqs) == 1:
                self._post(packer.of([]))  # raises where it is not about this event
            return self._after_refusal(batch, error, "declined")
        except Unreachable as error:
            if error.kind not in ("timeout", "connect") or self.client.bytes_sent == sent_before:
                raise
            self._halve(batch)
            if len(batch.seqs) == 1 or (error.kind == "connect" and not self._got_through):
                raise
            self._got_through = False
            return batch.seqs[0] - 1

    def _halve(self, batch: Batch) -> None:
        self.size.failed(events=len(batch.seqs), bytes=batch.size)

    def _after_refusal(self, batch: Batch, error: DeliveryError, code: str) -> int:
        """Go on with half of a refused batch; make a dead letter of an event that was refused alone."""
        if len(batch.seqs) > 1:
            return batch.seqs[0] - 1
        log.warning("event %d becomes a dead letter (%s): %s", batch.last, code, error)
        self.outbox.move_to_dead_letters(batch.last, code, str(error))
        self.tracker.count_dead_letter(error.kind)
        return batch.last

    def _deliver(self, batch: Batch) -> int:
        """Send a batch and apply its receipt; return the event to go on after."""
        began = self.clock.monotonic()
        receipt = self._post(batch)
        seconds = self.clock.monotonic() - began
        self.on_receipt(receipt)
        if any(rejection.code == CONFLICT for rejection in receipt.rejected):
            # Noted first: a crash in between must not leave the conflict unanswered.
            self.outbox.set_note(CONFLICT, batch.stream)
        delivered = self.outbox.settle(receipt, batch.seqs)
        self.tracker.count_receipt(receipt)
        self._got_through = True
        if batch.seqs:
            self.size.succeeded(events=len(batch.seqs), bytes=batch.size, seconds=seconds)
        return delivered

    def _post(self, batch: Batch) -> Receipt:
        before, transfer = self.client.bytes_sent, self.client.transfer
        step = SENDING if batch.seqs else ASKING

        def on_sent(number: int) -> None:
            self.tracker.show(step, moving=self.client.bytes_sent - before)

        self.tracker.show(step)
        try:
            receipt = self.client.post_batch(batch.sealed(self.clock.stamp()), stream=batch.stream, on_sent=on_sent)
        finally:
            self.tracker.bytes += self.client.bytes_sent - before
            spent = self.client.transfer.since(transfer)
            self.tracker.transfer_bytes += spent.bytes
            self.tracker.transfer_seconds += spent.seconds
        check_receipt(receipt, batch.seqs)
        return receipt

    def _renew(self) -> bool:
        """Begin a new stream if a conflict was met in this stream; return whether it did."""
        if self.outbox.note(CONFLICT) != self.outbox.stream:
            return False
        log.warning(
            "the receiver has other events under this device's numbers: this card was cloned, or restored from an "
            "older copy. PiSync goes on in a new stream; nothing is lost"
        )
        self.outbox.start_new_stream("the receiver has other events under the same numbers (a cloned card)")
        return True
