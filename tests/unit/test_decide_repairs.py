"""Estimates become better once a later batch says when their boot began; the work of each batch is bounded."""

import json
from collections.abc import Iterable

import pytest

import pisync_receiver.domain.repairs as repairs
from pisync_common.limits import SEQ_MAX
from pisync_receiver.domain.state import BOOTS_KEPT, Account
from pisync_receiver.domain.submissions import Event, EventBatch
from pisync_receiver.domain.times import CORRECTED, ESTIMATED, SYNCED
from tests.support.memory_store import MemoryStore
from tests.support.submissions import DEVICE, HOUR, MINUTE, NOON, STREAM, batch, event, stamp

WRONG = 1_500_000_000_000
"""What an unset clock showed at the start."""


def wrong(seqs: Iterable[int], boot: str = "b") -> list[Event]:
    """Events of a boot without a clock, one a minute."""
    return [event(seq, occurred_ms=WRONG + seq * MINUTE, boot=(boot, seq * MINUTE)) for seq in seqs]


def right(seq: int, boot: str = "b") -> Event:
    """An event of the same boot, which began at noon, once its clock was synchronised."""
    return event(seq, occurred_ms=NOON + seq * MINUTE, boot=(boot, seq * MINUTE), clock_synced=True)


def later(events: Iterable[Event], hours: int = 24) -> EventBatch:
    """Sent in another boot."""
    return batch(events, sent=stamp("now", hours * HOUR), received_ms=NOON + (hours + 12) * HOUR)


def found(store: MemoryStore) -> dict[int, tuple[int, int]]:
    """Minutes after noon and quality, by seq."""
    return {row.seq: ((row.best_ms - NOON) // MINUTE, row.quality) for row in store.events.values()}


def test_a_later_batch_of_the_same_boot_corrects_estimates() -> None:
    store = MemoryStore()
    store.run(later(wrong([1, 2, 3])))
    assert {quality for _, quality in found(store).values()} == {ESTIMATED}

    store.run(later([*wrong([4]), right(5)]))

    assert found(store) == {**{seq: (seq, CORRECTED) for seq in (1, 2, 3, 4)}, 5: (5, SYNCED)}


def test_a_batch_sent_in_the_boot_itself_corrects_estimates() -> None:
    store = MemoryStore()
    store.run(batch(wrong([1, 2])))
    store.run(batch(wrong([3]), sent=stamp("b", 10 * MINUTE), received_ms=NOON + 10 * MINUTE))
    assert found(store) == {seq: (seq, CORRECTED) for seq in (1, 2, 3)}


def test_an_events_own_time_keeps_its_distance() -> None:
    store = MemoryStore()
    imported = event(1, occurred_ms=WRONG - HOUR, recorded_ms=WRONG + MINUTE, boot=("b", MINUTE))
    browser = event(2, occurred_ms=NOON - MINUTE, recorded_ms=WRONG + 2 * MINUTE, boot=("b", 2 * MINUTE))
    store.run(later([imported, browser]))
    store.run(later([right(3)]))
    assert found(store) == {1: (-60, CORRECTED), 2: (-1, CORRECTED), 3: (3, SYNCED)}


def test_other_boots_keep_their_estimates() -> None:
    store = MemoryStore()
    store.run(later([*wrong([1, 2], "a"), *wrong([3, 4])]))
    store.run(later([right(5)]))
    times = found(store)
    assert [times[seq][1] for seq in (1, 2, 3, 4)] == [ESTIMATED, ESTIMATED, CORRECTED, CORRECTED]
    assert [times[seq][0] for seq in (3, 4)] == [3, 4]


def test_what_a_batch_teaches_is_known_to_the_next() -> None:
    """The clock of a boot may lose its synchronisation again."""
    store = MemoryStore()
    store.run(later([right(1)]))
    store.run(later(wrong([2])))
    assert found(store)[2] == (2, CORRECTED)


def test_the_work_goes_on_with_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "REPAIRED_MAX", 3)
    store = MemoryStore()
    store.run(later([*wrong(range(1, 3), "a"), *wrong(range(3, 11))]))
    store.run(later([right(11)]))
    left = [[seq for seq, (_, quality) in found(store).items() if quality == ESTIMATED]]
    for seq in (12, 13, 14):
        served = store.served
        store.run(later([event(seq, boot=("now", seq * MINUTE))]))
        left.append([seq for seq, (_, quality) in found(store).items() if quality == ESTIMATED])
        assert store.served - served <= 3 + 2
    assert left == [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4], [1, 2], [1, 2]]
    assert store.streams[DEVICE, STREAM].boots.count(",-1]") == 1


