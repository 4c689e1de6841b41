"""The batches of one sync run: sent, settled, made smaller where they do not get through.

Two batches at most are in memory, one on the wire and the next being packed. The receiver's receipt decides how the
outbox moves on, or back. 413, and a time-out after something was sent, halve the batch and go on; so does a connection
that breaks off, if a batch has got through since the last one did. An event that is refused with 413 all alone is set
aside; so is one that the receiver declines alone while it takes an empty batch. Anything else ends the run: nothing is
dropped, and sending the same events again is safe.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Final

from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import Declined, DeliveryError, TooLarge, Unreachable
from pisync_agent.outbox import Outbox
from pisync_agent.packing import Ahead, Batch, Packer
from pisync_agent.policy import BatchSize
from pisync_agent.tally import ASKING, SENDING, Tally
from pisync_common.models import Receipt

log = logging.getLogger(__name__)

CONFLICT: Final = "conflict"
"""The code of a rejection that tells of a cloned card; and the outbox's note of the stream that met one."""

STREAMS_A_RUN: Final = 3
"""How many streams one run may follow: the outbox begins another one when its file breaks, or after a conflict."""

LATE_BATCHES: Final = 3
"""How many batches of events a run may send that came while it was under way. Where one comes with every round trip the
run would never end: never be reported, and never let them gather for a larger batch."""


class Sending:
    """One run's use of outbox and client. `heard` is told of each receipt."""

    def __init__(
        self,
        outbox: Outbox,
        client: ReceiverClient,
        *,
        clock: Clock,
        size: BatchSize,
        tally: Tally,
        heard: Callable[[Receipt], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._outbox = outbox
        self._client = client
        self._clock = clock
        self._size = size
        self._tally = tally
        self._heard = heard
        self._stopping = stopping
        self._got_through = False

    def run(self, *, probe: bool) -> None:
        """Send all that waits; with `probe` ask for the watermark where nothing does.

        Raises the DeliveryError that ended it, or what the outbox met.
        """
        self._outbox.begin_run()
        renewed = self._renew()
        for _ in range(STREAMS_A_RUN):
            stream = self._outbox.stream
            try:
                self._send_stream(stream, probe=probe)
            finally:
                renewed = renewed or self._renew()
            if self._outbox.stream == stream or self._stopping():
                return

    def _send_stream(self, stream: str, *, probe: bool) -> None:
        packer = Packer(self._outbox, device_id=self._client.device_id, stream=stream, agent=AGENT)
        with closing(Ahead(packer, self._size)) as ahead:
            after, upto, late = self._outbox.delivered, self._outbox.state().last_seq, 0
            while not self._stopping() and self._outbox.stream == stream:
                late += after >= upto
                batch = ahead.take(after) if late <= LATE_BATCHES else None
                if batch is None:
                    if not probe or self._tally.contact:
                        return
                    after = self._settle(packer.of([]))
                    probe = False
                else:
                    ahead.prepare(batch.last)
                    after = self._send(batch, packer)

    def _send(self, batch: Batch, packer: Packer) -> int:
        """Send a batch, or learn from its failure; the event to go on after."""
        sent_before = self._client.bytes_sent
        try:
            return self._settle(batch)
        except TooLarge as error:
            self._smaller(batch)
            return self._alone(batch, error, "too_large")
        except Declined as error:
            self._smaller(batch)
            if len(batch.seqs) == 1:
                self._post(packer.of([]))  # raises where it is not about this event
            return self._alone(batch, error, "declined")
        except Unreachable as error:
            if error.kind not in ("timeout", "connect") or self._client.bytes_sent == sent_before:
                raise
            self._smaller(batch)
            if len(batch.seqs) == 1 or (error.kind == "connect" and not self._got_through):
                raise
            self._got_through = False
            return batch.seqs[0] - 1

    def _smaller(self, batch: Batch) -> None:
        self._size.failed(events=len(batch.seqs), bytes=batch.size)

    def _alone(self, batch: Batch, error: DeliveryError, code: str) -> int:
        """Go on with half of a refused batch; an event that was refused alone is set aside."""
        if len(batch.seqs) > 1:
            return batch.seqs[0] - 1
        log.warning("event %d is set aside as a dead letter (%s): %s", batch.last, code, error)
        self._outbox.set_aside(batch.last, code, str(error))
        self._tally.set_aside(error.kind)
        return batch.last

    def _settle(self, batch: Batch) -> int:
        """Send a batch and take in its receipt; the event to go on after."""
        began = self._clock.monotonic()
        receipt = self._post(batch)
        seconds = self._clock.monotonic() - began
        self._heard(receipt)
        if any(rejection.code == CONFLICT for rejection in receipt.rejected):
            # Noted first: a crash in between must not leave the conflict unanswered.
            self._outbox.set_note(CONFLICT, batch.stream)
        delivered = self._outbox.settle(batch.seqs[-1] if batch.seqs else 0, receipt, batch.seqs)
        self._tally.receipt(receipt)
        self._got_through = True
        if batch.seqs:
            self._size.succeeded(events=len(batch.seqs), bytes=batch.size, seconds=seconds)
        return delivered

    def _post(self, batch: Batch) -> Receipt:
        began, before = self._clock.monotonic(), self._client.bytes_sent
        step = SENDING if batch.seqs else ASKING

        def moved(number: int) -> None:
            self._tally.show(step, moving=self._client.bytes_sent - before, since=began)

        self._tally.show(step)
        try:
            return self._client.post_batch(batch.sealed(self._clock.stamp()), stream=batch.stream, on_sent=moved)
        finally:
            self._tally.bytes += self._client.bytes_sent - before
            if self._client.bytes_sent > before:
                self._tally.seconds_sending += self._clock.monotonic() - began

    def _renew(self) -> bool:
        """Begin a new stream if a conflict was met in this one; whether that was so."""
        if self._outbox.note(CONFLICT) != self._outbox.stream:
            return False
        log.warning(
            "the receiver holds other events under this device's numbers: this card was cloned, or restored from an "
            "older copy. PiSync goes on in a new stream; nothing is lost"
        )
        self._outbox.start_new_stream("the receiver holds other events under the same numbers (a cloned card)")
        return True
