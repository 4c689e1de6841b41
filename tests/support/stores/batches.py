"""Batches: (device, stream, seq) exactly once, and receipts that are true."""

import json
from typing import Any

import pytest

from pisync_common.times import format_ms
from pisync_receiver.store import MISSING_RANGES, REJECTIONS, Store
from tests.support.stores.made import (
    NOON,
    batch,
    counts,
    event,
    invalid,
    send,
    stored,
    stored_seqs,
    stream_row,
)


class BatchConformance:
    def test_a_batch_is_stored_and_the_receipt_echoes_it(self, store: Store) -> None:
        receipt = send(store, batch([1, 2, 3]))
        assert (receipt.device_id, receipt.stream) == ("pibook-1", "stream-1")
        assert counts(receipt) == (3, 0, [], 3)
        assert receipt.server_time == format_ms(NOON + 3_600_000)
        assert receipt.missing == ()
        assert stored_seqs(store) == [1, 2, 3]

    def test_every_field_of_an_event_comes_back(self, store: Store) -> None:
        sent = event(
            1,
            type="note.taken",
            learner_id="s-1",
            object_id="https://example.org/x?y=ü",
            occurred_at="2026-11-23T09:12:09.1+01:00",
            boot_id="boot-1",
            boottime_ms=99_001,
            clock_synced=True,
            data='{"a": [1, 2.50], "b": "ü"}',
        )
        send(store, batch([sent], received_ms=NOON + 60_000))
        (row,) = stored(store)
        assert (row.device_id, row.stream, row.seq, row.type) == ("pibook-1", "stream-1", 1, "note.taken")
        assert (row.learner_id, row.object_id) == ("s-1", "https://example.org/x?y=ü")
        assert row.occurred_at == "2026-11-23T09:12:09.1+01:00"
        assert (row.boot_id, row.boottime_ms, row.clock_synced) == ("boot-1", 99_001, True)
        assert row.data == '{"a": [1, 2.50], "b": "ü"}'
        assert (row.received_ms, row.best_ms, row.quality) == (NOON + 60_000, sent.occurred_ms, "synced")

    def test_an_event_may_leave_out_what_is_optional(self, store: Store) -> None:
        send(store, batch([event(1, learner_id=None, object_id=None)]))
        (row,) = stored(store)
        assert (row.learner_id, row.object_id, row.boot_id, row.boottime_ms, row.data) == (None,) * 5
        assert row.clock_synced is False

    def test_sending_again_stores_nothing_and_says_so(self, store: Store) -> None:
        send(store, batch(range(1, 11)))
        assert counts(send(store, batch(range(1, 11)))) == (0, 10, [], 10)
        assert counts(send(store, batch(range(6, 16)))) == (5, 5, [], 15)
        assert stored_seqs(store) == list(range(1, 16))

    def test_two_batches_of_one_group_see_each_other(self, store: Store) -> None:
        outcomes = store.write([batch([1, 2]), batch([2, 3]), batch([5]), batch([])])
        assert [counts(receipt) for receipt in outcomes] == [  # type: ignore[arg-type]
            (2, 0, [], 2),
            (1, 1, [], 3),
            (1, 0, [], 3),
            (0, 0, [], 3),
        ]

    def test_an_event_twice_in_one_batch_is_stored_once(self, store: Store) -> None:
        assert counts(send(store, batch([1, 2, 2, 1]))) == (2, 2, [], 2)
        assert stored_seqs(store) == [1, 2]

    def test_the_order_inside_a_batch_does_not_matter(self, store: Store) -> None:
        assert counts(send(store, batch([3, 1, 2]))) == (3, 0, [], 3)

    def test_batches_out_of_order_leave_gaps_that_fill(self, store: Store) -> None:
        first = send(store, batch([5, 6]))
        assert (first.watermark, first.missing) == (0, ((1, 4),))
        second = send(store, batch([9, 2]))
        assert (second.watermark, second.missing) == (0, ((1, 1), (3, 4), (7, 8)))
        assert send(store, batch([1])).watermark == 2
        assert send(store, batch([3, 4])).watermark == 6
        last = send(store, batch([7, 8]))
        assert (last.watermark, last.missing) == (9, ())

    def test_a_hole_inside_one_batch_is_missing(self, store: Store) -> None:
        receipt = send(store, batch([1, 2, 5, 6, 9]))
        assert (receipt.stored, receipt.watermark, receipt.missing) == (5, 2, ((3, 4), (7, 8)))

    def test_a_receipt_names_a_limited_number_of_ranges(self, store: Store) -> None:
        receipt = send(store, batch(range(2, 1002, 2)))
        assert len(receipt.missing) == 100
        assert receipt.missing[:2] == ((1, 1), (3, 3))

    def test_the_largest_seq_is_taken(self, store: Store) -> None:
        receipt = send(store, batch([2**53 - 1]))
        assert (receipt.watermark, receipt.missing) == (0, ((1, 2**53 - 2),))

    def test_streams_and_devices_do_not_mix(self, store: Store) -> None:
        send(store, batch([1, 2]))
        assert counts(send(store, batch([1], stream="stream-2"))) == (1, 0, [], 1)
        assert counts(send(store, batch([1], device="pibook-2"))) == (1, 0, [], 1)
        assert stored_seqs(store) == [1, 2]

    def test_an_empty_batch_asks_for_the_watermark(self, store: Store) -> None:
        assert counts(send(store, batch())) == (0, 0, [], 0)
        assert store.completeness("pibook-1") == []
        send(store, batch([1, 2, 4]))
        receipt = send(store, batch(received_ms=NOON + 9_000_000))
        assert (receipt.watermark, receipt.missing) == (2, ((3, 3),))
        device = store.device("pibook-1")
        assert device is not None
        assert device.last_contact_ms == NOON + 9_000_000

    def test_an_invalid_event_is_accounted_for_and_kept(self, store: Store) -> None:
        receipt = send(store, batch([1, 3], bad=[invalid(2)]))
        assert counts(receipt) == (2, 0, [(2, "invalid_event")], 3)
        (row,) = store.rejected("pibook-1").rows
        assert (row.stream, row.seq, row.code) == ("stream-1", 2, "invalid_event")
        assert json.loads(row.body) == {"seq": 2, "type": "nonsense"}
        assert stored_seqs(store) == [1, 3]

    def test_an_invalid_event_sent_again_is_rejected_again_and_kept_once(self, store: Store) -> None:
        first = send(store, batch([1], bad=[invalid(2, detail="the first detail")]))
        again = send(store, batch([1], bad=[invalid(2, detail="another detail")]))
        assert again.rejected == first.rejected
        assert again.duplicates == 1
        assert len(store.rejected("pibook-1").rows) == 1
        assert stream_row(store).rejected == 1

    def test_what_was_rejected_stays_so_when_the_rules_change(self, store: Store) -> None:
        body = json.dumps({"seq": 1, "type": "video.watched", "occurred_at": format_ms(NOON + 1), "learner_id": "s-17"})
        send(store, batch(bad=[invalid(1, body=body)]))
        receipt = send(store, batch([event(1, object_id=None)]))
        assert counts(receipt) == (0, 0, [(1, "invalid_event")], 1)
        assert stream_row(store).conflicts == 0
        assert stored(store) == []

    def test_what_was_stored_stays_so_when_the_rules_change(self, store: Store) -> None:
        send(store, batch([event(1, object_id=None)]))
        body = json.dumps({"seq": 1, "type": "video.watched", "occurred_at": format_ms(NOON + 1), "learner_id": "s-17"})
        assert counts(send(store, batch(bad=[invalid(1, body=body)]))) == (0, 1, [], 1)

    @pytest.mark.parametrize("body", ["", "null", "[1]", "{", '"\\ud800"', '{"data": NaN}', "[" * 5000])
    def test_a_body_that_is_no_event_is_kept_all_the_same(self, store: Store, body: str) -> None:
        for _ in range(2):
            assert counts(send(store, batch(bad=[invalid(1, body=body)]))) == (0, 0, [(1, "invalid_event")], 1)
        assert [row.body for row in store.rejected("pibook-1").rows] == [body]

    def test_completeness_tells_what_is_there_and_what_is_not(self, store: Store) -> None:
        send(store, batch([1, 2, 5], bad=[invalid(3)], received_ms=NOON))
        send(store, batch([8], received_ms=NOON + 5))
        send(store, batch([1], stream="stream-2"))
        assert [row.stream for row in store.completeness("pibook-1")] == ["stream-1", "stream-2"]
        row = stream_row(store)
        assert (row.watermark, row.highest, row.missing, row.missing_count) == (3, 8, ((4, 4), (6, 7)), 3)
        assert (row.stored, row.carried, row.rejected, row.conflicts) == (4, 0, 1, 0)
        assert [(rejection.seq, rejection.code) for rejection in row.rejections] == [(3, "invalid_event")]
        assert (row.first_ms, row.last_ms) == (NOON, NOON + 5)

    def test_completeness_is_bounded_and_its_counts_are_not(self, store: Store) -> None:
        for first in range(1, 2401, 800):
            bad = [invalid(seq) for seq in range(first, first + 800, 2)]
            send(store, batch(bad=bad))
        row = stream_row(store)
        assert (len(row.missing), row.missing_count) == (MISSING_RANGES, 1199)
        assert (len(row.rejections), row.rejected) == (REJECTIONS, 1200)
        assert row.rejections[0].seq == 2399

    def test_a_poisonous_submission_does_not_spoil_its_neighbours(self, store: Store) -> None:
        poison: Any = event(1, learner_id="\ud800")
        outcomes = store.write([batch([1]), batch([poison], stream="bad"), batch([2]), batch([2**70], stream="big")])
        assert [counts(outcomes[index]) for index in (0, 2)] == [(1, 0, [], 1), (1, 0, [], 2)]  # type: ignore[arg-type]
        assert isinstance(outcomes[1], Exception)
        assert isinstance(outcomes[3], Exception)
        assert stored_seqs(store) == [1, 2]
        assert [row.stream for row in store.completeness("pibook-1")] == ["stream-1"]
        assert counts(send(store, batch([1, 3]))) == (1, 1, [], 3)

    def test_nothing_to_write_is_nothing(self, store: Store) -> None:
        assert store.write([]) == []