def test_two_batches_of_one_group_lose_no_repair() -> None:
    """What the first stores cannot be fetched for the second."""
    store = MemoryStore()
    store.run(later(wrong([1])))
    store.run(later(wrong([2, 3])), later([right(4)]))
    assert [found(store)[seq] for seq in (1, 2, 3)] == [(1, CORRECTED), (2, CORRECTED), (3, CORRECTED)]


def test_a_boot_is_learned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.run(later(wrong([1])))
    store.run(later([right(2)]))
    exchanges = store.exchanges
    store.run(later([right(3)]))
    assert store.exchanges == exchanges + 1, "a plain continuation needs one exchange"


def test_learned_boots_are_few_and_hide_no_boot_that_sent() -> None:
    store = MemoryStore()
    for number in range(1, 40):
        store.run(later([right(number, f"boot-{number}")], hours=number))
    boots = json.loads(store.streams[DEVICE, STREAM].boots)
    assert [name for name, _, mark in boots if mark < 0] == [f"boot-{n}" for n in range(40 - BOOTS_KEPT, 40)]
    assert [name for name, _, mark in boots if mark >= 0] == ["now"]


def test_a_batch_of_many_boots_costs_no_more_than_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    learn = Account.learn

    def noted(self: Account, boot: str, epoch_ms: int, upto: int) -> None:
        learned.append(boot)
        learn(self, boot, epoch_ms, upto)

    store = MemoryStore()
    store.run(later([right(1)]))
    monkeypatch.setattr(Account, "learn", noted)
    store.run(later([right(seq, f"boot-{seq}") for seq in range(2, 500)]))
    assert learned == [f"boot-{seq}" for seq in range(500 - BOOTS_KEPT, 500)]


def test_a_learned_boot_is_no_clone() -> None:
    """A clock that lied about being synchronised puts a boot beside the boot that sends."""
    store = MemoryStore()
    store.run(later([right(1)]))
    lying = event(2, occurred_ms=NOON + 30 * HOUR, boot=("c", MINUTE), clock_synced=True)
    store.run(later([lying], hours=25), later([event(3)], hours=26))
    assert store.devices[DEVICE].cloned_since_ms is None


def test_estimates_of_an_earlier_boot_lie_before_the_boot_that_sends_them() -> None:
    """A clock ahead of the true time."""
    store = MemoryStore()
    ahead = [event(seq, occurred_ms=NOON + 999 * HOUR + seq, boot=("b", seq * MINUTE)) for seq in (1, 2)]
    store.run(batch(ahead, sent=stamp("now", HOUR), received_ms=NOON + 3 * HOUR))
    store.run(batch([event(3, boot=("now", MINUTE))], sent=stamp("now", HOUR), received_ms=NOON + 3 * HOUR))
    assert found(store) == {1: (120, ESTIMATED), 2: (120, ESTIMATED), 3: (121, CORRECTED)}


def test_a_senseless_boot_time_stays_an_estimate() -> None:
    store = MemoryStore()
    store.run(later([event(1, occurred_ms=NOON, boot=("b", SEQ_MAX)), *wrong([2])]))
    store.run(later([right(3)]))
    assert [found(store)[seq][1] for seq in (1, 2)] == [ESTIMATED, CORRECTED]
