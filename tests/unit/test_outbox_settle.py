"""Receipts, dead letters, trimming: on a real file."""

import json
from pathlib import Path

import pytest

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.models import OutboxLimits
from tests.support.outboxes import (
    Faults,
    bodies,
    dead_letters,
    deliver,
    event,
    event_text,
    events,
    full_disk,
    opened,
    receipt,
    seqs,
)


def test_a_receipt_moves_delivered_and_watermark(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(10))
    assert outbox.settle(receipt(outbox, 4), [1, 2, 3, 4]) == 4
    outbox.close()
    outbox = opened(tmp_path)
    state = outbox.state()
    assert (state.delivered, state.watermark, state.waiting, state.last_seq) == (4, 4, 6, 10)
    outbox.close()


def test_a_receipt_of_another_stream_changes_nothing(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(3))
    other = receipt(outbox, 3, stream="other", rejected=[(2, "invalid_event")])
    assert outbox.settle(other, [1, 2, 3]) == 0
    assert dead_letters(outbox) == []
    outbox.close()


def test_a_restored_receiver_gets_back_what_is_held(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(30))
    deliver(outbox, 20)
    assert outbox.settle(receipt(outbox, 7), []) == 7
    assert (outbox.state().waiting, outbox.state().watermark) == (23, 7)
    outbox.close()


def test_a_repeated_request_for_the_same_event_is_honoured_once_a_run(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(20))
    deliver(outbox, 20)
    outbox.begin_run()
    assert outbox.settle(receipt(outbox, 7), []) == 7
    assert outbox.settle(receipt(outbox, 7), list(range(8, 21))) == 20
    outbox.begin_run()
    assert outbox.settle(receipt(outbox, 7), []) == 7
    outbox.close()


def test_a_rejected_event_becomes_a_dead_letter_once(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(4))
    body = bodies(outbox)[1]
    for _ in range(2):
        outbox.settle(receipt(outbox, 4, rejected=[(2, "invalid_event")]), [1, 2, 3, 4])
    (letter,) = dead_letters(outbox)
    assert (letter.seq, letter.code, letter.detail, letter.body) == (2, "invalid_event", "because", body)
    assert outbox.state().dead == 1
    outbox.close()


def test_dead_letters_outlive_the_event(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(3))
    outbox.settle(receipt(outbox, 3, rejected=[(2, "invalid_event")]), [1, 2, 3])
    outbox._trim(0)
    assert seqs(outbox) == []
    assert json.loads(event_text(outbox, 2) or "")["data"] == {"n": 2}
    assert event_text(outbox, 1) is None
    outbox.close()


def test_requeue_records_the_event_once_with_its_origin(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(3))
    outbox.settle(receipt(outbox, 3, rejected=[(2, "invalid_event")]), [1, 2, 3])
    assert outbox.requeue(2) == 4
    assert outbox.requeue(2) == 4
    new = json.loads(event_text(outbox, 4) or "")
    assert (new["seq"], new["origin"], new["data"]) == (4, {"stream": outbox.stream, "seq": 2}, {"n": 2})
    assert [letter.requeued_as for letter in dead_letters(outbox)] == [4]
    assert (outbox.state().dead, outbox.state().waiting) == (0, 1)
    assert outbox.append(events(1)) == [5]
    outbox.close()


def test_a_late_rejection_of_a_requeued_event_does_not_bring_it_back(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(2))
    rejection = receipt(outbox, 2, rejected=[(2, "invalid_event")])
    outbox.settle(rejection, [1, 2])
    outbox.requeue(2)
    outbox.settle(rejection, [1, 2])
    assert [(letter.seq, letter.requeued_as) for letter in dead_letters(outbox)] == [(2, 3)]
    outbox.close()


def test_requeue_finds_the_letters_of_two_streams_under_one_number(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(2))
    outbox.move_to_dead_letters(2, "too_large", "413")
    outbox.start_new_stream("a test")
    outbox.append([event(7), event(8)])
    outbox.move_to_dead_letters(2, "too_large", "413")
    assert [outbox.requeue(2), outbox.requeue(2)] == [4, 5]
    found = [json.loads(body)["data"]["n"] for body in bodies(outbox, 3)]
    assert found == [7, 2]
    assert all(letter.requeued_as for letter in dead_letters(outbox))
    outbox.close()


def test_requeue_of_an_unknown_seq_is_rejected(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(1))
    with pytest.raises(InvalidEvent, match="no dead letter 1"):
        outbox.requeue(1)
    outbox.close()


