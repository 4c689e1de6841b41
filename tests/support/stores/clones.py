"""Cloned cards: two devices with one identity. Nothing is merged in silence and nothing is lost."""

import json
from typing import Any

import pytest

from pisync_common.models import Stamp
from pisync_receiver.store import IncomingEvent, Store
from tests.support.stores.made import NOON, batch, counts, event, invalid, send, stored, stored_seqs, stream_row

MINUTE = 60_000
HOUR = 60 * MINUTE


class CloneConformance:
    def test_other_content_under_a_seq_is_a_conflict_and_both_are_kept(self, store: Store) -> None:
        send(store, batch([1, 2]))
        receipt = send(store, batch([event(2, note="the other card"), 3], received_ms=NOON + 7))
        assert counts(receipt) == (1, 0, [(2, "conflict")], 3)
        assert [row.data for row in stored(store)] == [None, None, None]
        (kept,) = store.rejected("pibook-1").rows
        assert (kept.seq, kept.code, kept.received_ms) == (2, "conflict", NOON + 7)
        body = json.loads(kept.body)
        assert body["data"] == {"note": "the other card"}
        assert (body["seq"], body["type"], body["learner_id"]) == (2, "video.watched", "s-17")

    def test_the_device_is_flagged(self, store: Store) -> None:
        send(store, batch([1]))
        assert self._flag(store) == (None, 0)
        send(store, batch([event(1, note="x")], received_ms=NOON + 7))
        send(store, batch([event(1, note="y")], received_ms=NOON + 9))
        assert self._flag(store) == (NOON + 7, 2)
        assert stream_row(store).conflicts == 2

    def test_a_conflict_sent_again_is_answered_the_same_and_kept_once(self, store: Store) -> None:
        send(store, batch([1, 2]))
        first = send(store, batch([event(2, note="x")]))
        again = send(store, batch([event(2, note="x")]))
        assert again == first
        assert len(store.rejected("pibook-1").rows) == 1
        assert self._flag(store)[1] == 1

    def test_the_first_version_is_still_a_duplicate(self, store: Store) -> None:
        send(store, batch([1]))
        send(store, batch([event(1, note="x")]))
        assert counts(send(store, batch([1]))) == (0, 1, [], 1)

    def test_two_versions_in_one_batch(self, store: Store) -> None:
        receipt = send(store, batch([1, event(1, note="x"), event(1, note="x"), 1]))
        assert counts(receipt) == (1, 1, [(1, "conflict"), (1, "conflict")], 1)
        assert len(store.rejected("pibook-1").rows) == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"type": "note.taken"},
            {"learner_id": "s-18"},
            {"learner_id": None},
            {"object_id": "other"},
            {"occurred_ms": NOON + 2},
            {"boot_id": "boot-2"},
            {"boottime_ms": 5},
            {"data": '{"a": true}'},
            {"data": '{"a": 1.5}'},
            {"data": '{"a": "1"}'},
            {"data": "{}"},
            {"data": None},
        ],
    )
    def test_what_makes_other_content(self, store: Store, other: dict[str, Any]) -> None:
        send(store, batch([event(1, data='{"a": 1}')]))
        assert counts(send(store, batch([event(1, **{"data": '{"a": 1}'} | other)])))[2] == [(1, "conflict")]

    @pytest.mark.parametrize(
        "other",
        [
            {"data": '{"b":[2,{"d":null,"c":"ü"}],"a":1}'},
            {"data": '{"a": 1.0, "b": [2e0, {"c": "\\u00fc", "d": null}]}'},
            {"clock_synced": True},
        ],
    )
    def test_what_does_not(self, store: Store, other: dict[str, Any]) -> None:
        data = '{"a": 1, "b": [2, {"c": "ü", "d": null}]}'
        send(store, batch([event(1, data=data)]))
        assert counts(send(store, batch([event(1, **{"data": data} | other)]))) == (0, 1, [], 1)

    def test_a_valid_event_under_a_rejected_seq_is_a_conflict_with_it(self, store: Store) -> None:
        send(store, batch(bad=[invalid(1)]))
        for _ in range(2):
            assert counts(send(store, batch([1]))) == (0, 0, [(1, "conflict")], 1)
        assert counts(send(store, batch(bad=[invalid(1)]))) == (0, 0, [(1, "invalid_event")], 1)
        assert [row.code for row in store.rejected("pibook-1").rows] == ["invalid_event", "conflict"]
        row = stream_row(store)
        assert (row.stored, row.rejected, row.conflicts, row.watermark) == (0, 1, 1, 1)

    def test_an_invalid_event_under_a_stored_seq_is_a_conflict_with_it(self, store: Store) -> None:
        send(store, batch([1]))
        for _ in range(2):
            assert counts(send(store, batch(bad=[invalid(1)]))) == (0, 0, [(1, "conflict")], 1)
        (row,) = store.rejected("pibook-1").rows
        assert json.loads(row.body) == {"seq": 1, "type": "nonsense"}

    # Two chains of boots.

    def test_boots_one_after_the_other_are_one_device(self, store: Store) -> None:
        self._alive(store, 1, "a", began=NOON, at=NOON + HOUR)
        self._alive(store, 2, "b", began=NOON + HOUR + 10_000, at=NOON + 2 * HOUR)
        self._alive(store, 3, "c", began=NOON + 3 * HOUR, at=NOON + 4 * HOUR)
        assert self._flag(store) == (None, 0)

    def test_a_boot_alive_after_another_began_is_a_second_device(self, store: Store) -> None:
        self._alive(store, 1, "a", began=NOON, at=NOON + HOUR)
        self._alive(store, 2, "b", began=NOON + 2 * HOUR, at=NOON + 3 * HOUR)
        assert self._flag(store) == (None, 0)
        self._alive(store, 3, "a", began=NOON, at=NOON + 4 * HOUR)
        assert self._flag(store) == (NOON + 4 * HOUR, 0)

    def test_it_shows_whichever_of_the_two_sends_last(self, store: Store) -> None:
        self._alive(store, 1, "late", began=NOON + HOUR, at=NOON + 2 * HOUR)
        self._alive(store, 2, "early", began=NOON, at=NOON + 2 * HOUR + 1)
        assert self._flag(store) == (NOON + 2 * HOUR + 1, 0)

    @pytest.mark.parametrize(("overlap", "flagged"), [(MINUTE, False), (MINUTE + 1, True)])
    def test_a_minute_of_seeming_overlap_is_no_proof(self, store: Store, overlap: int, flagged: bool) -> None:
        self._alive(store, 1, "a", began=NOON, at=NOON + HOUR)
        self._alive(store, 2, "b", began=NOON + HOUR - overlap, at=NOON + 2 * HOUR)
        assert (self._flag(store)[0] is not None) is flagged

    def test_a_slow_upload_does_not_move_the_beginning_of_a_boot(self, store: Store) -> None:
        self._alive(store, 1, "a", began=NOON, at=NOON + HOUR)
        self._alive(store, 2, "a", began=NOON, at=NOON + 2 * HOUR, delay=10 * MINUTE)
        self._alive(store, 3, "b", began=NOON + 2 * HOUR + MINUTE, at=NOON + 3 * HOUR)
        assert self._flag(store) == (None, 0)

    def test_boots_of_other_streams_and_devices_are_no_sign(self, store: Store) -> None:
        self._alive(store, 1, "a", began=NOON, at=NOON + 4 * HOUR)
        self._alive(store, 1, "b", began=NOON + HOUR, at=NOON + 4 * HOUR, stream="stream-2")
        self._alive(store, 1, "c", began=NOON + HOUR, at=NOON + 4 * HOUR, device="pibook-2")
        assert self._flag(store) == (None, 0)

    def _alive(
        self,
        store: Store,
        seq: int,
        boot_id: str,
        *,
        began: int,
        at: int,
        delay: int = 0,
        device: str = "pibook-1",
        stream: str = "stream-1",
    ) -> None:
        sent = Stamp(at_ms=5, boot_id=boot_id, boottime_ms=at - began, clock_synced=False)
        send(store, batch([seq], device=device, stream=stream, sent=sent, received_ms=at + delay))

    def _flag(self, store: Store) -> tuple[int | None, int]:
        device = store.device("pibook-1")
        assert device is not None
        return device.cloned_since_ms, device.conflicts


