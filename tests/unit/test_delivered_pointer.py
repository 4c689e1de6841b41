"""What a receipt moves: the rule, without a database."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.outbox.delivered_pointer import REWINDS, Held, Rewinds, settled
from pisync_common.limits import RECEIPT_RANGES
from pisync_common.models import Receipt


def receipt(watermark: int, *missing: tuple[int, int]) -> Receipt:
    return Receipt(
        device_id="d",
        stream="s",
        stored=0,
        duplicates=0,
        rejected=(),
        watermark=watermark,
        server_time="",
        missing=missing,
    )


def after(
    delivered: int,
    sent: Sequence[int],
    answer: Receipt,
    *,
    first: int = 1,
    last: int = 1000,
    dead: frozenset[int] = frozenset(),
    before: int = 0,
    allowed: bool = True,
) -> int:
    held = Held(first=first, last=last, dead=dead)
    return settled(delivered, before, list(sent), answer, held, lambda seq: allowed)


FULL_LIST = tuple((n, n) for n in range(2, 2 + 2 * RECEIPT_RANGES, 2))

CASES = {
    "the batch follows: forward to its end": (after(10, range(11, 21), receipt(20)), 20),
    "the batch overlaps: forward to its end": (after(10, range(5, 16), receipt(15)), 15),
    "the batch is old: nothing": (after(10, range(1, 6), receipt(10)), 10),
    "a batch beyond a gap does not hide the gap": (after(10, range(21, 31), receipt(10, (11, 20))), 10),
    "a batch beyond a gap moves nothing, whatever the watermark": (after(10, range(21, 31), receipt(30)), 10),
    "the watermark alone never moves forward": (after(10, range(11, 13), receipt(500)), 12),
    "a probe in order: nothing": (after(10, [], receipt(10)), 10),
    "a probe with a watermark beyond: nothing": (after(10, [], receipt(90)), 10),
    "restored receiver, probe: back": (after(900, [], receipt(100)), 100),
    "restored receiver, probe, part held": (after(900, [], receipt(100), first=500), 499),
    "restored receiver, probe, nothing held": (after(900, [], receipt(100), first=901, last=900), 900),
    "restored receiver, batch: back to what it names": (after(900, range(901, 911), receipt(100, (101, 900))), 100),
    "named, part held": (after(900, range(901, 911), receipt(100, (101, 900)), first=500), 499),
    "named, none held: forward": (after(900, range(901, 911), receipt(100, (101, 400)), first=500), 910),
    "named twice, the lower not held": (
        after(900, range(901, 911), receipt(100, (101, 400), (600, 610)), first=500), 599,
    ),
    "ranges out of order": (after(900, range(901, 911), receipt(100, (600, 610), (550, 560)), first=500), 549),
    "unnamed: from the watermark": (after(900, range(901, 911), receipt(890)), 890),
    "set aside here: not lacking": (after(20, [21], receipt(16, (17, 17)), dead=frozenset({17})), 21),
    "set aside, and another beside it": (after(20, [21], receipt(16, (17, 18)), dead=frozenset({17})), 17),
    "a probe that names nothing held: look with one event": (after(900, [], receipt(49, (50, 60)), first=500), 899),
    "a full list of what is not held, watermark fell": (
        after(900, [901], receipt(1, *FULL_LIST), first=500, before=900), 499,
    ),
    "a full list of what is not held, watermark as before": (
        after(900, [901], receipt(1, *FULL_LIST), first=500, before=1), 901,
    ),
    "not allowed: forward all the same": (after(900, [901], receipt(100), allowed=False), 901),
    "ranges beyond what was sent are not believed": (after(5, [6], receipt(5, (7, 900))), 6),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_rule_moves_the_pointer(case: str) -> None:
    found, expected = CASES[case]
    assert found == expected


def test_delivered_goes_back_to_an_event_once_a_run() -> None:
    rewinds = Rewinds()
    assert [rewinds.allow(5), rewinds.allow(5), rewinds.allow(6)] == [True, False, True]
    rewinds.begin_run()
    assert rewinds.allow(5)


def test_delivered_goes_back_a_bounded_number_of_times_a_run() -> None:
    rewinds = Rewinds()
    assert sum(rewinds.allow(seq) for seq in range(1000)) == REWINDS


seqs = st.integers(0, 60)
ranges = st.lists(st.tuples(seqs, seqs), max_size=4)


@given(answers=st.lists(st.tuples(seqs, ranges), max_size=400), first=st.integers(1, 40), batch=st.integers(1, 9))
def test_a_run_ends_whatever_a_receiver_answers(
    answers: list[tuple[int, list[tuple[int, int]]]], first: int, batch: int
) -> None:
    """Each batch is answered by anything at all; after all answers, silence and agreement."""
    last, delivered, watermark = 40, 40, 40
    held = Held(first=first, last=last)
    rewinds = Rewinds()
    steps = 0
    probe = True
    while probe or delivered < last:
        sent = [] if probe else list(range(max(delivered + 1, first), min(delivered + batch, last) + 1))
        probe = False
        if not sent and delivered < first - 1:
            sent = list(range(first, min(first + batch - 1, last) + 1))
        low, missing = answers[steps] if steps < len(answers) else (last, [])
        delivered = settled(delivered, watermark, sent, receipt(low, *missing), held, rewinds.allow)
        watermark = low
        steps += 1
        assert steps <= (REWINDS + 1) * (last + 1) + 1
        assert first - 1 <= delivered <= last or delivered == last


@given(lost=st.sets(st.integers(1, 40), max_size=40), first=st.integers(1, 41), batch=st.integers(1, 9))
def test_an_honest_receiver_gets_back_all_that_is_held(lost: set[int], first: int, batch: int) -> None:
    """It has everything but `lost`; one probe, and what follows from it."""
    last = 40
    stored = set(range(1, last + 1)) - lost
    held = Held(first=first, last=last)
    rewinds = Rewinds()

    def answer() -> Receipt:
        missing = sorted(set(range(1, max(stored, default=0) + 1)) - stored)
        low = missing[0] - 1 if missing else max(stored, default=0)
        return receipt(low, *[(seq, seq) for seq in missing])

    delivered = settled(last, last, [], answer(), held, rewinds.allow)
    while delivered < last:
        sent = range(delivered + 1, min(delivered + batch, last) + 1)
        stored |= set(sent)
        delivered = settled(delivered, last, sent, answer(), held, rewinds.allow)
    assert set(range(first, last + 1)) <= stored
