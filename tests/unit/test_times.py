"""The best estimate of when something happened."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_common.models import Stamp
from pisync_receiver.store import IncomingEvent
from pisync_receiver.times import AHEAD_MS, CORRECTED, ESTIMATED, QUALITIES, SYNCED, Best, best_times, epochs
from tests.support.stores.made import NOON, event

MINUTE: Final = 60_000
DAY: Final = 24 * 60 * MINUTE
ARRIVED: Final = NOON + DAY


def claim(at: int, *, boot: str | None = None, up: int | None = None, synced: bool = False) -> IncomingEvent:
    """An event that claims `at`, `up` milliseconds into `boot`."""
    return event(1, occurred_ms=at, boot_id=boot, boottime_ms=up, clock_synced=synced)


def sent(boot: str, up: int) -> Stamp:
    return Stamp(at_ms=0, boot_id=boot, boottime_ms=up, clock_synced=False)


def best(
    *events: IncomingEvent,
    sent: Stamp | None = None,
    known: dict[str, int] | None = None,
    after: int | None = None,
    before: int | None = None,
) -> list[Best]:
    began = epochs(events, sent, ARRIVED, known or {})
    return best_times(events, epochs=began, received_ms=ARRIVED, neighbours=lambda: (after, before))


CASES: Final[dict[str, tuple[list[IncomingEvent], dict[str, Any], list[Best]]]] = {
    "a synchronised clock is believed": (
        [claim(NOON, synced=True)],
        {},
        [(NOON, SYNCED)],
    ),
    "also where the boot is known": (
        [claim(NOON, boot="b", up=MINUTE, synced=True)],
        {"sent": sent("b", DAY)},
        [(NOON, SYNCED)],
    ),
    "a little ahead of its arrival it still is": (
        [claim(ARRIVED + AHEAD_MS, synced=True)],
        {},
        [(ARRIVED + AHEAD_MS, SYNCED)],
    ),
    "far ahead of its arrival it is not": (
        [claim(ARRIVED + AHEAD_MS + 1, synced=True)],
        {},
        [(ARRIVED, ESTIMATED)],
    ),
    "far ahead, but its boot is known": (
        [claim(ARRIVED + 2 * DAY, boot="b", up=MINUTE, synced=True)],
        {"sent": sent("b", 2 * MINUTE)},
        [(ARRIVED - MINUTE, CORRECTED)],
    ),
    "the boot it was sent in": (
        [claim(5, boot="b", up=MINUTE), claim(6, boot="b", up=3 * MINUTE)],
        {"sent": sent("b", 10 * MINUTE)},
        [(ARRIVED - 9 * MINUTE, CORRECTED), (ARRIVED - 7 * MINUTE, CORRECTED)],
    ),
    "a boot that sent something earlier": (
        [claim(5, boot="b", up=MINUTE)],
        {"known": {"b": NOON}},
        [(NOON + MINUTE, CORRECTED)],
    ),
    "the earlier of two beginnings, as a batch can only be late": (
        [claim(5, boot="b", up=MINUTE)],
        {"sent": sent("b", DAY - MINUTE), "known": {"b": NOON}},
        [(NOON + MINUTE, CORRECTED)],
    ),
    "a boot in which the clock was set later": (
        [claim(5, boot="b", up=MINUTE), claim(NOON, boot="b", up=5 * MINUTE, synced=True)],
        {},
        [(NOON - 4 * MINUTE, CORRECTED), (NOON, SYNCED)],
    ),
    "which nobody believes when it is far ahead": (
        [claim(NOON, boot="b", up=MINUTE), claim(ARRIVED + DAY, boot="b", up=2 * MINUTE, synced=True)],
        {},
        [(NOON, ESTIMATED), (ARRIVED, ESTIMATED)],
    ),
    "another boot says nothing": (
        [claim(NOON, boot="a", up=MINUTE)],
        {"sent": sent("b", DAY)},
        [(NOON, ESTIMATED)],
    ),
    "a boot id without boot time says nothing": (
        [claim(NOON, boot="b")],
        {"sent": sent("b", DAY)},
        [(NOON, ESTIMATED)],
    ),
    "nothing known at all": (
        [claim(NOON)],
        {},
        [(NOON, ESTIMATED)],
    ),
    "not after its arrival": (
        [claim(ARRIVED + 1)],
        {},
        [(ARRIVED, ESTIMATED)],
    ),
    "not before what came before": (
        [claim(5)],
        {"after": NOON},
        [(NOON, ESTIMATED)],
    ),
    "not after what comes after": (
        [claim(NOON + MINUTE)],
        {"before": NOON},
        [(NOON, ESTIMATED)],
    ),
    "between its neighbours it stays where it is": (
        [claim(NOON)],
        {"after": NOON - 1, "before": NOON + 1},
        [(NOON, ESTIMATED)],
    ),
    "between known ones in the batch": (
        [claim(NOON, synced=True), claim(5), claim(ARRIVED), claim(NOON + MINUTE, synced=True)],
        {},
        [(NOON, SYNCED), (NOON, ESTIMATED), (NOON + MINUTE, ESTIMATED), (NOON + MINUTE, SYNCED)],
    ),
    "a boot weeks in the past moves as a whole": (
        [claim(NOON - 20 * DAY, boot="b", up=1), claim(NOON - 20 * DAY + MINUTE, boot="b", up=2)],
        {"after": NOON},
        [(NOON, ESTIMATED), (NOON + MINUTE, ESTIMATED)],
    ),
    "the next boot moves by itself": (
        [claim(NOON - DAY, boot="a", up=1), claim(NOON + MINUTE, boot="b", up=1)],
        {"after": NOON},
        [(NOON, ESTIMATED), (NOON + MINUTE, ESTIMATED)],
    ),
    "nothing is nothing": ([], {}, []),
}


@pytest.mark.parametrize(("events", "given_", "wanted"), CASES.values(), ids=CASES)
def test_the_best_time(events: list[IncomingEvent], given_: dict[str, Any], wanted: list[Best]) -> None:
    assert best(*events, **given_) == wanted


def test_neighbours_are_asked_only_where_something_is_estimated() -> None:
    def never() -> tuple[None, None]:
        raise AssertionError("asked")

    known = [claim(NOON, synced=True), claim(5, boot="b", up=1)]
    found = best_times(known, epochs={"b": NOON}, received_ms=ARRIVED, neighbours=never)
    assert [QUALITIES[quality] for _, quality in found] == ["synced", "corrected"]


@given(
    claims=st.lists(
        st.tuples(st.integers(-30, 30), st.sampled_from([None, "a", "b"])).map(
            lambda one: claim(NOON + one[0] * DAY, boot=one[1], up=None if one[1] is None else 1)
        ),
        max_size=12,
    ),
    after=st.none() | st.integers(-20, 0).map(lambda days: NOON + days * DAY),
)
def test_estimates_never_go_back_and_never_past_the_arrival(claims: list[IncomingEvent], after: int | None) -> None:
    times = [at for at, _ in best(*claims, after=after)]
    assert times == sorted(times)
    assert all((after or 0) <= at <= ARRIVED for at in times)
