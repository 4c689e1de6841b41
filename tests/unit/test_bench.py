"""The bench's own parts: what it sends is valid, and what it prints is true."""

import pytest

from benchmark.lessons import lessons
from benchmark.measure import percentile
from benchmark.report import at_least, at_most
from pisync_common import rules


def test_lessons_are_valid_events_in_the_order_of_their_time() -> None:
    day = list(lessons(5_000, seed=1))

    for one in day:
        rules.check_type(one.type)
        rules.check_id("learner_id", one.learner_id)
        rules.check_object_id(one.object_id)
        rules.encode_data(one.data)
    assert [one.stamp.at_ms for one in day] == sorted(one.stamp.at_ms for one in day)
    assert len({one.stamp.boot_id for one in day}) == 2


def test_lessons_are_the_same_for_the_same_seed() -> None:
    assert list(lessons(50, seed=1)) == list(lessons(50, seed=1))
    assert list(lessons(50, seed=1)) != list(lessons(50, seed=2))


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "PASS"), (0.7, "PASS"), (0.49, "MISSED")])
def test_a_figure_to_be_reached(ratio: float, verdict: str) -> None:
    assert at_least("x", "5", "10", ratio, 0.5).line().endswith(verdict)


@pytest.mark.parametrize(("ratio", "verdict"), [(3, "PASS"), (1.2, "PASS"), (3.01, "MISSED")])
def test_a_figure_to_stay_below(ratio: float, verdict: str) -> None:
    assert at_most("x", "5", "10", ratio, 3).line().endswith(verdict)


@pytest.mark.parametrize(("values", "p99"), [([1.0], 1.0), ([float(n) for n in range(1000)], 990.0)])
def test_percentile(values: list[float], p99: float) -> None:
    assert percentile(values, 99) == p99
