"""Retention: old events and sync events are deleted in bounded batches, and stay accounted for."""

from collections.abc import Mapping

import pytest

from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.submissions import Actor
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.retention import RETAIN_BATCH, Retained
from pisync_receiver.store.running import Query
from tests.support.blocking import BlockingStore, counts, send, stored, streams, sync
from tests.support.submissions import HOUR, NOON, batch, event, invalid, sync_event


class RetentionConformance:
    def test_old_rows_are_deleted_and_newer_rows_kept(self, store: BlockingStore) -> None:
        self._history(store)
        planned = store.retain(NOON + HOUR, dry_run=True)
        assert planned == Retained(events=3, sync_events=2, by_type={"video.watched": 3}, more=False)
        assert len(stored(store)) == 5
        assert store.retain(NOON + HOUR, dry_run=False) == Retained(events=3, sync_events=2, more=False)
        assert [row.seq for row in stored(store)] == [7, 8]
        assert len(store.history("pibook-1").rows) == 1
        assert store.retain(NOON + HOUR, dry_run=False) == Retained(events=0, sync_events=0, more=False)

    def test_deleted_events_stay_accounted_for(self, store: BlockingStore) -> None:
        self._history(store)
        before, device = streams(store), store.device("pibook-1")
        store.retain(NOON + 9 * HOUR, dry_run=False)
        assert stored(store) == []
        assert (streams(store), store.device("pibook-1")) == (before, device)

    def test_deleted_events_sent_again_are_duplicates(self, store: BlockingStore) -> None:
        self._history(store)
        store.retain(NOON + 9 * HOUR, dry_run=False)
        assert counts(send(store, batch([1, 2, 3, 7], received_ms=NOON + 10 * HOUR))) == (0, 4, [], 4)
        assert counts(send(store, batch([5, 9], received_ms=NOON + 10 * HOUR))) == (2, 0, [], 5)
        assert [row.seq for row in stored(store)] == [5, 9]

    def test_ids_of_deleted_rows_are_never_used_again(self, store: BlockingStore) -> None:
        self._history(store)
        newest = stored(store)[-1].id
        last = store.history("pibook-1").rows[0].id
        store.retain(NOON + 9 * HOUR, dry_run=False)
        send(store, batch([9], received_ms=NOON + 9 * HOUR))
        assert stored(store)[0].id > newest
        assert sync(store, sync_event(NOON)).id > last

    def test_id_of_a_deleted_event_may_be_stored_again(self, store: BlockingStore) -> None:
        send(store, batch([event(1, event_id="quiz")], received_ms=NOON))
        store.retain(NOON + 1, dry_run=False)
        assert counts(send(store, batch([event(2, event_id="quiz")])))[:2] == (1, 0)

    def test_what_was_deleted_is_in_the_audit_log(self, store: BlockingStore) -> None:
        self._history(store)
        by = Actor(name="ann")

        def audit(deleted: Mapping[str, object]) -> Query:
            return audit_statement(audited(by, "retention.delete", None, NOON, deleted))

        for _ in range(2):  # the second finds nothing
            store.retain(NOON + HOUR, dry_run=False, audit=audit)
        entries = [(row.actor, row.detail) for row in store.audit(act="retention.delete").rows]
        assert entries == [("ann", '{"events":3,"sync_events":2}')]

    def test_rejections_are_kept(self, store: BlockingStore) -> None:
        send(store, batch([1, invalid(2)], received_ms=NOON))
        store.retain(NOON + HOUR, dry_run=False)
        assert len(store.rejected("pibook-1").rows) == 1

    def test_deletion_is_bounded(self, store: BlockingStore) -> None:
        for first in range(1, RETAIN_BATCH + 1000, 1000):
            send(store, batch(range(first, first + 1000), received_ms=NOON))
        planned = store.retain(NOON + 1, dry_run=True)
        assert (planned.events, planned.more) == (RETAIN_BATCH + 1000, False)
        first = store.retain(NOON + 1, dry_run=False)
        assert (first.events, first.more) == (RETAIN_BATCH, True)
        rest = store.retain(NOON + 1, dry_run=False)
        assert (rest.events, rest.more) == (1000, False)
        assert store.events(EventFilter()).rows == []

    def test_one_type_is_deleted_and_others_kept(self, store: BlockingStore, monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = ["note.taken", "video.watched", "note.taken", "quiz.done", "note.taken", "note.taken"]
        send(store, batch([event(seq, type=kind) for seq, kind in enumerate(kinds, 1)], received_ms=NOON))
        send(store, batch([event(7, type="note.taken")], received_ms=NOON + HOUR))
        sync(store, sync_event(NOON, received_ms=NOON))
        planned = store.retain(NOON + 1, dry_run=True)
        assert list(planned.by_type.items()) == [("note.taken", 4), ("quiz.done", 1), ("video.watched", 1)]
        planned = store.retain(NOON + 1, dry_run=True, event_type="note.taken")
        assert (planned.events, planned.sync_events, planned.by_type) == (4, 0, {"note.taken": 4})
        for name, size in (("RETAIN_BATCH", 2), ("WINDOW", 2), ("WINDOWS", 2)):
            monkeypatch.setattr(f"pisync_receiver.store.retention.{name}", size)
        deleted, done = 0, Retained(events=0, sync_events=0, more=True)
        while done.more:
            done = store.retain(NOON + 1, dry_run=False, event_type="note.taken", after=done.after)
            assert done.sync_events == 0
            deleted += done.events
        assert deleted == 4
        assert [row.seq for row in stored(store)] == [2, 4, 7]

    def _history(self, store: BlockingStore) -> None:
        send(store, batch([1, 2, 3, invalid(4)], received_ms=NOON))
        send(store, batch([7, 8], received_ms=NOON + HOUR))
        for at in (0, 1, HOUR):
            sync(store, sync_event(NOON + at, failed=True, received_ms=NOON + at))
