"""The batches of a run: packed, sent, and settled in order. On a slow link two are in flight at once.

At most two batches are in memory: in flight, or being packed. The receiver's receipt decides how the outbox moves on,
or back. 413, and a time-out after something was sent, halve the batch and go on; so does a broken connection, if a
batch got through since the previous break. A batch that the receiver declines is halved too. A single event that is
refused with 413, or that the receiver declines while it accepts an empty batch, becomes a dead letter. Anything else,
a time-out of a single event too, ends the run: nothing is dropped, and sending the same events again is safe.

Where the first of two batches fails and the second arrives, the second's receipt is kept until the first is delivered:
what was acknowledged is not sent again.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from pisync_agent.answers import check_receipt
from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.errors import Declined, DeliveryError, TooLarge, Unreachable
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.sync.batches import Batch, BatchSize, Packer, Prefetcher
from pisync_agent.sync.progress import ASKING, SENDING, ProgressTracker
from pisync_common.models import Receipt

log = logging.getLogger(__name__)

CONFLICT: Final = "conflict"
"""The code of a rejection that reveals a cloned card; and the outbox's note of the stream that met one."""

STREAMS_A_RUN: Final = 3
"""How many streams one run may follow: the outbox begins another when its file breaks, or after a conflict."""

LATE_BATCHES: Final = 3
"""How many more batches a run may send after everything that was pending at its start. Without this bound, steady new
events would keep the run going for ever, without a sync event and without time to gather into larger batches."""


@dataclass(kw_only=True, eq=False)
class Flight:
    """A batch on its way."""

    batch: Batch
    answer: Callable[[], Receipt] = field(init=False)
    """Waits for the receipt. Raises DeliveryError."""
    sent: int = 0
    """Bytes of its request so far."""
    seconds: float = 0.0
    """How long it took."""
    watermark: int = 0
    """The newest that the receiver named while the batch was on its way: this batch's own receipt may be older."""


