"""Deciding takes work in proportion to what was sent, however much of it shares a key: calls are counted."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from pisync_receiver.domain.submissions import Submission
from tests.support.memory_store import MemoryStore
from tests.support.submissions import DAY, NOON, batch, event, invalid, stamp, sync_event

UUID = "5c1e2f60-7a0b-4f8e-9d57-0a1b2c3d0001"


def calls(work: Callable[[], object]) -> int:
    counted = 0

    def count(frame: object, what: str, argument: object) -> None:
        nonlocal counted
        counted += what in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


GROUPS: dict[str, Callable[[int], list[Submission]]] = {
    "one origin": lambda size: [batch([event(n, note=str(n), origin=("old", 5)) for n in range(1, size + 1)])],
    "one origin and content": lambda size: [batch([event(n, origin=("old", 5)) for n in range(1, size + 1)])],
    "one id": lambda size: [batch([event(n, note=str(n), event_id="quiz") for n in range(1, size + 1)])],
    "one uuid": lambda size: [batch([event(n, event_id=UUID) for n in range(1, size + 1)])],
    "one seq": lambda size: [batch([event(1, note=str(n)) for n in range(size)])],
    "one bad seq": lambda size: [batch([invalid(1, body=str(n)) for n in range(size)])],
    "gaps": lambda size: [batch(range(1, 2 * size, 2)), batch(range(2, 2 * size, 2))],
    "boots": lambda size: [batch([n], sent=stamp(f"b{n}", 5), received_ms=NOON + n * DAY) for n in range(1, size + 1)],
    "streams": lambda size: [batch([1], stream=f"s{n}") for n in range(size)],
    "sync events": lambda size: [sync_event(NOON + n, failed=n % 2 == 0, key="one") for n in range(size)],
    "late successes": lambda size: [sync_event(NOON - n, failed=n % 2 == 0) for n in range(size)],
}


@pytest.mark.parametrize("name", GROUPS)
def test_work_is_in_proportion_to_what_was_sent(name: str) -> None:
    def run(size: int) -> int:
        store: Any = MemoryStore()
        group = GROUPS[name](size)
        return calls(lambda: store.run(*group))

    few, many = run(50), run(500)
    assert many <= 15 * few
