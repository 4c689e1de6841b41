"""Two batches in flight: receipts in any order, failures of either, and nothing acknowledged is sent again."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from pisync_agent.errors import StoreUnusable
from pisync_agent.sync.batches import BatchSize
from pisync_common.models import Receipt
from pisync_common.times import parse_ms
from tests.support.processes import DEADLINE_SECONDS
from tests.unit.made_up_receiver import Fault, Proceed, raising, status
from tests.unit.test_sync_run import Bench, upto


class SlowLink(BatchSize):
    """Batches of five events, two in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.events, self.parallel = 5, 2

    def succeeded(self, *, events: int, bytes: int, seconds: float) -> None:
        self.parallel = 2


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.size = SlowLink()
    bench.delivery = bench.restarted()
    yield bench
    bench.client.close()
    bench.outbox.close()


def proceeding(request: httpx.Request, proceed: Proceed) -> httpx.Response:
    return proceed()


def first_after_second(first: Fault, second: Fault) -> tuple[Fault, Fault]:
    """Faults for two batches, whichever of them comes first: the batch from event 1 on waits for the other."""
    arrived = threading.Event()

    def wait(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        assert arrived.wait(DEADLINE_SECONDS), "the second batch is not sent before the first is answered"
        return first(request, proceed)

    def arrive(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        try:
            return second(request, proceed)
        finally:
            arrived.set()

    return wait, arrive


def route(bench: Bench, first: Fault, second: Fault) -> None:
    """Apply `first` to the first batch with event 1, `second` to the first with event 6; then all is well."""
    faults = {1: first, 6: second}

    def chosen(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        first_seq = bench.receiver.seqs_of(request)[0]
        return faults.pop(first_seq, proceeding)(request, proceed)

    bench.receiver.always = chosen


def times_sent(bench: Bench) -> Counter[int]:
    return Counter(seq for batch in bench.receiver.batches for seq in batch)


def test_receipts_that_cross_are_no_loss_at_the_receiver(bench: Bench) -> None:
    """The second is stored before the first, so its receipt names a watermark of long ago."""
    bench.record(20)
    route(bench, *first_after_second(proceeding, proceeding))

    result = bench.run()

    assert (result.delivered, result.duplicates, result.waiting) == (20, 0, 0)
    assert times_sent(bench) == Counter(upto(20))


@pytest.mark.parametrize("fault", [raising(httpx.ReadTimeout), status(413)])
def test_a_batch_that_arrived_before_a_failed_batch_is_not_sent_again(bench: Bench, fault: Fault) -> None:
    bench.record(20)
    route(bench, *first_after_second(fault, proceeding))

    result = bench.run()

    assert (result.delivered, result.duplicates, result.waiting, result.failure) == (20, 0, 0, None)
    assert times_sent(bench) == Counter(upto(20) + upto(5))
    assert bench.receiver.stored == upto(20)


def test_a_receipt_is_kept_until_a_later_run_needs_it(bench: Bench) -> None:
    bench.record(20)
    route(bench, *first_after_second(raising(httpx.ReadError), proceeding))

    first = bench.run()
    bench.receiver.server_time = "2026-11-23T11:00:00.000Z"
    second = bench.run()

    assert (first.errors, first.waiting) == ({"connect": 1}, 20)
    assert (second.delivered, second.duplicates, second.waiting) == (20, 0, 0)
    known = bench.delivery._sync_events._server
    assert known is not None
    assert known[0] == parse_ms("2026-11-23T11:00:00Z")  # the receipt of then does not tell the time of now
    assert times_sent(bench) == Counter(upto(20) + upto(5))


def test_a_batch_that_arrived_is_not_sent_again_although_the_card_failed_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.record(20)
    route(bench, *first_after_second(proceeding, proceeding))
    settle = bench.outbox.settle

    def fail_once(receipt: Receipt, sent: Sequence[int]) -> int:
        monkeypatch.setattr(bench.outbox, "settle", settle)
        raise StoreUnusable("input/output error")

    monkeypatch.setattr(bench.outbox, "settle", fail_once)
    with pytest.raises(StoreUnusable):
        bench.run()
    result = bench.run()

    assert (result.waiting, result.failure) == (0, None)
    assert times_sent(bench) == Counter(upto(20) + upto(5))


def test_a_second_batch_that_fails_is_sent_again_alone(bench: Bench) -> None:
    bench.record(20)
    route(bench, *first_after_second(proceeding, raising(httpx.ReadTimeout)))

    result = bench.run()

    assert (result.delivered, result.waiting, result.failure) == (20, 0, None)
    assert times_sent(bench) == Counter([*upto(20), 6, 7, 8, 9, 10])


def test_two_batches_that_fail_end_the_run_with_the_error_of_the_first(bench: Bench) -> None:
    bench.record(20)
    route(bench, *first_after_second(status(503, retry_after="7"), raising(httpx.ReadError)))

    result = bench.run()

    assert (result.errors, result.waiting) == ({"http_5xx": 1}, 20)
    assert bench.run().waiting == 0
    assert bench.receiver.stored == upto(20)


def test_a_receiver_restored_meanwhile_gets_lost_events_again(bench: Bench) -> None:
    bench.record(10)
    bench.run()
    bench.record(15)
    bench.receiver.batches.clear()

    def forget(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        for seq in range(4, 11):
            del bench.receiver.streams[bench.outbox.stream][seq]
        bench.receiver.always = None
        return proceed()

    bench.receiver.always = forget

    result = bench.run()

    assert bench.receiver.stored == upto(25)
    assert (result.waiting, result.failure) == (0, None)


def test_a_stop_ends_the_run_after_both_batches_in_flight(bench: Bench) -> None:
    bench.record(20)

    def stop(request: httpx.Request, proceed: Proceed) -> httpx.Response:
        bench.stopping = True
        return proceed()

    route(bench, *first_after_second(stop, proceeding))

    result = bench.run()

    assert (result.delivered, result.waiting, result.failure) == (10, 10, None)
    assert times_sent(bench) == Counter(upto(10))
