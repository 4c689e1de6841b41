"""Erasing learners: nothing of them is left, nothing comes back, and everything stays accounted for."""

import itertools
import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisync_receiver.domain.submissions import Actor, DeviceChange, EventBatch
from pisync_receiver.erasing import Eraser, Erasure
from pisync_receiver.errors import ErasuresFileUnusable, UnknownLearner
from tests.conformance.properties import SHARED_STORE
from tests.conformance.sums import recount
from tests.conformance.tables import Tables, folded
from tests.support.blocking import BlockingStore, counts, send, stored_seqs, streams, written
from tests.support.submissions import DAY, NOON, batch, event, invalid

BY: Final = Actor(name="ann")
SECRET: Final = "pupil-§-7"
TEXTS: Final = ("events", "rejected", "event_keys", "carried", "sums", "audit", "erased", "secrets", "streams")
_numbers = itertools.count()


def erase(store: BlockingStore, learner: str, home: str | None = None, *, file: Path | None = None) -> Erasure:
    eraser = Eraser(store.store, file, now_ms=lambda: NOON)
    done: Erasure = store.run(eraser.erase(learner, home, None, BY))
    while done.more:
        done = store.run(eraser.erase(learner, home, None, BY))
    return done


def preview(store: BlockingStore, learner: str, home: str | None = None, sites: Any = None) -> Erasure:
    found: Erasure = store.run(Eraser(store.store, None, now_ms=lambda: NOON).preview(learner, home, sites))
    return found


def naming(seq: int, learner: str, **fields: Any) -> Any:
    """An event that breaks a rule and names a learner."""
    return invalid(seq, body=json.dumps({"seq": seq, "type": "bad", "learner_id": learner, **fields}))


