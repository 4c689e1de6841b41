"""Ranges of numbers: what is missing, and what is left of it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.domain.state import runs, without


@given(numbers=st.sets(st.integers(1, 60)))
def test_runs_hold_exactly_their_numbers(numbers: set[int]) -> None:
    found = runs(sorted(numbers))
    assert [number for first, last in found for number in range(first, last + 1)] == sorted(numbers)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("run", "rest"),
    [((3, 4), [(1, 2), (5, 9)]), ((1, 4), [(5, 9)]), ((5, 9), [(1, 4)]), ((1, 9), []), ((2, 8), [(1, 1), (9, 9)])],
)
def test_gap_without_a_run(run: tuple[int, int], rest: list[tuple[int, int]]) -> None:
    assert without((1, 9), run) == rest
