"""Two versions that say the same, and ranges of numbers."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.store.content import body_of, canonical, canonical_body, content_of, same
from pisync_receiver.store.ranges import runs, without
from tests.support.stores.made import event

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.dictionaries(st.text(max_size=3), json_values, max_size=4), ascii_only=st.booleans())
def test_data_written_anew_says_the_same(data: dict[str, object], ascii_only: bool) -> None:
    anew = json.dumps(dict(reversed(data.items())), indent=1, ensure_ascii=ascii_only)
    assert same(content_of(event(1, data=json.dumps(data))), content_of(event(1, data=anew)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("0", "false"),
        ("0", "null"),
        ("1", '"1"'),
        ("9007199254740993", "9007199254740992"),
        ("[1,2]", "[2,1]"),
        ('"a"', '"A"'),
        ("{}", "[]"),
    ],
)
def test_values_that_differ(one: str, other: str) -> None:
    assert not same(content_of(event(1, data=f'{{"x":{one}}}')), content_of(event(1, data=f'{{"x":{other}}}')))


@given(data=st.none() | st.dictionaries(st.text(max_size=3), json_values, max_size=3))
def test_a_kept_body_is_the_same_version(data: dict[str, object] | None) -> None:
    one = event(7, data=None if data is None else json.dumps(data), boot_id="b", boottime_ms=5, origin=("stream-0", 3))
    body = json.loads(body_of(one))
    assert (body["seq"], body["origin"]) == (7, {"stream": "stream-0", "seq": 3})
    assert canonical_body(body_of(one)) == canonical(content_of(one))


@given(numbers=st.sets(st.integers(1, 60)))
def test_runs_hold_exactly_their_numbers(numbers: set[int]) -> None:
    found = runs(sorted(numbers))
    assert [number for first, last in found for number in range(first, last + 1)] == sorted(numbers)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("run", "rest"),
    [((3, 4), [(1, 2), (5, 9)]), ((1, 4), [(5, 9)]), ((5, 9), [(1, 4)]), ((1, 9), []), ((2, 8), [(1, 1), (9, 9)])],
)
def test_a_gap_without_a_run(run: tuple[int, int], rest: list[tuple[int, int]]) -> None:
    assert without((1, 9), run) == rest
