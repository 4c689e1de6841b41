"""The bench sends valid events and prints true verdicts."""

import pytest

from benchmark.lessons import lessons
from benchmark.report import at_least, at_most, percentile
from pisync_common import rules


def test_lessons_are_valid_events_in_the_order_of_their_time() -> None:
    day = list(lessons(5_000, seed=1))

    for lesson in day:
        rules.check_type(lesson.type)
        rules.check_id("learner_id", lesson.learner_id)
        rules.check_object_id(lesson.object_id)
        rules.encode_data(lesson.data)
    assert [lesson.stamp.at_ms for lesson in day] == sorted(lesson.stamp.at_ms for lesson in day)
    assert len({lesson.stamp.boot_id for lesson in day}) == 2


def test_lessons_are_the_same_for_the_same_seed() -> None:
    assert list(lessons(50, seed=1)) == list(lessons(50, seed=1))
    assert list(lessons(50, seed=1)) != list(lessons(50, seed=2))


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "PASS"), (0.7, "PASS"), (0.49, "MISSED")])
def test_figure_passes_at_or_above_its_target(ratio: float, verdict: str) -> None:
    assert at_least("x", "5", "10", ratio, 0.5).line().endswith(verdict)


@pytest.mark.parametrize(("ratio", "verdict"), [(3, "PASS"), (1.2, "PASS"), (3.01, "MISSED")])
def test_figure_passes_at_or_below_its_limit(ratio: float, verdict: str) -> None:
    assert at_most("x", "5", "10", ratio, 3).line().endswith(verdict)


@pytest.mark.parametrize(("values", "p99"), [([1.0], 1.0), ([float(n) for n in range(1000)], 990.0)])
def test_percentile_of_sorted_values(values: list[float], p99: float) -> None:
    assert percentile(values, 99) == p99