@dataclass(kw_only=True)
class Sender:
    """Sends what is pending, one run at a time; keep it between runs.

    `on_receipt` is called when a receipt comes, in any thread.
    """

    outbox: Outbox
    client: ReceiverClient
    clock: Clock
    size: BatchSize
    link: Callable[[], bool]
    on_receipt: Callable[[Receipt], None]
    stopping: Callable[[], bool]
    _tracker: ProgressTracker = field(init=False)
    _flights: deque[Flight] = field(default_factory=deque)
    _early: tuple[Flight, Receipt] | None = None
    """A batch that arrived although the batch before it did not."""
    _got_through: bool = False
    _linked: bool = False

    def run(self, tracker: ProgressTracker, *, probe: bool) -> None:
        """Send everything pending; with `probe` ask for the watermark if nothing is.

        Raises the DeliveryError that ended it, or an error of the outbox.
        """
        self._tracker, self._got_through, self._linked = tracker, False, self.link()
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
        after, last, late = self.outbox.delivered, self.outbox.state().last_seq, 0
        if self._early is not None and self._early[0].batch.stream != stream:
            self._early = None
        self._flights.clear()
        with closing(Prefetcher(packer, self.size)) as prefetcher, ExitStack() as stack:
            stack.callback(self._await_rest)
            while True:
                goes_on = not self.stopping() and self.outbox.stream == stream
                batch = None
                if goes_on and self._has_room() and (after < last or late < LATE_BATCHES):
                    batch = prefetcher.take(after, before=self._first_early())
                if batch is not None:
                    late += after >= last
                    after = self._launch(batch, prefetcher)
                elif self._flights:
                    after = self._land(packer)
                elif goes_on and self._early is not None:
                    after = self._settle(*self._early)
                    self._early = None
                elif goes_on and probe and not self._tracker.contact:
                    after, probe = self._probe(packer), False
                else:
                    return

    def _has_room(self) -> bool:
        return len(self._flights) < (self.size.parallel if self._early is None else 1)

    def _first_early(self) -> int | None:
        return None if self._early is None else self._early[0].batch.seqs[0]

    def _launch(self, batch: Batch, prefetcher: Prefetcher) -> int:
        """Send a batch: in a thread where another is sent meanwhile. Return the event to go on after."""
        flight = Flight(batch=batch)
        if self.size.parallel > 1:
            flight.answer = _begun(partial(self._post, flight))
        else:
            flight.answer = partial(self._post, flight)
            prefetcher.prepare(batch.last)
        self._flights.append(flight)
        return batch.last

    def _land(self, packer: Packer) -> int:
        """Settle the oldest batch in flight, or react to its failure; return the event to go on after."""
        flight = self._flights.popleft()
        try:
            receipt = flight.answer()
        except DeliveryError as error:
            self._await_rest()
            return self._after_failure(flight, error, packer)
        delivered = self._settle(flight, receipt)
        if not self._flights:
            return delivered
        if delivered == flight.batch.last:
            return self._flights[-1].batch.last
        self._await_rest()  # the receiver misses earlier events: go back there
        return delivered

    def _await_rest(self) -> None:
        """Wait for the batches that are still in flight; keep a receipt until the events before it are delivered."""
        while self._flights:
            flight = self._flights.popleft()
            try:
                self._early = (flight, flight.answer())
            except DeliveryError as error:
                log.info("the batch from event %d on is sent again: %s", flight.batch.seqs[0], error)

    def _after_failure(self, flight: Flight, error: DeliveryError, packer: Packer) -> int:
        """React to a batch's failure; return the event to go on after, or raise the error that ends the run."""
        batch = flight.batch
        if isinstance(error, TooLarge):
            self._halve(batch)
            return self._after_refusal(batch, error, "too_large")
        if isinstance(error, Declined):
            self._halve(batch)
            if len(batch.seqs) == 1:
                self._probe(packer, settle=False)  # raises where it is not about this event
            return self._after_refusal(batch, error, "declined")
        if not isinstance(error, Unreachable) or error.kind not in ("timeout", "connect") or not flight.sent:
            raise error
        if self._linked and not self.link():
            self.size.interrupted()
            raise error
        self._halve(batch)
        if len(batch.seqs) == 1 or (error.kind == "connect" and not self._got_through):
            raise error
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
        self._tracker.count_dead_letter(error.kind)
        return batch.last

    def _probe(self, packer: Packer, *, settle: bool = True) -> int:
        """Ask for the watermark with a batch without events; return the event to go on after."""
        flight = Flight(batch=packer.of([]))
        receipt = self._post(flight)
        return self._settle(flight, receipt) if settle else 0

    def _settle(self, flight: Flight, receipt: Receipt) -> int:
        """Apply a receipt; return the event to go on after."""
        batch = flight.batch
        receipt = replace(receipt, watermark=max(receipt.watermark, flight.watermark))
        if any(rejection.code == CONFLICT for rejection in receipt.rejected):
            # Noted first: a crash in between must not leave the conflict unanswered.
            self.outbox.set_note(CONFLICT, batch.stream)
        delivered = self.outbox.settle(receipt, batch.seqs)
        for other in (*self._flights, *(self._early or ())[:1]):
            other.watermark = max(other.watermark, receipt.watermark)
        self._tracker.count_receipt(receipt)
        self._got_through = True
        if batch.seqs:
            self.size.succeeded(events=len(batch.seqs), bytes=batch.size, seconds=flight.seconds)
        return delivered

    def _post(self, flight: Flight) -> Receipt:
        """Send a batch and return its receipt; in any thread."""
        batch, tracker = flight.batch, self._tracker
        step = SENDING if batch.seqs else ASKING

        def on_sent(number: int) -> None:
            flight.sent += number
            tracker.count_sent(number)
            tracker.show(step)

        tracker.show(step)
        began = self.clock.monotonic()
        receipt = self.client.post_batch(batch.sealed(self.clock.stamp()), stream=batch.stream, on_sent=on_sent)
        flight.seconds = self.clock.monotonic() - began
        check_receipt(receipt, batch.seqs)
        self.on_receipt(receipt)
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


def _begun(post: Callable[[], Receipt]) -> Callable[[], Receipt]:
    """Begin in a thread that does not keep the process from ending; return a function that waits for the receipt."""
    receipt: Future[Receipt] = Future()

    def work() -> None:
        try:
            receipt.set_result(post())
        except BaseException as error:
            receipt.set_exception(error)

    threading.Thread(target=work, name="send", daemon=True).start()
    return receipt.result
