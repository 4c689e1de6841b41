"""Events: stored as sent and shown again; what is missing or rejected is listed, and lists are bounded."""

import json
from random import Random
from typing import Any

import pytest

from pisync_common.times import format_ms
from pisync_receiver.domain.records import MISSING_RANGES, REJECTIONS, EventFilter
from pisync_receiver.domain.submissions import EventBatch
from tests.support.blocking import BlockingStore, counts, data_of, send, stored, stored_seqs, stream_row, streams
from tests.support.submissions import DAY, MINUTE, NOON, batch, event, invalid, stamp


class EventConformance:
    def test_every_field_of_an_event_comes_back(self, store: BlockingStore) -> None:
        sent = event(
            1,
            type="note.taken",
            learner_id="s-1",
            object_id="https://example.org/x?y=ü",
            occurred_at="2026-11-23T09:12:09.1+01:00",
            boot_id="boot-1",
            boottime_ms=99_001,
            clock_synced=True,
            recorded_at=format_ms(NOON),
            recorded_ms=NOON,
            data='{"a": [1, 2.50], "b": "ü"}',
        )
        send(store, batch([sent], received_ms=NOON + 60_000))
        (row,) = stored(store)
        assert (row.device_id, row.stream, row.seq, row.type) == ("pibook-1", "stream-1", 1, "note.taken")
        assert (row.learner_id, row.object_id) == ("s-1", "https://example.org/x?y=ü")
        assert (row.occurred_at, row.recorded_at) == (sent.occurred_at, format_ms(NOON))
        assert (row.boot_id, row.boottime_ms, row.clock_synced) == ("boot-1", 99_001, True)
        assert data_of(row) == '{"a": [1, 2.50], "b": "ü"}'
        assert (row.received_at, row.quality) == (format_ms(NOON + 60_000), "synced")
        assert row.estimated_at == format_ms(sent.occurred_ms)

    def test_optional_fields_may_be_missing(self, store: BlockingStore) -> None:
        send(store, batch([event(1, learner_id=None, object_id=None)]))
        (row,) = stored(store)
        assert (row.learner_id, row.object_id, row.boot_id, row.boottime_ms, data_of(row)) == (None,) * 5
        assert row.clock_synced is False

    def test_many_gaps_fill_in_any_order(self, store: BlockingStore) -> None:
        """More gaps than a batch fetches: the watermark, the missing ranges and the counts stay exact."""
        last = 1201
        send(store, batch(range(1, last + 1, 2)))
        missing = list(range(2, last, 2))
        Random(7).shuffle(missing)
        while missing:
            sent, missing = missing[:70], missing[70:]
            receipt = send(store, batch(sent))
            assert receipt.stored == len(sent)
            assert receipt.watermark == min(missing, default=last + 1) - 1
            assert receipt.missing == tuple((seq, seq) for seq in sorted(missing)[:100])
            row = stream_row(store)
            assert row.missing == [(seq, seq) for seq in sorted(missing)]
            assert row.missing_count == len(missing)

    def test_largest_seq_is_accepted(self, store: BlockingStore) -> None:
        receipt = send(store, batch([2**53 - 1]))
        assert (receipt.watermark, receipt.missing) == (0, ((1, 2**53 - 2),))

    @pytest.mark.parametrize("body", ["", "null", "[1]", "{", '"\\ud800"', '{"data": NaN}', "[" * 5000])
    def test_body_that_is_not_an_event_is_kept(self, store: BlockingStore, body: str) -> None:
        for _ in range(2):
            assert counts(send(store, batch([invalid(1, body=body)]))) == (0, 0, [(1, "invalid_event")], 1)
        assert [row.body for row in store.rejected("pibook-1").rows] == [body]

    def test_completeness_lists_stored_missing_and_rejected(self, store: BlockingStore) -> None:
        send(store, batch([1, 2, 5, invalid(3)], received_ms=NOON))
        send(store, batch([8], received_ms=NOON + 5))
        send(store, batch([1], stream="stream-2"))
        assert [row.stream for row in streams(store)] == ["stream-1", "stream-2"]
        row = stream_row(store)
        assert (row.watermark, row.highest, row.missing, row.missing_count) == (3, 8, [(4, 4), (6, 7)], 3)
        assert (row.stored, row.carried, row.rejected, row.conflicts) == (4, 0, 1, 0)
        assert [(rejection.seq, rejection.code) for rejection in row.rejections] == [(3, "invalid_event")]
        assert (row.first_received_at, row.last_received_at) == (format_ms(NOON), format_ms(NOON + 5))
        assert not row.complete
        assert stream_row(store, stream="stream-2").complete

    def test_completeness_lists_are_bounded_and_counts_are_exact(self, store: BlockingStore) -> None:
        for first in range(1, 2401, 800):
            bad = [invalid(seq) for seq in range(first, first + 800, 2)]
            send(store, batch(bad))
        row = stream_row(store)
        assert (len(row.missing), row.missing_count) == (MISSING_RANGES, 1199)
        assert (len(row.rejections), row.rejected) == (REJECTIONS, 1200)
        assert row.rejections[0].seq == 2399

    def test_refused_submission_fails_alone(self, store: BlockingStore) -> None:
        poison: Any = event(1, learner_id="\ud800", content=b"x")
        outcomes = store.write([batch([1]), batch([poison], stream="bad"), batch([2]), batch([2**70], stream="big")])
        assert [counts(outcomes[index]) for index in (0, 2)] == [(1, 0, [], 1), (1, 0, [], 2)]
        assert isinstance(outcomes[1], Exception)
        assert isinstance(outcomes[3], Exception)
        assert stored_seqs(store) == [1, 2]
        assert [row.stream for row in streams(store)] == ["stream-1"]
        assert counts(send(store, batch([1, 3]))) == (1, 1, [], 3)

    def test_empty_group_has_no_outcomes(self, store: BlockingStore) -> None:
        assert store.write([]) == []

    def test_conflict_keeps_both_versions(self, store: BlockingStore) -> None:
        send(store, batch([1, 2]))
        receipt = send(store, batch([event(2, note="the other card"), 3], received_ms=NOON + 7))
        assert counts(receipt) == (1, 0, [(2, "conflict")], 3)
        assert [data_of(row) for row in stored(store)] == [None, None, None]
        (kept,) = store.rejected("pibook-1").rows
        assert (kept.seq, kept.code, kept.received_at) == (2, "conflict", format_ms(NOON + 7))
        body = json.loads(kept.body)
        assert body["data"] == {"note": "the other card"}
        assert (body["seq"], body["type"], body["learner_id"]) == (2, "video.watched", "s-17")

    def test_conflict_flags_the_device(self, store: BlockingStore) -> None:
        send(store, batch([1]))
        device = store.device("pibook-1")
        assert (device.cloned_since, device.conflicts) == (None, 0)
        send(store, batch([event(1, note="x")], received_ms=NOON + 7))
        send(store, batch([event(1, note="y")], received_ms=NOON + 9))
        device = store.device("pibook-1")
        assert (device.cloned_since, device.conflicts) == (format_ms(NOON + 7), 2)
        assert stream_row(store).conflicts == 2

    @pytest.mark.parametrize("learner_id", ["عائشة", "अमित", "2024/017", "mailto:a@b.example", "a|b c", "Ω" * 256])
    def test_learner_in_any_script_is_found(self, store: BlockingStore, learner_id: str) -> None:
        send(store, batch([event(1, learner_id=learner_id), 2]))
        (row,) = store.events(EventFilter(learner_id=learner_id)).rows
        assert (row.seq, row.learner_id) == (1, learner_id)

    def test_a_later_batch_improves_what_was_estimated(self, store: BlockingStore) -> None:
        """The clock was synchronised in mid-session, and the session was delivered in a later boot."""

        def session(seqs: range, *, synced: bool) -> EventBatch:
            began = NOON if synced else 1_500_000_000_000
            events = [
                event(seq, occurred_ms=began + 1000 * seq, boot=("boot-1", 1000 * seq), clock_synced=synced)
                for seq in seqs
            ]
            return batch(events, sent=stamp("boot-2", MINUTE), received_ms=NOON + DAY)

        send(store, session(range(1, 1501), synced=False))
        assert {row.quality for row in stored(store)} == {"estimated"}
        send(store, session(range(1501, 1502), synced=True))
        send(store, session(range(1502, 1503), synced=True))

        rows = sorted(stored(store), key=lambda row: row.seq)
        assert [row.estimated_at for row in rows] == [format_ms(NOON + 1000 * seq) for seq in range(1, 1503)]
        assert [row.quality for row in rows] == ["corrected"] * 1500 + ["synced"] * 2
        assert [row.boot_id for row in rows] == ["boot-1"] * 1502