class OriginConformance:
    def test_a_carried_copy_of_a_stored_event_is_a_duplicate(self, store: Store) -> None:
        send(store, batch([1, 2]))
        receipt = send(store, batch([event(1, origin=("stream-1", 2), occurred_ms=NOON + 2)], stream="stream-2"))
        assert counts(receipt) == (0, 1, [], 1)
        assert stored_seqs(store, stream="stream-2") == []
        row = stream_row(store, stream="stream-2")
        assert (row.stored, row.carried, row.watermark, row.missing_count) == (0, 1, 1, 0)

    def test_a_carried_event_that_is_not_stored_is_stored(self, store: Store) -> None:
        send(store, batch([1]))
        assert counts(send(store, batch([self._carried(1, 2)], stream="stream-2"))) == (1, 0, [], 1)

    def test_the_original_that_comes_later_is_a_duplicate(self, store: Store) -> None:
        send(store, batch([self._carried(1, 2)], stream="stream-2"))
        receipt = send(store, batch([1, 2, 3]))
        assert counts(receipt) == (2, 1, [], 3)
        assert stored_seqs(store) == [1, 3]
        assert stream_row(store).carried == 1

    def test_a_copy_sent_again_is_a_duplicate(self, store: Store) -> None:
        send(store, batch([2]))
        for _ in range(2):
            assert counts(send(store, batch([self._carried(1, 2)], stream="stream-2"))) == (0, 1, [], 1)
        assert stream_row(store, stream="stream-2").carried == 1

    def test_other_content_under_a_carried_seq_is_a_conflict(self, store: Store) -> None:
        send(store, batch([2]))
        send(store, batch([self._carried(1, 2)], stream="stream-2"))
        receipt = send(store, batch([event(1, note="x")], stream="stream-2"))
        assert counts(receipt) == (0, 0, [(1, "conflict")], 1)

    def test_a_carried_event_with_other_content_than_its_origin_is_stored(self, store: Store) -> None:
        send(store, batch([2]))
        receipt = send(store, batch([event(1, origin=("stream-1", 2), note="the other card")], stream="stream-2"))
        assert counts(receipt) == (1, 0, [], 1)

    def test_an_original_with_other_content_than_its_copy_is_stored(self, store: Store) -> None:
        send(store, batch([event(1, origin=("stream-1", 2), note="the other card")], stream="stream-2"))
        assert counts(send(store, batch([1, 2]))) == (2, 0, [], 2)

    def test_two_copies_of_an_event_that_never_came_are_one(self, store: Store) -> None:
        send(store, batch([self._carried(1, 7)], stream="stream-2"))
        assert counts(send(store, batch([self._carried(3, 7)], stream="stream-3")))[:2] == (0, 1)
        assert counts(send(store, batch([7])))[:2] == (0, 1)
        assert len(stored(store)) == 1

    def test_a_copy_of_a_copy_is_one_too(self, store: Store) -> None:
        send(store, batch([7]))
        send(store, batch([self._carried(1, 7)], stream="stream-2"))
        again = event(4, origin=("stream-2", 1), occurred_ms=NOON + 7)
        assert counts(send(store, batch([again], stream="stream-3")))[:2] == (0, 1)
        assert len(stored(store)) == 1

    def test_a_conflicting_event_carried_on_is_stored_once(self, store: Store) -> None:
        send(store, batch([1]))
        other: dict[str, Any] = {"note": "the other card", "occurred_ms": NOON + 1}
        assert counts(send(store, batch([event(1, **other)])))[2] == [(1, "conflict")]
        carried = event(1, origin=("stream-1", 1), **other)
        assert counts(send(store, batch([carried], stream="stream-2")))[:2] == (1, 0)
        assert counts(send(store, batch([carried._replace(seq=9)], stream="stream-3")))[:2] == (0, 1)

    def test_a_requeued_rejection_is_stored_in_the_same_stream(self, store: Store) -> None:
        send(store, batch([2], bad=[invalid(1)]))
        requeued = event(3, origin=("stream-1", 1))
        assert counts(send(store, batch([requeued]))) == (1, 0, [], 3)
        assert counts(send(store, batch([requeued, requeued._replace(seq=4)]))) == (0, 2, [], 4)

    def test_an_event_and_its_copy_in_one_batch_are_one(self, store: Store) -> None:
        copy = event(2, origin=("stream-1", 1), occurred_ms=NOON + 1)
        assert counts(send(store, batch([1, copy]))) == (1, 1, [], 2)
        assert stored_seqs(store) == [1]
        ahead = event(4, origin=("stream-1", 5), occurred_ms=NOON + 5)
        assert counts(send(store, batch([ahead, 5]))) == (1, 1, [], 2)
        assert stored_seqs(store) == [1, 4]
        assert counts(send(store, batch([5, 2])))[2] == [(2, "conflict")]

    def test_an_origin_of_another_device_means_nothing(self, store: Store) -> None:
        send(store, batch([2]))
        receipt = send(store, batch([self._carried(1, 2)], device="pibook-2", stream="stream-2"))
        assert counts(receipt)[:2] == (1, 0)

    def _carried(self, seq: int, original: int) -> IncomingEvent:
        return event(seq, origin=("stream-1", original), occurred_ms=NOON + original)
