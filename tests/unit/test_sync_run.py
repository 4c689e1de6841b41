"""Sync runs over a real outbox and a receiver in memory."""

import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_agent.client import ReceiverClient
from pisync_agent.errors import BadAnswer, Overloaded, Refused, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.sync import batches
from pisync_agent.sync.batches import BatchSize
from pisync_agent.sync.progress import Progress, SyncResult
from pisync_agent.sync.run import HELLO_S, Delivery
from pisync_common.limits import KIB, MIB
from pisync_common.times import parse_ms
from tests.support.outboxes import STAMP, StillClock, dead_letters, event, event_text, events, opened
from tests.unit.made_up_receiver import (
    DEVICE,
    TOKEN,
    URL,
    Fault,
    MadeUpReceiver,
    containing,
    larger_than,
    lost_answer,
    portal,
    raising,
    status,
    too_slow,
)


class Bench:
    """A device with its outbox, and the receiver it talks to."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = StillClock(replace(STAMP, clock_synced=True))
        self.outbox = opened(home)
        self.receiver = MadeUpReceiver()
        self.linked = True
        self.stopping = False
        self.size = BatchSize()
        identity = Identity(url=URL, device_id=DEVICE, token=TOKEN)
        self.client = ReceiverClient(identity, clock=self.clock, transport=self.receiver.transport())
        self.delivery = self.restarted()

    def restarted(self) -> Delivery:
        return Delivery(
            outbox=self.outbox,
            client=self.client,
            clock=self.clock,
            batch_size=self.size,
            link=lambda: self.linked,
            stopping=lambda: self.stopping,
        )

    def record(self, count: int, *, size: int = 0) -> None:
        first = self.outbox.state().last_seq + 1
        for at in range(first, first + count, 1000):
            self.outbox.append(events(min(1000, first + count - at), first=at, size=size))

    def run(self, *, probe: bool = False) -> SyncResult:
        return self.delivery.run(probe=probe)

    def later(self, seconds: float) -> None:
        now = self.clock.now
        self.clock.now = replace(
            now, at_ms=now.at_ms + int(seconds * 1000), boottime_ms=now.boottime_ms + int(seconds * 1000)
        )

    @property
    def sync_events(self) -> list[tuple[int, dict[str, int]]]:
        """(files, errors) of each sync event that arrived."""
        return [(body["total_files_synced"], body.get("errors", {})) for body in self.receiver.sync_events]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.client.close()
    bench.outbox.close()


def upto(count: int) -> list[int]:
    return list(range(1, count + 1))


# All is well


def test_pending_events_are_delivered_once_in_order(bench: Bench) -> None:
    bench.record(2500)

    result = bench.run()

    assert (result.delivered, result.duplicates, result.rejected, result.waiting) == (2500, 0, 0, 0)
    assert (result.failure, result.errors, result.offline) == (None, {}, False)
    assert [seq for batch in bench.receiver.batches for seq in batch] == upto(2500)
    assert bench.sync_events == [(2500, {})]
    assert bench.outbox.state().delivered == 2500


def test_events_arrive_as_they_were_recorded(bench: Bench) -> None:
    bench.record(3)

    bench.run()

    (stream,) = bench.receiver.streams.values()
    assert [json.dumps(stream[seq], separators=(",", ":")) for seq in upto(3)] == [
        event_text(bench.outbox, seq) for seq in upto(3)
    ]


def test_bytes_sent_are_those_of_all_requests(bench: Bench) -> None:
    bench.record(10)

    result = bench.run()

    assert result.bytes_sent == bench.client.bytes_sent
    assert result.bytes_sent > sum(len(request.content) for request in bench.receiver.requests)


@pytest.mark.parametrize(("count", "measured"), [(1, False), (200, True)])
def test_a_run_is_as_fast_as_its_transfers_or_not_measured(bench: Bench, count: int, measured: bool) -> None:
    """A small batch takes a round trip, whatever the link's speed."""
    chance = random.Random(4)
    noisy = [event(number, data={"noise": chance.randbytes(500).hex()}) for number in range(count)]
    bench.outbox.append(noisy)
    bench.receiver.hook = lambda: bench.later(0.4)
    result = bench.run(probe=True)

    bodies = sum(len(each.content) for each in bench.receiver.requests if each.url.path == "/api/events")
    expected = round(bodies * 8 / 1e6 / (0.4 * len(bench.receiver.batches)), 6) if measured else 0.0
    assert (bodies >= 64 * KIB) == measured
    assert result.speed_mbit == expected
    assert [body["internet_speed"] for body in bench.receiver.sync_events] == [expected]


