"""Two school days, as `scripts/soak` plays them for an hour."""

import time
from pathlib import Path

import pytest

from tests.support.school_term import term


# The proxy breaks connections at any moment; asyncio then leaves some of its own transports to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*_SelectorTransport:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_everything_arrives_on_thursday_and_is_stored_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with term(tmp_path, seed=7, devices=1) as school:
        school.play_week(("Wednesday", "Thursday"))
        verdict = school.end(7, began)

    assert verdict.good, verdict.table()
    assert verdict.acknowledged == school.recorded > 150
    assert school.resources.leaks == []
