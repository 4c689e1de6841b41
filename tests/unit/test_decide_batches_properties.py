"""Batches in any order, repeated, split and grouped, against a naive recount of what arrived."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pisync_common.models import Receipt
from pisync_receiver.domain.submissions import Event, EventBatch, InvalidEvent, Submission
from pisync_receiver.domain.times import ESTIMATED
from tests.support.memory_store import MemoryStore
from tests.support.submissions import MINUTE, NOON, batch, event, invalid, stamp

THOROUGH = settings(max_examples=300, derandomize=True)
DEVICES = ("pibook-1", "pibook-2")
STREAMS = ("stream-a", "stream-b")
UUIDS = ("5c1e0b52-6c2f-4a51-9d51-0e6f0d0b7a01", "5C1E0B52-6C2F-4A51-9D51-0E6F0D0B7A01")
SEQS = 7
Place = tuple[str, str, int]


def plain_events() -> st.SearchStrategy[Event | InvalidEvent]:
    """Mostly one version a seq, sometimes another, sometimes an invalid one."""
    return st.one_of(
        st.integers(1, SEQS).map(event),
        st.builds(event, st.integers(1, SEQS)),
        st.builds(lambda seq, n: event(seq, type=f"note.taken{n}"), st.integers(1, SEQS), st.integers(1, 3)),
        st.builds(invalid, st.integers(1, SEQS), body=st.sampled_from(['{"type":"x"}', "not JSON"])),
    )


def identified_events() -> st.SearchStrategy[Event]:
    """Events with the app's ids and origins, of which many say the same."""
    return st.builds(
        event,
        st.integers(1, SEQS),
        type=st.sampled_from(["video.watched", "video.watched", "note.taken"]),
        event_id=st.sampled_from([None, None, "key-1", *UUIDS]),
        occurred_ms=st.sampled_from([NOON, NOON, NOON - MINUTE]),
        origin=st.none() | st.none() | st.tuples(st.sampled_from(STREAMS), st.integers(1, 2)),
    )


def timed_events() -> st.SearchStrategy[Event]:
    """Events whose times need clocks of every kind."""
    return st.builds(
        event,
        st.integers(1, SEQS),
        occurred_ms=st.integers(-10 * MINUTE, 10 * MINUTE).map(lambda ms: NOON + ms),
        boot=st.none() | st.tuples(st.sampled_from(["boot-1", "boot-2"]), st.integers(0, 20 * MINUTE)),
        clock_synced=st.booleans(),
    )


def all_batches(events: st.SearchStrategy[Event | InvalidEvent]) -> st.SearchStrategy[list[EventBatch]]:
    stamps = st.none() | st.builds(stamp, st.sampled_from(["boot-1", "boot-2"]), st.integers(0, 20 * MINUTE))
    one = st.builds(
        batch,
        st.lists(events, max_size=5),
        device=st.sampled_from(DEVICES),
        stream=st.sampled_from(STREAMS),
        sent=stamps,
    )
    return st.lists(one, min_size=1, max_size=8).map(_in_order_of_receipt)


def _in_order_of_receipt(batches: Sequence[EventBatch]) -> list[EventBatch]:
    return [replace(each, received_ms=NOON + at * 1000) for at, each in enumerate(batches)]


groupings = st.lists(st.integers(1, 5), max_size=8)


def run(submissions: Sequence[Submission], sizes: Sequence[int]) -> tuple[MemoryStore, list[object]]:
    """Run submissions in groups of these sizes; what is left over makes one more group."""
    store, outcomes, rest = MemoryStore(), list[object](), list(submissions)
    for size in [*sizes, len(rest)]:
        group, rest = rest[:size], rest[size:]
        outcomes += store.run(*group) if group else []
    return store, outcomes


def tables(store: MemoryStore, *, estimates: bool) -> list[object]:
    """All rows. Without `estimates`, times that were only estimated (and the site that follows from them) are left out:
    events that arrive out of order are estimated between the neighbours that are stored when their group begins."""
    rows = [
        row if estimates or row.quality != ESTIMATED else replace(row, best_ms=0, site=None, learner_home=None)
        for row in store.events.values()
    ]
    streams = [row if estimates else replace(row, best_ms=0) for row in store.streams.values()]
    return [
        sorted(streams, key=lambda row: (row.device_id, row.stream)),
        sorted(store.devices.items()),
        rows,
        store.event_keys,
        list(store.carried.values()),
        list(store.rejected.values()),
        sorted((name, gaps) for name, gaps in store.gaps.items() if gaps),
    ]