def forgetting(request: httpx.Request, proceed: Callable[[], httpx.Response]) -> httpx.Response:
    """A receipt that does not account for all that was sent."""
    answer = proceed().json()
    return httpx.Response(200, json=answer | {"stored": answer["stored"] - 1})


def test_a_receipt_that_does_not_account_for_the_batch_moves_nothing(bench: Bench) -> None:
    bench.record(5)
    bench.receiver.next(forgetting)
    result = bench.run()

    assert type(result.failure) is BadAnswer
    assert (result.waiting, bench.outbox.delivered, dead_letters(bench.outbox)) == (5, 0, [])
    assert bench.run().waiting == 0
    assert bench.receiver.stored == upto(5)


def test_the_receivers_time_is_remembered_as_evidence_about_the_clock(bench: Bench) -> None:
    def known() -> list[int]:
        learned: list[int] = []
        patched = ReceiverClient(bench.client.identity, clock=bench.clock, transport=bench.receiver.transport())
        patched.learn_time = learned.append  # type: ignore[method-assign, assignment]
        bench.client = patched
        bench.restarted()
        return learned

    assert known() == [0]
    for server_time, expected in (
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-01T23:00:00Z", "2026-12-01T00:00:00Z"),  # not a write to the card for each receipt
        ("2026-12-03T00:00:00Z", "2026-12-03T00:00:00Z"),
        ("1970-01-01T00:00:00Z", "2026-12-03T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "2026-12-03T00:00:00Z"),
    ):
        bench.receiver.server_time = server_time
        bench.record(1)
        assert bench.run().failure is None
        assert known() == [parse_ms(expected)]


def test_every_attempt_has_its_own_time_of_sending(bench: Bench) -> None:
    bench.record(600)
    bench.size.events = 200
    bench.receiver.hook = lambda: bench.later(0.4)

    bench.run()

    times = [sent["boottime_ms"] for sent in bench.receiver.sent]
    # The second batch was packed while the first was on its way; it still tells when it was sent.
    assert times == [STAMP.boottime_ms, STAMP.boottime_ms + 400, STAMP.boottime_ms + 800]


def test_with_nothing_pending_nothing_is_sent(bench: Bench) -> None:
    result = bench.run()

    assert result == replace(result, delivered=0, waiting=0, failure=None, bytes_sent=0)
    assert bench.receiver.requests == []


def test_a_requested_run_without_events_probes(bench: Bench) -> None:
    result = bench.run(probe=True)

    assert bench.receiver.batches == [[]]
    assert result.failure is None
    assert bench.sync_events == [(0, {})]


def test_a_requested_run_with_events_does_not_probe(bench: Bench) -> None:
    bench.record(3)

    bench.run(probe=True)

    assert bench.receiver.batches == [[1, 2, 3]]


def test_a_run_ends_although_events_keep_coming(bench: Bench) -> None:
    bench.record(5)
    bench.receiver.hook = lambda: bench.record(1)

    result = bench.run()

    assert bench.receiver.batches == [[1, 2, 3, 4, 5], [6], [7], [8]]
    assert (result.delivered, result.waiting, result.failure) == (8, 1, None)
    assert bench.sync_events == [(8, {})]


def test_an_idle_device_probes_after_hours(bench: Bench) -> None:
    bench.later(HELLO_S - 1)
    bench.run()
    assert bench.receiver.batches == []

    bench.later(1)
    bench.run()
    bench.run()
    assert bench.receiver.batches == [[]]


def test_a_recovery_is_announced_with_nothing_pending(bench: Bench) -> None:
    bench.receiver.next(status(500))
    bench.run(probe=True)

    bench.run()

    assert bench.sync_events == [(0, {"http_5xx": 1}), (0, {})]


def test_progress_is_shown_from_start_to_end(bench: Bench) -> None:
    bench.record(2500)
    shown: list[Progress] = []
    bench.receiver.hook = lambda: bench.later(1)

    bench.delivery.run(progress=shown.append)

    assert [each.step for each in shown][:: len(shown) - 1] == ["sending", "sending sync event"]
    assert shown[0].of == 2500
    assert [each.events for each in shown] == sorted(each.events for each in shown)
    assert [each.bytes for each in shown] == sorted(each.bytes for each in shown)
    assert shown[-1].events == 2500
    assert any(each.seconds_left for each in shown)


def test_delivered_events_are_trimmed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.outbox.close()
    bench.outbox = opened(tmp_path, limits=OutboxLimits(keep_delivered_bytes=0))
    bench.record(100)

    bench.restarted().run()

    assert bench.outbox.state().kept_from == 101
    bench.client.close()
    bench.outbox.close()


# What the receiver says


def test_rejected_events_do_not_block_the_queue(bench: Bench) -> None:
    bench.record(10)
    bench.size.events = 5
    bench.receiver.rejects = {3: "invalid_event", 4: "invalid_event"}

    result = bench.run()

    assert (result.delivered, result.rejected, result.waiting, result.errors) == (8, 2, 0, {"rejected": 2})
    assert [letter.seq for letter in dead_letters(bench.outbox)] == [3, 4]
    assert bench.sync_events == [(8, {"rejected": 2})]


def test_a_restored_receiver_gets_lost_events_again(bench: Bench) -> None:
    bench.record(100)
    bench.run()
    stream = bench.receiver.streams[bench.outbox.stream]
    for seq in range(41, 101):
        del stream[seq]
    bench.record(5)

    result = bench.run()

    assert bench.receiver.stored == upto(105)
    assert (result.delivered, result.waiting) == (65, 0)


def test_a_requested_run_notices_a_restored_receiver(bench: Bench) -> None:
    bench.record(100)
    bench.run()
    bench.receiver.streams.clear()

    bench.run(probe=True)

    assert bench.receiver.stored == upto(100)


def test_a_forgetful_receiver_cannot_keep_a_run_going(bench: Bench) -> None:
    bench.record(20)
    bench.receiver.hook = bench.receiver.streams.clear
    bench.size.events = 5

    result = bench.run()

    assert len(bench.receiver.batches) < 100
    assert result.failure is None


def test_a_conflict_begins_a_new_stream_with_all_events(bench: Bench) -> None:
    bench.record(10)
    first = bench.outbox.stream
    bench.receiver.rejects = {2: "conflict", 7: "conflict"}

    result = bench.run()

    second = bench.outbox.stream
    assert second != first
    assert list(bench.receiver.streams) == [first, second]
    origins = [event["origin"] for event in bench.receiver.streams[second].values()]
    assert origins == [{"stream": first, "seq": 2}, {"stream": first, "seq": 7}]
    assert (result.waiting, result.errors) == (0, {"rejected": 2})


def test_at_most_one_new_stream_a_run(bench: Bench) -> None:
    bench.record(3)
    streams = []

    def note() -> None:
        if bench.outbox.stream not in streams:
            streams.append(bench.outbox.stream)
        bench.receiver.streams.clear()  # every stream looks like the first, so every one is rejected
        bench.receiver.rejects = {1: "conflict"}

    bench.receiver.hook = note

    bench.run()
    assert len(streams) == 2

    bench.run()
    assert len(streams) == 4 - 1


def test_a_conflict_is_answered_although_the_run_fails_later(bench: Bench) -> None:
    bench.record(10)
    bench.size.events = 5
    first = bench.outbox.stream
    bench.receiver.rejects = {2: "conflict"}
    bench.receiver.next(lambda request, proceed: proceed(), status(500))

    result = bench.run()

    assert result.failure is not None
    assert bench.outbox.stream != first
    assert result.waiting == 6


def test_a_conflict_is_answered_after_a_crash_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.record(3)
    first = bench.outbox.stream
    bench.receiver.rejects = {2: "conflict"}

    class PowerCut(BaseException):
        pass

    def cut(reason: str) -> None:
        raise PowerCut

    with monkeypatch.context() as broken:
        broken.setattr(bench.outbox, "start_new_stream", cut)
        with pytest.raises(PowerCut):
            bench.run()

    bench.outbox.close()
    bench.outbox = opened(bench.home)
    bench.restarted().run()

    assert bench.outbox.stream != first
    assert [event["origin"]["seq"] for event in bench.receiver.streams[bench.outbox.stream].values()] == [2]


def test_a_stream_that_begins_during_a_run_is_followed(bench: Bench) -> None:
    bench.record(10)
    bench.size.events = 2

    def swap() -> None:
        if len(bench.receiver.batches) == 2:
            bench.outbox.start_new_stream("a test")

    bench.receiver.hook = swap

    result = bench.run()

    assert result.waiting == 0
    assert list(bench.receiver.streams)[-1] == bench.outbox.stream


# What does not get through


@pytest.mark.parametrize("events_allowed", [1, 7, 100])
def test_413_halves_the_batch_until_it_fits(bench: Bench, events_allowed: int) -> None:
    bench.record(120)
    bench.receiver.always = larger_than(events_allowed, status(413))

    result = bench.run()

    assert (result.delivered, result.waiting, result.failure, result.errors) == (120, 0, None, {})
    assert dead_letters(bench.outbox) == []


@pytest.mark.parametrize("bad", [1, 5, 9])
def test_a_single_event_refused_with_413_becomes_a_dead_letter(bench: Bench, bad: int) -> None:
    bench.record(9)
    bench.receiver.always = containing(bad, status(413))

    result = bench.run()

    assert (result.delivered, result.rejected, result.waiting) == (8, 1, 0)
    assert result.errors == {"http_4xx": 1}
    assert [(letter.seq, letter.code) for letter in dead_letters(bench.outbox)] == [(bad, "too_large")]
    assert bench.receiver.stored == [seq for seq in upto(9) if seq != bad]


def test_a_time_out_halves_the_batch_and_the_run_goes_on(bench: Bench) -> None:
    bench.record(100)
    bench.receiver.always = larger_than(10, raising(httpx.ReadTimeout))

    result = bench.run()

    assert (result.delivered, result.waiting, result.failure, result.errors) == (100, 0, None, {})


def test_one_event_that_times_out_ends_the_run(bench: Bench) -> None:
    bench.record(100)
    bench.receiver.always = raising(httpx.ReadTimeout)

    result = bench.run()

    assert result.failure is not None
    assert result.errors == {"timeout": 1}
    sizes = [len(batch) for batch in bench.receiver.batches]
    assert (sizes[0], sizes[-1], result.waiting) == (100, 1, 100)
    assert all(after <= before // 2 for before, after in itertools.pairwise(sizes))

    bench.run()
    assert bench.receiver.batches[len(sizes) :] == [[1]]


def test_a_time_out_before_sending_does_not_change_the_size(bench: Bench) -> None:
    bench.record(100)

    class Nowhere(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectTimeout("made up", request=request)

    client = ReceiverClient(bench.client.identity, clock=bench.clock, transport=Nowhere())
    result = Delivery(
        outbox=bench.outbox, client=client, clock=bench.clock, batch_size=bench.size, link=lambda: True
    ).run()

    assert result.errors == {"timeout": 1}
    assert bench.size.events == 1000


def test_events_with_a_lost_answer_are_sent_again_and_stored_once(bench: Bench) -> None:
    bench.record(10)
    bench.receiver.next(too_slow)

    result = bench.run()

    assert bench.receiver.stored == upto(10)
    assert (result.delivered, result.duplicates, result.waiting, result.failure) == (0, 10, 0, None)
    assert bench.sync_events == [(10, {})]


def test_a_lost_answer_ends_the_run_and_the_next_one_finishes(bench: Bench) -> None:
    bench.record(10)
    bench.receiver.next(lost_answer)

    first = bench.run()
    second = bench.run()

    assert first.errors == {"connect": 1}
    assert isinstance(first.failure, Unreachable)
    assert first.waiting == 10
    assert (second.delivered + second.duplicates, second.waiting, second.failure) == (10, 0, None)
    assert bench.receiver.stored == upto(10)


def test_a_link_that_always_breaks_gets_smaller_batches_each_run(bench: Bench) -> None:
    bench.record(100)
    bench.receiver.always = larger_than(30, raising(httpx.WriteError))

    runs = [bench.run() for _ in range(3)]

    assert [run.waiting for run in runs] == [100, 100, 0]
    assert [run.errors for run in runs] == [{"connect": 1}, {"connect": 1}, {}]


@pytest.mark.parametrize(("seen", "events"), [(True, 1000), (False, 50)])
def test_a_link_that_is_gone_does_not_halve_the_batch_unless_it_was_never_seen(
    bench: Bench, seen: bool, events: int
) -> None:
    """Whether there is a link is only a hint: where it is always wrong, batches have to shrink all the same."""
    bench.record(100)
    bench.linked = seen

    def unplug(request: httpx.Request, proceed: Callable[[], httpx.Response]) -> httpx.Response:
        bench.linked = False
        raise httpx.ReadError("made up", request=request)

    bench.receiver.next(unplug)

    assert bench.run().offline
    assert bench.size.events == events


def test_a_run_continues_on_a_link_that_breaks_now_and_then(bench: Bench) -> None:
    bench.record(800)
    bench.size.events = 100
    bench.receiver.next(*[lambda request, proceed: proceed(), lost_answer] * 3)

    result = bench.run()

    assert (result.waiting, result.failure, result.errors) == (0, None, {})
    assert bench.receiver.stored == upto(800)


def test_a_link_that_breaks_twice_in_a_row_ends_the_run(bench: Bench) -> None:
    bench.record(800)
    bench.size.events = 100
    bench.receiver.next(lambda request, proceed: proceed(), lost_answer, lost_answer)

    result = bench.run()

    assert result.errors == {"connect": 1}
    assert result.waiting == 700


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (status(401, problem="unauthorized"), Refused, "auth"),
        (status(403, problem="forbidden"), Refused, "auth"),
        (status(503, retry_after="7"), Overloaded, "http_5xx"),
        (status(429), Overloaded, "http_4xx"),
        (portal, Unreachable, "portal"),
        (status(302), Unreachable, "portal"),
    ],
)
def test_anything_else_ends_the_run_and_keeps_everything(bench: Bench, fault: Fault, kind: type, code: str) -> None:
    bench.record(600)
    bench.size.events = 200
    bench.receiver.next(lambda request, proceed: proceed(), fault)

    result = bench.run()

    assert type(result.failure) is kind
    assert (result.delivered, result.waiting, result.errors) == (200, 400, {code: 1})
    assert dead_letters(bench.outbox) == []
    assert len(bench.receiver.batches) == 2

    bench.receiver.always = None
    assert bench.run().waiting == 0
    assert bench.receiver.stored == upto(600)


def test_a_sync_event_is_tried_after_a_failed_batch(bench: Bench) -> None:
    bench.record(10)
    bench.receiver.always = status(502)

    bench.run()

    assert bench.sync_events == [(0, {"http_5xx": 1})]


@pytest.mark.parametrize(
    "fault", [status(401, problem="unauthorized"), status(503, retry_after="60"), status(429, retry_after="60")]
)
def test_no_sync_event_is_tried_after_a_refusal_or_retry_after(bench: Bench, fault: Fault) -> None:
    bench.record(10)
    bench.receiver.next(fault)

    bench.run(probe=True)

    assert bench.receiver.paths == ["/api/events"]
    assert bench.outbox.state().sync_events_waiting == 1


def test_sync_events_respect_retry_after_although_batches_pass(bench: Bench) -> None:
    bench.record(10)
    bench.receiver.next(status(503, retry_after="60"))
    bench.run()

    bench.run()
    assert bench.sync_events == []

    bench.later(60)
    bench.run()
    assert bench.sync_events == [(0, {"http_5xx": 1}), (10, {})]


def test_failing_sync_events_do_not_fail_the_run(bench: Bench) -> None:
    bench.record(10)
    bench.receiver.sync_event_faults.append(status(500))

    result = bench.run()

    assert (result.failure, result.errors, result.waiting) == (None, {}, 0)
    assert bench.outbox.state().sync_events_waiting == 1


def test_a_single_declined_event_becomes_a_dead_letter(bench: Bench) -> None:
    bench.record(9)
    bench.receiver.always = containing(4, status(400, problem="invalid_batch"))

    result = bench.run()

    assert (result.delivered, result.rejected, result.waiting, result.failure) == (8, 1, 0, None)
    assert [(letter.seq, letter.code) for letter in dead_letters(bench.outbox)] == [(4, "declined")]


def test_a_receiver_that_declines_everything_makes_no_dead_letters(bench: Bench) -> None:
    bench.record(9)
    bench.receiver.always = status(400, problem="invalid_batch")

    result = bench.run()

    assert result.errors == {"http_4xx": 1}
    assert (result.rejected, result.waiting) == (0, 9)
    assert dead_letters(bench.outbox) == []


# Without a link


def test_a_failed_run_without_a_link_is_offline(bench: Bench) -> None:
    bench.record(10)
    bench.linked = False
    bench.receiver.always = raising(httpx.ConnectError)

    result = bench.run()

    assert (result.offline, result.failure, result.errors, result.waiting) == (True, None, {}, 10)
    assert bench.outbox.state().sync_events_waiting == 0

    bench.linked, bench.receiver.always = True, None
    bench.run()
    assert bench.sync_events == [(10, {})]


def test_pending_events_are_tried_without_a_visible_link(bench: Bench) -> None:
    bench.record(10)
    bench.linked = False

    result = bench.run()

    assert (result.delivered, result.offline) == (10, False)
    assert bench.sync_events == [(10, {})]


def test_a_link_lost_during_a_run_means_offline(bench: Bench) -> None:
    bench.record(400)
    bench.size.events = 200

    def unplug(request: httpx.Request, proceed: Callable[[], httpx.Response]) -> httpx.Response:
        bench.linked = False
        raise httpx.ReadError("made up", request=request)

    bench.receiver.next(lambda request, proceed: proceed(), unplug, unplug)

    result = bench.run()

    assert (result.offline, result.failure, result.delivered, result.waiting) == (True, None, 200, 200)


def test_nothing_is_tried_without_link_and_events(bench: Bench) -> None:
    bench.linked = False

    assert bench.run().offline
    assert bench.receiver.requests == []


def test_a_refusal_is_a_failure_without_a_visible_link_too(bench: Bench) -> None:
    bench.record(1)
    bench.linked = False
    bench.receiver.next(status(401, problem="unauthorized"))

    assert isinstance(bench.run().failure, Refused)


# Stopping, memory, and what else can happen


def test_a_stop_ends_the_run_after_the_batch_in_flight(bench: Bench) -> None:
    bench.record(1000)
    bench.size.events = 100

    def stop() -> None:
        bench.stopping = True

    bench.receiver.hook = stop

    result = bench.run()

    assert len(bench.receiver.batches) == 1
    assert (result.delivered, result.failure) == (result.delivered, None)
    assert result.waiting == 1000 - result.delivered
    assert bench.outbox.state().delivered == result.delivered == len(bench.receiver.stored)


def test_an_outbox_that_fails_ends_the_run_with_its_own_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.record(10)

    def broken(*_: Any, **__: Any) -> int:
        raise StoreUnusable("the disk is gone")

    monkeypatch.setattr(bench.outbox, "settle", broken)

    with pytest.raises(StoreUnusable):
        bench.run()


def test_at_most_two_batches_are_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.record(1000)
    bench.size.events = 10
    packed: list[int] = []
    most = 0
    real = batches.Packer.pack

    def noted(self: batches.Packer, after: int, **limits: Any) -> Any:
        batch = real(self, after, **limits)
        packed.append(after)
        return batch

    def count() -> None:
        nonlocal most
        most = max(most, len(packed) - len(bench.receiver.batches))

    monkeypatch.setattr(batches.Packer, "pack", noted)
    bench.receiver.hook = count

    bench.run()

    assert len(packed) > 5
    assert most <= 2


def test_incompressible_events_keep_to_the_limit_of_a_body(bench: Bench) -> None:
    chance = random.Random(1)
    bench.outbox.append(
        [
            NewEvent.create(
                "note.taken",
                learner_id="s-1",
                object_id="o",
                data={"pad": chance.randbytes(30 * KIB).hex()},
                stamp=STAMP,
            )
            for _ in range(60)
        ]
    )
    bench.size.bytes = 8 * MIB

    result = bench.run()

    assert result.waiting == 0
    assert len(bench.receiver.batches) > 1


def test_the_log_has_no_token_and_no_learner(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bench.record(20)
    bench.receiver.rejects = {3: "conflict"}
    bench.receiver.next(containing(1, status(413)), status(400, problem="invalid_batch"))
    for _ in range(4):
        bench.run()

    assert TOKEN not in caplog.text
    assert "s-17" not in caplog.text
    assert "seconds_watched" not in caplog.text