def test_a_dead_letter_does_not_block_later_events(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(3))
    deliver(outbox, 1)
    outbox.move_to_dead_letters(2, "too_large", "the gateway takes no 64 KiB")
    outbox.move_to_dead_letters(2, "too_large", "again")
    assert outbox.delivered == 2
    # The receiver lacks 2 for ever; that moves nothing back.
    assert outbox.settle(receipt(outbox, 1, missing=[(2, 2)]), [3]) == 3
    assert [(letter.seq, letter.code) for letter in dead_letters(outbox)] == [(2, "too_large")]
    outbox.close()


def test_trim_keeps_the_newest_bytes_and_pending_events(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=OutboxLimits(keep_delivered_bytes=10_000))
    outbox.append(events(100, size=1000))
    size = len(bodies(outbox)[50].encode())
    assert outbox.trim() == 0
    deliver(outbox, 60)
    gone = outbox.trim()
    kept = seqs(outbox)
    assert kept == list(range(gone + 1, 101))
    assert 10_000 <= (60 - gone) * size < 10_000 + 2 * size
    assert outbox.trim() == 0
    outbox.close()


def test_trimming_in_pieces_keeps_the_right_events(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=OutboxLimits(keep_delivered_bytes=0))
    outbox.append(events(500, size=4000))
    deliver(outbox, 499)
    assert outbox.trim() == 499
    assert seqs(outbox) == [500]
    assert outbox.state().kept_from == 500
    outbox.close()


def test_trimming_reads_few_rows(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect, limits=OutboxLimits(keep_delivered_bytes=100_000))
    for _ in range(10):
        outbox.append(events(1000))
    deliver(outbox, 10_000)
    statements: list[str] = []
    faults.fault = statements.append
    outbox.trim()
    assert 0 < len(statements) < 400
    outbox.close()


def test_delivery_continues_from_memory_on_a_completely_full_disk(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)
    outbox.append(events(10))

    def full(sql: str) -> None:
        if sql.startswith(("UPDATE", "INSERT", "DELETE")):
            raise full_disk()

    faults.fault = full
    assert outbox.settle(receipt(outbox, 4, rejected=[(2, "invalid_event")]), [1, 2, 3, 4]) == 4
    assert outbox.settle(receipt(outbox, 6), [5, 6]) == 6
    assert outbox.state().delivered == 6
    faults.fault = lambda sql: None
    outbox.settle(receipt(outbox, 7), [7])
    outbox.close()
    outbox = opened(tmp_path)
    assert (outbox.delivered, [letter.seq for letter in dead_letters(outbox)]) == (7, [2])
    outbox.close()


def test_events_are_sent_again_after_a_crash_with_unsaved_pointers(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)
    outbox.append(events(4))

    def full(sql: str) -> None:
        if sql.startswith("UPDATE"):
            raise full_disk()

    faults.fault = full
    assert outbox.settle(receipt(outbox, 4), [1, 2, 3, 4]) == 4
    outbox.close()
    outbox = opened(tmp_path)
    assert outbox.delivered == 0
    outbox.close()


def test_a_new_stream_has_pending_and_conflicting_events(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2), event(3), event(4), event(5, id="five")])
    old = outbox.stream
    answer = receipt(outbox, 4, rejected=[(2, "invalid_event"), (3, "conflict"), (4, "conflict")])
    outbox.settle(answer, [1, 2, 3, 4])
    outbox.set_note("last_run", "x")
    outbox.start_new_stream("conflict")
    assert outbox.stream != old
    found = [json.loads(body) for body in bodies(outbox)]
    assert [(body["seq"], body["data"]["n"], body["origin"]) for body in found] == [
        (1, 3, {"stream": old, "seq": 3}),
        (2, 4, {"stream": old, "seq": 4}),
        (3, 5, {"stream": old, "seq": 5}),
    ]
    assert [(letter.stream, letter.seq) for letter in dead_letters(outbox)] == [(old, 2)]
    assert outbox.append([event(5, id="five")]) == [3]
    assert outbox.note("last_run") == "x"
    assert outbox.next_sync_event() is None
    (aside,) = outbox.state().salvaged
    assert (aside.reason, aside.transferred) == ("conflict", 3)
    assert (tmp_path / aside.file).exists()
    assert "superseded" in aside.file
    # The dead letter of the old stream can still be queued again.
    assert outbox.requeue(2) == 4
    assert json.loads(event_text(outbox, 4) or "")["origin"] == {"stream": old, "seq": 2}
    outbox.close()


def test_a_dead_letter_of_this_stream_comes_before_one_of_an_older_one(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(2))
    outbox.settle(receipt(outbox, 2, rejected=[(1, "invalid_event")]), [1, 2])
    outbox.start_new_stream("conflict")
    outbox.append(events(1, first=50))
    outbox.settle(receipt(outbox, 1, rejected=[(1, "invalid_event")]), [1])
    seq = outbox.requeue(1)
    assert json.loads(event_text(outbox, seq) or "")["data"] == {"n": 50}
    outbox.close()
