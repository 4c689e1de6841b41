"""What becomes of batches: examples of conflicts, ids, carried events and failures, and what a decision costs."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from pisync_common.models import Receipt
from pisync_receiver.domain.batches import CONFLICTS_KEPT, STREAMS_MAX, body_of, decide_batch
from pisync_receiver.domain.decide import decide, details, plan
from pisync_receiver.domain.facts import Facts, Place
from pisync_receiver.domain.state import State
from pisync_receiver.domain.submissions import EventBatch, Outcome, Submission
from pisync_receiver.errors import TooManyStreams
from tests.support.memory_store import DuplicateKey, MemoryStore
from tests.support.submissions import DEVICE, HOUR, MINUTE, NOON, STREAM, batch, event, invalid, stamp, sync_event

UUID = "5c1e0b52-6c2f-4a51-9d51-0e6f0d0b7a01"


def receipt(store: MemoryStore, each: EventBatch) -> Receipt:
    (outcome,) = store.run(each)
    assert isinstance(outcome, Receipt)
    return outcome


# Conflicts.


def test_the_first_version_stands_and_ten_more_are_kept() -> None:
    store = MemoryStore()
    receipt(store, batch([event(1)]))
    for n in range(CONFLICTS_KEPT + 5):
        answer = receipt(store, batch([event(1, type=f"note.taken{n}")], received_ms=NOON + n))
        assert (answer.stored, answer.duplicates, answer.watermark) == (0, 0, 1)
        assert [(each.seq, each.code) for each in answer.rejected] == [(1, "conflict")]
    assert [row.type for row in store.events.values()] == ["video.watched"]
    assert len(store.rejected) == CONFLICTS_KEPT
    assert '"note.taken0"' in next(iter(store.rejected.values())).body
    assert store.streams[DEVICE, STREAM].conflicts == CONFLICTS_KEPT + 5
    assert (store.devices[DEVICE].conflicts, store.devices[DEVICE].cloned_since_ms) == (CONFLICTS_KEPT + 5, NOON)


def test_a_kept_conflict_sent_again_is_not_counted_again() -> None:
    store = MemoryStore()
    receipt(store, batch([event(1)]))
    first = receipt(store, batch([event(1, type="note.taken")]))
    assert receipt(store, batch([event(1, type="note.taken")])) == first
    assert store.devices[DEVICE].conflicts == 1


def test_data_in_another_notation_is_a_duplicate() -> None:
    store = MemoryStore()
    receipt(store, batch([event(1, data='{"a":1,"b":[1.0]}')]))
    answer = receipt(store, batch([event(1, data='{"b": [1], "a": 1}', clock_synced=True)]))
    assert (answer.duplicates, answer.rejected, store.rejected) == (1, (), {})


def test_a_rejection_is_answered_again_and_stays() -> None:
    store = MemoryStore()
    first = receipt(store, batch([event(1), invalid(2), event(3)]))
    assert (first.stored, first.watermark, [each.code for each in first.rejected]) == (2, 3, ["invalid_event"])
    again = receipt(store, batch([invalid(2)]))
    assert again.rejected == first.rejected
    late = receipt(store, batch([event(2)]))
    assert [each.code for each in late.rejected] == ["conflict"]
    assert [row.seq for row in store.events.values()] == [1, 3]


def test_a_conflict_with_an_invalid_version_is_kept() -> None:
    store = MemoryStore()
    receipt(store, batch([event(1)]))
    assert [each.code for each in receipt(store, batch([invalid(1)])).rejected] == ["conflict"]
    assert [row.body for row in store.rejected.values()] == [invalid(1).body]


def test_what_retention_deleted_is_a_duplicate() -> None:
    store = MemoryStore()
    receipt(store, batch([event(1), event(2), event(4)]))
    del store.events[DEVICE, STREAM, 1]
    del store.events[DEVICE, STREAM, 4]
    answer = receipt(store, batch([event(1, type="note.taken"), event(3), event(4), invalid(2)]))
    assert (answer.stored, answer.duplicates, answer.watermark, len(answer.rejected)) == (1, 2, 4, 1)
    again = receipt(store, batch([invalid(1), invalid(4)]))
    assert (again.duplicates, again.rejected) == (2, ())


def test_a_conflict_whose_first_version_was_deleted_no_longer_conflicts() -> None:
    store = MemoryStore()
    store.run(batch([event(1)]), batch([event(1, type="note.taken")]))
    del store.events[DEVICE, STREAM, 1]
    answer = receipt(store, batch([event(1), event(1, type="note.taken")]))
    assert (answer.duplicates, answer.rejected) == (2, ())


def test_an_empty_batch_asks_for_the_watermark() -> None:
    store = MemoryStore()
    assert receipt(store, batch()).watermark == 0
    assert (store.streams, store.devices[DEVICE].streams) == ({}, 0)
    receipt(store, batch([event(1), event(4), event(6)]))
    answer = receipt(store, batch(received_ms=NOON + HOUR, agent="pisync/0.2.0"))
    assert (answer.watermark, answer.missing) == (1, ((2, 3), (5, 5)))
    device = store.devices[DEVICE]
    assert (device.last_contact_ms, device.agent) == (NOON + HOUR, "pisync/0.2.0")
    store.run(batch([event(2)]), sync_event(NOON))
    assert store.devices[DEVICE].agent == "pisync/0.2.0"


def test_batches_that_close_many_of_many_gaps_get_a_true_watermark() -> None:
    store = MemoryStore()
    store.run(batch(event(seq) for seq in range(2, 802, 2)))
    odd = [event(seq) for seq in range(1, 241, 2)]
    first, second = store.run(batch(odd[:60]), batch(odd[60:]))
    assert isinstance(first, Receipt)
    assert isinstance(second, Receipt)
    assert (first.watermark, second.watermark) == (120, 240)
    assert first.missing == tuple((seq, seq) for seq in range(121, 321, 2))
    assert second.missing == tuple((seq, seq) for seq in range(241, 441, 2))


def test_a_gap_far_behind_the_first_is_filled() -> None:
    store = MemoryStore()
    store.run(batch(event(seq) for seq in range(2, 802, 2)))
    answer = receipt(store, batch([event(701), event(702)]))
    assert (answer.stored, answer.duplicates, answer.watermark) == (1, 1, 0)
    assert 701 not in store.gaps[DEVICE, STREAM]
    assert len(store.gaps[DEVICE, STREAM]) == 399


def test_an_earlier_receipt_never_moves_the_last_contact_back() -> None:
    store = MemoryStore()
    store.run(batch([event(1)], received_ms=NOON), batch([event(2)], received_ms=NOON - HOUR))
    assert store.devices[DEVICE].last_contact_ms == NOON
    assert store.streams[DEVICE, STREAM].last_ms == NOON


# The same event at several places.


@pytest.mark.parametrize(("id", "rows"), [(UUID, 1), ("key-1", 2)])
@pytest.mark.parametrize("together", [True, False])
def test_an_id_from_two_devices(id: str, rows: int, together: bool) -> None:
    store = MemoryStore()
    sent = [batch([event(1, event_id=id, occurred_ms=NOON + n)], device=f"pibook-{n}") for n in range(2)]
    for group in [sent] if together else [sent[:1], sent[1:]]:
        store.run(*group)
    assert len(store.events) == rows
    assert store.streams["pibook-1", STREAM].watermark == 1


def test_the_same_id_with_other_content_is_two_events() -> None:
    store = MemoryStore()
    sent = batch([event(1, event_id=UUID, data="{}"), event(2, event_id=UUID, data='{"x":1}')])
    assert receipt(store, sent).stored == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("together", [True, False])
def test_an_event_and_two_salvaged_copies_are_stored_once(order: tuple[int, ...], together: bool) -> None:
    sent = [
        batch([event(5)], stream="old"),
        batch([event(1, origin=("old", 5))], stream="new"),
        batch([event(2, origin=("old", 5))], stream="newer"),
    ]
    store = MemoryStore()
    in_order = [replace(sent[n], received_ms=NOON + at) for at, n in enumerate(order)]
    for group in [in_order] if together else [[each] for each in in_order]:
        store.run(*group)
    assert len(store.events) == 1
    assert len(store.carried) == 2
    assert {(row.stored_stream, row.stored_seq) for row in store.carried.values()} == {
        (row.stream, row.seq) for row in store.events.values()
    }


def test_a_copy_with_other_content_than_its_origin_is_stored() -> None:
    store = MemoryStore()
    store.run(batch([event(5)], stream="old"), batch([event(1, type="note.taken", origin=("old", 5))], stream="new"))
    assert len(store.events) == 2


def test_an_origin_of_another_device_is_no_copy() -> None:
    store = MemoryStore()
    store.run(batch([event(5)], stream="old", device="a"), batch([event(1, origin=("old", 5))], device="b"))
    assert len(store.events) == 2


def test_a_copy_of_a_conflicting_version_is_stored() -> None:
    store = MemoryStore()
    store.run(batch([event(1), event(3)]), batch([event(1, type="note.taken")]))
    store.run(batch([event(1, type="note.taken", origin=(STREAM, 1))], stream="new"))
    assert [row.type for row in store.events.values()] == ["video.watched", "video.watched", "note.taken"]


def test_a_repaired_copy_of_an_invalid_event_is_stored() -> None:
    """What was wrong need not be part of the content: a clock that is neither synchronised nor not, say."""
    broken = invalid(5, body=body_of(event(5)).replace("false", '"perhaps"'))
    repaired = event(1, origin=("old", 5))
    assert broken.content == repaired.content
    store = MemoryStore()
    store.run(batch([broken], stream="old"), batch([repaired], stream="new"))
    assert store.events.keys() == {(DEVICE, "new", 1)}


# Failing alone.


def test_a_submission_that_raises_touches_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: State, each: EventBatch) -> Outcome:
        answer = decide_batch(state, each)
        if each.agent == "broken":
            raise ValueError("a fault")
        return answer

    group: list[Submission] = [
        batch([event(1)], received_ms=NOON),
        batch([event(2), event(9, event_id="key")], agent="broken", received_ms=NOON + HOUR),
        sync_event(NOON, failed=True),
        batch([event(1)], stream="other", agent="broken"),
        batch([event(2, type="note.taken")], sent=stamp("b", 5)),
    ]
    alone = MemoryStore()
    expected = alone.run(group[0], group[2], group[4])
    monkeypatch.setattr("pisync_receiver.domain.decide.decide_batch", broken)
    store = MemoryStore()
    outcomes = store.run(*group)
    assert [str(outcomes[at]) for at in (1, 3)] == ["a fault", "a fault"]
    assert [outcomes[at] for at in (0, 2, 4)] == expected
    assert (store.events, store.streams, store.devices) == (alone.events, alone.streams, alone.devices)
    assert store.event_keys == {}


def test_streams_beyond_the_limit_are_refused_and_nothing_is_stored() -> None:
    store = MemoryStore()
    store.run(batch([event(1)]))
    store.devices[DEVICE] = replace(store.devices[DEVICE], streams=STREAMS_MAX)
    refused, kept = store.run(batch([event(1)], stream="one-more"), batch([event(2)]))
    assert isinstance(refused, TooManyStreams)
    assert isinstance(kept, Receipt)
    assert kept.stored == 1
    assert store.streams.keys() == {(DEVICE, STREAM)}


def test_a_decision_leaves_its_facts_alone() -> None:
    store = MemoryStore()
    store.run(batch([event(1), event(3)], sent=stamp("a", 5)))
    group: list[Submission] = [
        batch([event(2), event(3, type="note.taken")], sent=stamp("b", 5)),
        sync_event(NOON, failed=True, key="k"),
    ]
    facts = store.fetch(plan(group))
    wanted = details(facts, group)
    assert wanted is not None
    store.fetch_details(wanted, facts)
    assert decide(facts, group) == decide(facts, group)


def test_the_reference_engine_refuses_what_a_database_refuses() -> None:
    store = MemoryStore()
    group: list[Submission] = [
        batch([event(1, event_id=UUID), invalid(2), event(4)]),
        sync_event(NOON, failed=True, key="k"),
    ]
    changes = decide(store.fetch(plan(group)), group).changes
    store.write(changes)
    for table in ("events", "event_keys", "rejected", "gaps", "sync_events"):
        rows = getattr(changes, table)
        with pytest.raises(DuplicateKey):
            store.write(type(changes)(**{table: rows}))


# Costs: rows fetched for a request do not depend on what was stored before.


def cost(prepare: Callable[[MemoryStore, int], None], *group: Submission, before: int) -> int:
    store = MemoryStore()
    prepare(store, before)
    store.served = 0
    store.run(*group)
    return store.served


def many_conflicts(store: MemoryStore, n: int) -> None:
    for version in range(n):
        store.run(batch([event(1, type=f"note.taken{version}")]))


def many_boots(store: MemoryStore, n: int) -> None:
    for boot in range(n):
        store.run(batch([event(boot + 1)], sent=stamp(f"boot-{boot}", 5)))


def many_failures(store: MemoryStore, n: int) -> None:
    store.run(*(sync_event(NOON - at, failed=True) for at in range(n)))


def many_streams(store: MemoryStore, n: int) -> None:
    for stream in range(n):
        store.run(batch([event(1, origin=("old", stream + 1))], stream=f"stream-{stream}"))


def many_gaps(store: MemoryStore, n: int) -> None:
    store.run(batch(event(seq) for seq in range(2, 2 * n, 2)))


def many_events(store: MemoryStore, n: int) -> None:
    store.run(batch(event(seq + 1, event_id=f"key-{seq}") for seq in range(n)))


@pytest.mark.parametrize(
    ("prepare", "few", "group"),
    [
        (many_conflicts, 20, [batch([event(1, type="test.done"), event(2)])]),
        (many_boots, 20, [batch([event(1), event(5000)], sent=stamp("another", 5))]),
        (many_failures, 20, [sync_event(NOON - HOUR), sync_event(NOON - MINUTE, failed=True)]),
        (many_streams, 20, [batch([event(1), event(2, origin=("old", 3))]), batch([event(1)], stream="stream-5")]),
        (many_gaps, 200, [batch([event(3), event(4), event(301)]), batch([event(7)])]),
        (many_gaps, 200, [batch()]),
        (many_events, 20, [batch([event(3), event(5000, event_id="key-4"), event(5001, event_id="key")])]),
    ],
)
def test_what_was_stored_before_costs_nothing(
    prepare: Callable[[MemoryStore, int], None], few: int, group: list[Submission]
) -> None:
    assert cost(prepare, *group, before=few) == cost(prepare, *group, before=1000)


def test_a_plain_continuation_takes_one_exchange() -> None:
    store = MemoryStore()
    store.run(batch([event(1), event(2)]), sync_event(NOON, failed=True, key="a"))
    store.exchanges = 0
    store.run(batch([event(3), event(4)]), batch([event(5)]), sync_event(NOON + 1, key="b"), batch())
    assert store.exchanges == 1
    assert len(store.events) == 5


def test_rows_of_a_batch_are_bounded_by_its_size() -> None:
    store = MemoryStore()
    many_conflicts(store, 50)
    many_gaps(store, 500)
    store.served = 0
    seqs: list[Place] = [(DEVICE, STREAM, seq) for seq in (1, 3, 5)]
    facts = store.fetch(plan([batch((event(seq) for *_, seq in seqs))]))
    assert isinstance(facts, Facts)
    store.run(batch((event(seq) for *_, seq in seqs)))
    assert store.served < 200