# A recount: the same rules in the simplest words, one event after the other.


@dataclass
class Recount:
    """What should be stored, from everything that was sent."""

    kinds: dict[Place, str] = field(default_factory=dict)
    contents: dict[Place, bytes] = field(default_factory=dict)
    conflicts: dict[Place, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    uncounted: Counter[Place] = field(default_factory=Counter)
    """Versions beyond the ten that are kept."""
    at: dict[object, Place] = field(default_factory=dict)
    """Where an event stands, by its id and content or by where it was recorded first."""

    def send(self, each: EventBatch) -> Counter[str]:
        answers: Counter[str] = Counter()
        everything: list[Event | InvalidEvent] = [*each.events, *each.invalid]
        for one in everything:
            answers[self._place((each.device_id, each.stream, one.seq), one)] += 1
        return answers

    def _place(self, place: Place, one: Event | InvalidEvent) -> str:
        if place in self.kinds:
            if self.contents[place] != one.content:
                self._conflict(place, one.content)
                return "rejected"
            return "rejected" if self.kinds[place] == "rejected" else "duplicates"
        self.contents[place] = one.content
        if isinstance(one, InvalidEvent):
            self.kinds[place] = "rejected"
            return "rejected"
        names: list[object] = [(*place, one.content)]
        if one.event_id is not None:
            shared = len(one.event_id) == 36
            owner, key = (None, one.event_id.lower()) if shared else (place[0], one.event_id)
            names.append((owner, key, one.type, one.learner_id, one.data))
        if one.origin is not None:
            names.append((place[0], one.origin.stream, one.origin.seq, one.content))
        stored = next((name for name in names if name in self.at), None) is not None
        self.kinds[place] = "carried" if stored else "stored"
        for name in names:
            self.at.setdefault(name, place)
        return "duplicates" if stored else "stored"

    def _conflict(self, place: Place, content: bytes) -> None:
        if content in self.conflicts[place]:
            return
        if len(self.conflicts[place]) < 10:
            self.conflicts[place].append(content)
        else:
            self.uncounted[place] += 1


def check(store: MemoryStore, recount: Recount) -> None:
    assert store.events.keys() == {place for place, kind in recount.kinds.items() if kind == "stored"}
    assert store.carried.keys() == {place for place, kind in recount.kinds.items() if kind == "carried"}
    kept = defaultdict(list)
    for row in store.rejected.values():
        kept[row.device_id, row.stream, row.seq].append((row.code, row.content))
    assert {place for place, rows in kept.items() if rows[0][0] == "invalid_event"} == {
        place for place, kind in recount.kinds.items() if kind == "rejected"
    }
    for place, content in recount.contents.items():
        standing = store.events.get(place) or store.carried.get(place)
        assert standing is None or standing.content == content, "the first version stands"
        conflicts = [content for code, content in kept[place] if code == "conflict"]
        assert conflicts == recount.conflicts.get(place, [])
    for name, stream in store.streams.items():
        check_stream(store, recount, name)
        assert stream.conflicts == sum(
            len(recount.conflicts.get(place, [])) + recount.uncounted[place]
            for place in recount.kinds
            if place[:2] == name
        )
    for device_id, device in store.devices.items():
        mine = [stream for stream in store.streams.values() if stream.device_id == device_id]
        assert device.conflicts == sum(stream.conflicts for stream in mine)
        assert device.streams == len(mine)
        assert device.copies >= 0


def check_stream(store: MemoryStore, recount: Recount, name: tuple[str, str]) -> None:
    stream = store.streams[name]
    known = {place[2] for place in recount.kinds if place[:2] == name}
    missing = [seq for seq in range(1, max(known) + 1) if seq not in known]
    gaps = sorted(store.gaps.get(name, {}).items())
    assert [seq for first, last in gaps for seq in range(first, last + 1)] == missing
    assert stream.highest == max(known)
    assert stream.watermark == (missing[0] - 1 if missing else max(known))
    assert stream.stored + stream.carried + stream.rejected + len(missing) == stream.highest
    counted = Counter(kind for place, kind in recount.kinds.items() if place[:2] == name)
    assert (stream.stored, stream.carried, stream.rejected) == (
        counted["stored"],
        counted["carried"],
        counted["rejected"],
    )


def recount_all(batches: Sequence[EventBatch], outcomes: Sequence[object]) -> Recount:
    """Send everything to a recount, and check the receipts against it."""
    recount = Recount()
    for sent, receipt in zip(batches, outcomes, strict=True):
        answers = recount.send(sent)
        assert isinstance(receipt, Receipt)
        assert (receipt.device_id, receipt.stream) == (sent.device_id, sent.stream)
        assert (receipt.stored, receipt.duplicates, len(receipt.rejected)) == (
            answers["stored"],
            answers["duplicates"],
            answers["rejected"],
        )
        known = {place[2] for place in recount.kinds if place[:2] == (sent.device_id, sent.stream)}
        missing = [seq for seq in range(1, max(known, default=0) + 1) if seq not in known]
        assert receipt.watermark == (missing[0] - 1 if missing else max(known, default=0))
        assert [seq for first, last in receipt.missing for seq in range(first, last + 1)] == missing
    return recount


@THOROUGH
@given(batches=all_batches(plain_events()), sizes=groupings)
def test_every_seq_is_accounted_for_once(batches: list[EventBatch], sizes: list[int]) -> None:
    store, outcomes = run(batches, sizes)
    check(store, recount_all(batches, outcomes))


@THOROUGH
@given(batches=all_batches(identified_events()), sizes=groupings)
def test_the_same_event_is_stored_once(batches: list[EventBatch], sizes: list[int]) -> None:
    store, outcomes = run(batches, sizes)
    check(store, recount_all(batches, outcomes))


@THOROUGH
@given(batches=all_batches(plain_events() | identified_events() | timed_events()), sizes=groupings)
def test_grouping_changes_nothing(batches: list[EventBatch], sizes: list[int]) -> None:
    singly, single_outcomes = run(batches, [1] * len(batches))
    grouped, outcomes = run(batches, sizes)
    assert tables(grouped, estimates=False) == tables(singly, estimates=False)
    assert outcomes == single_outcomes


@THOROUGH
@given(events=st.lists(timed_events(), min_size=1, max_size=12), cuts=groupings, sizes=groupings)
def test_grouping_changes_no_estimate_of_batches_in_order(
    events: list[Event], cuts: list[int], sizes: list[int]
) -> None:
    numbered = [replace(each, seq=seq) for seq, each in enumerate(events, 1)]
    batches = []
    for cut in [*cuts, len(numbered)]:
        part, numbered = numbered[:cut], numbered[cut:]
        batches += [batch(part)] if part else []
    batches = _in_order_of_receipt(batches)
    singly, single_outcomes = run(batches, [1] * len(batches))
    grouped, outcomes = run(batches, sizes)
    assert tables(grouped, estimates=True) == tables(singly, estimates=True)
    assert outcomes == single_outcomes


@THOROUGH
@given(batches=all_batches(plain_events() | identified_events()), sizes=groupings)
def test_sending_everything_again_stores_nothing(batches: list[EventBatch], sizes: list[int]) -> None:
    store, _ = run(batches, sizes)
    stored, carried, rejected = len(store.events), len(store.carried), len(store.rejected)
    gaps = {name: dict(each) for name, each in store.gaps.items()}
    receipts = store.run(*batches)
    assert (len(store.events), len(store.carried), len(store.rejected), store.gaps) == (stored, carried, rejected, gaps)
    assert all(isinstance(receipt, Receipt) and receipt.stored == 0 for receipt in receipts)


@settings(max_examples=200, derandomize=True)
@given(
    seqs=st.permutations(range(1, 13)),
    cuts=st.lists(st.integers(1, 4), max_size=12),
    repeats=st.lists(st.integers(0, 30), max_size=4),
)
@example(seqs=list(range(12, 0, -1)), cuts=[1] * 12, repeats=[0])
def test_any_order_of_arrival_ends_complete(seqs: list[int], cuts: list[int], repeats: list[int]) -> None:
    batches = []
    for cut in [*cuts, len(seqs)]:
        part, seqs = seqs[:cut], seqs[cut:]
        batches += [batch(map(event, part))] if part else []
    batches += [batches[each % len(batches)] for each in repeats]
    store, _ = run(batches, [1] * len(batches))
    (stream,) = store.streams.values()
    assert (stream.watermark, stream.highest, stream.stored) == (12, 12, 12)
    assert not any(store.gaps.values())