class ErasureConformance:
    def test_nothing_of_the_learner_is_left(self, store: BlockingStore, tables: Tables) -> None:
        device = f"d{next(_numbers)}"
        history = [
            batch(
                [event(1, learner_id=SECRET, event_id="a"), event(2, event_id="b"), naming(3, SECRET)], device=device
            ),
            batch([event(2, learner_id=SECRET, note="conflict")], device=device),
            batch([event(1, learner_id=SECRET, event_id="a")], device=device, stream="other"),
            batch([event(4, learner_id=SECRET, learner_home="club"), event(5)], device=device),
        ]
        for each in history:
            send(store, each)
        before = streams(store, device)
        planned = preview(store, SECRET)
        assert (planned.events, planned.rejected, set(planned.homes)) == (2, 2, {None, "club"})
        done = erase(store, SECRET)
        assert (done.events, done.rejected, done.more) == (2, 2, False)
        acts = [(row.act, row.actor, row.target) for row in store.audit(limit=2).rows]
        assert acts == [(act, "ann", f"erasure {done.receipt}") for act in ("learner.erased", "learner.erase")]
        assert not traces(tables, SECRET)
        assert stored_seqs(store, device=device) == [2, 5]
        after = streams(store, device)
        assert [plain(row) for row in after] == [plain(row) for row in before]
        assert preview_fails(store, SECRET)
        assert erase(store, SECRET).receipt == done.receipt

    def test_one_home_is_erased_and_others_are_kept(self, store: BlockingStore) -> None:
        device = f"d{next(_numbers)}"
        homes = ["north", "south"]
        send(store, batch([event(n, learner_home=home) for n, home in enumerate(homes, 1)], device=device))
        erase(store, "s-17", "north")
        assert stored_seqs(store, device=device) == [2]
        send(store, batch([event(3, learner_home="north"), event(4, learner_home="south")], device=device))
        assert stored_seqs(store, device=device) == [2, 4]

    def test_whatever_arrives_later_is_accounted_for_and_not_written(
        self, store: BlockingStore, tables: Tables
    ) -> None:
        device = f"d{next(_numbers)}"
        written_site(store, device, "Nakuru")
        send(store, batch([event(1, learner_id="other"), event(9, learner_id="other")], device=device))
        erase(store, SECRET, "Nakuru")
        mine: dict[str, Any] = {"learner_id": SECRET}
        assert counts(send(store, batch([event(10, **mine), event(11, **mine)], device=device))) == (2, 0, [], 1)
        assert counts(send(store, batch([event(10, **mine)], device=device))) == (0, 1, [], 1)
        conflict = batch([event(1, **mine), naming(9, SECRET)], device=device)
        assert counts(send(store, conflict)) == (0, 2, [], 1)
        assert counts(send(store, batch([naming(2, SECRET), naming(3, SECRET)], device=device))) == (2, 0, [], 3)
        carried = [event(4, **mine, origin=("old", 1)), event(5, **mine, event_id="k"), event(6, **mine, event_id="k")]
        assert counts(send(store, batch(carried, device=device))) == (2, 1, [], 6)
        assert counts(send(store, batch([event(7, **mine, event_id="k"), event(8, note="x")], device=device)))[0] == 2
        assert not traces(tables, SECRET)
        assert stored_seqs(store, device=device) == [1, 8, 9]
        (stream,) = streams(store, device)
        assert (stream.complete, stream.stored, stream.carried) == (True, 10, 1)
        assert (stream.rejected, stream.conflicts) == (0, 0)

    def test_learner_of_another_home_is_stored(self, store: BlockingStore) -> None:
        device = f"d{next(_numbers)}"
        written_site(store, device, "Kisumu")
        erase(store, SECRET, "Nakuru")
        send(store, batch([event(1, learner_id=SECRET)], device=device))
        assert stored_seqs(store, device=device) == [1]

    def test_unknown_learner_is_refused_without_a_home(self, store: BlockingStore) -> None:
        with pytest.raises(UnknownLearner):
            erase(store, "unknown")

    def test_site_limited_caller_erases_homes_of_its_sites(self, store: BlockingStore) -> None:
        device = f"d{next(_numbers)}"
        send(store, batch([event(1, learner_home="north"), event(2, learner_home="south")], device=device))
        eraser = Eraser(store.store, None, now_ms=lambda: NOON)
        assert preview(store, "s-17", sites=("south",)).homes == ["south"]
        done = store.run(eraser.erase("s-17", None, ("south",), BY))
        assert (done.homes, done.events) == (["south"], 1)
        assert stored_seqs(store, device=device) == [1]

    def test_restored_database_is_erased_again(self, store: BlockingStore, tables: Tables, tmp_path: Path) -> None:
        """What the erasures file knows and the database does not is erased before anything is answered."""
        device, file = f"d{next(_numbers)}", tmp_path / "erasures"
        history = [
            batch([event(1, learner_id=SECRET), event(2)], device=device),
            batch([event(2, learner_id=SECRET), naming(3, SECRET)], device=device),
        ]
        erase_all(store, history)
        erase(store, SECRET, file=file)
        assert file.stat().st_mode & 0o777 == 0o600
        assert SECRET not in file.read_text()
        forget(tables)
        again = f"{device}-again"
        for each in history:
            send(store, with_device(each, again))
        assert stored_seqs(store, device=again) == [1, 2]
        eraser = Eraser(store.store, file, now_ms=lambda: NOON)
        store.run(eraser.resume())
        assert stored_seqs(store, device=again) == [2]
        assert not traces(tables, SECRET)
        send(store, batch([event(4, learner_id=SECRET)], device=again))
        assert stored_seqs(store, device=again) == [2]

    def test_nothing_is_erased_where_the_file_cannot_be_written(self, store: BlockingStore, tmp_path: Path) -> None:
        device = f"d{next(_numbers)}"
        send(store, batch([event(1, learner_id="stays")], device=device))
        with pytest.raises(ErasuresFileUnusable):
            erase(store, "stays", file=tmp_path)
        send(store, batch([event(2, learner_id="stays")], device=device))
        assert stored_seqs(store, device=device) == [1, 2]

    def test_interrupted_erasure_is_finished_at_the_next_start(
        self, store: BlockingStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = f"d{next(_numbers)}"
        send(store, batch([event(seq, learner_id="half") for seq in range(1, 6)], device=device))
        monkeypatch.setattr("pisync_receiver.erasing.BATCH", 2)
        monkeypatch.setattr("pisync_receiver.erasing.CALL_S", -1.0)
        eraser = Eraser(store.store, None, now_ms=lambda: NOON)
        assert store.run(eraser.erase("half", None, None, BY)).more
        assert len(stored_seqs(store, device=device)) == 3
        store.run(eraser.resume())
        assert stored_seqs(store, device=device) == []
        done = store.run(eraser.erase("half", None, None, BY))
        assert (done.events, done.more) == (5, False)

    def test_lost_file_is_written_again(self, store: BlockingStore, tmp_path: Path) -> None:
        send(store, batch([event(1, learner_id="gone")], device=f"d{next(_numbers)}"))
        erase(store, "gone", file=tmp_path / "first")
        store.run(Eraser(store.store, tmp_path / "second", now_ms=lambda: NOON).resume())
        line = (tmp_path / "first").read_text()
        assert line in (tmp_path / "second").read_text()

    def test_receiver_serves_where_the_lost_file_cannot_be_written(
        self, store: BlockingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        erase(store, "gone too", "club")
        (tmp_path / "link").symlink_to(tmp_path / "missing/erasures")
        store.run(Eraser(store.store, tmp_path / "link", now_ms=lambda: NOON).resume())
        assert "a restored backup would bring erased learners back" in caplog.text

    @settings(max_examples=25, deadline=None, suppress_health_check=SHARED_STORE)
    @given(data=st.data())
    def test_property_no_trace_and_receipts_unchanged(
        self, store: BlockingStore, tables: Tables, tmp_path: Path, data: st.DataObject
    ) -> None:
        """Some of the objects bear a learner's id, and are in the daily sums."""
        prefix = f"p{next(_numbers)}"
        learners = [f"{prefix}-é{n}" for n in range(3)]
        fields = st.fixed_dictionaries(
            {"seq": st.integers(1, 8), "learner_id": st.sampled_from(learners)},
            optional={
                "note": st.sampled_from(["x", "y"]),
                "event_id": st.sampled_from(["quiz", "test"]),
                "origin": st.tuples(st.just("stream-1"), st.integers(1, 8)),
                "learner_home": st.sampled_from(["club", "team"]),
                "occurred_ms": st.integers(0, 3).map(lambda days: NOON - days * DAY),
                "object_id": st.just("their own"),
            },
        ).map(_with_own_object)
        bad = st.builds(naming, st.integers(1, 8), st.sampled_from(learners))
        batches = st.builds(
            lambda events, bad, device, stream: batch(
                [*(event(**each) for each in events), *bad], device=f"{prefix}-{device}", stream=stream
            ),
            st.lists(fields, max_size=6),
            st.lists(bad, max_size=2),
            st.sampled_from(["a", "b"]),
            st.sampled_from(["stream-1", "stream-2"]),
        )
        sent = data.draw(st.lists(batches, min_size=2, max_size=8))
        for each in sent:
            send(store, each)
        gone = data.draw(st.sets(st.sampled_from(learners), min_size=1))
        before = {device: streams(store, device) for device in (f"{prefix}-a", f"{prefix}-b")}
        file = tmp_path / prefix
        for learner in sorted(gone):
            try:
                erase(store, learner, file=file)
            except UnknownLearner:
                for home in ("club", "team"):
                    erase(store, learner, home, file=file)
        assert folded(store, tables) == recount(tables)
        for device, rows in before.items():
            assert [plain(row) for row in streams(store, device)] == [plain(row) for row in rows]
        for each in data.draw(st.permutations(sent)):
            receipt = send(store, each)
            assert receipt.stored == 0
        for device, rows in before.items():
            assert [row.watermark for row in streams(store, device)] == [row.watermark for row in rows]
            assert [row.missing for row in streams(store, device)] == [row.missing for row in rows]
        assert not traces(tables, *gone)
        if data.draw(st.booleans()):
            forget(tables)
            for each in sent:
                send(store, with_device(each, f"{each.device_id}-restored"))
            store.run(Eraser(store.store, file, now_ms=lambda: NOON).resume())
            assert not traces(tables, *gone)
            assert folded(store, tables) == recount(tables)


def _with_own_object(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"object_id": f"of {fields['learner_id']}"} if "object_id" in fields else fields


def erase_all(store: BlockingStore, history: list[EventBatch]) -> None:
    for each in history:
        send(store, each)


def with_device(each: EventBatch, device: str) -> EventBatch:
    return batch([*each.events, *each.invalid], device=device, stream=each.stream)


def written_site(store: BlockingStore, device: str, site: str) -> None:
    send(store, batch(device=device))
    written(store, DeviceChange(device_id=device, at_ms=NOON, site=site))


def plain(row: Any) -> Any:
    """What erasing leaves of a stream's record: all but the details of its rejections."""
    return (row.stream, row.watermark, row.highest, row.stored, row.carried, row.rejected, row.conflicts, row.missing)


def preview_fails(store: BlockingStore, learner: str) -> bool:
    try:
        preview(store, learner)
    except UnknownLearner:
        return True
    return False


def traces(tables: Tables, *learners: str) -> list[str]:
    """Return which tables hold a learner's id, as it is or as JSON writes it."""
    texts = {table: repr(tables.all(("*",), table)) for table in TEXTS}
    names = {name for learner in learners for name in (learner, json.dumps(learner)[1:-1])}
    return [table for table, text in texts.items() if any(name in text for name in names)]


def forget(tables: Tables) -> None:
    """Make the database forget every erasure, as a restored backup does."""
    tables.execute("DELETE FROM erased")
    tables.execute("DELETE FROM secrets")
