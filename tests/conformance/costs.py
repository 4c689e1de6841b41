"""What a request costs is bounded by the request, not by what was sent before: the same after 25 and after 1,000 of
everything. Statements, rows and, where the engine can tell, its own work are counted."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pisync_common.limits import RECEIPT_RANGES, SEQ_MAX
from pisync_common.models import Stamp
from pisync_receiver.domain.batches import CONFLICTS_KEPT
from pisync_receiver.domain.records import MISSING_RANGES, EventFilter
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, Enroll, Submission, TokenCreate
from pisync_receiver.store import Store
from pisync_receiver.store.cursors import encode
from tests.support.blocking import BlockingStore, send
from tests.support.submissions import CRITERIA, DAY, NOON, batch, event, invalid, sync_event

SIZES: Final = (25, 1000)
WORK: Final = 150
"""Steps that may be added up to a cap, such as FAILURES_COUNTED; a growing cost would pass it with SIZES."""
UUIDS: Final = [f"5c1e2f60-7a0b-4f8e-9d57-0a1b2c3d{number:04x}" for number in range(50)]
LATER: Final = 10**13


@dataclass(frozen=True)
class Costs:
    """A store with a history, and what its database was asked for."""

    store: BlockingStore
    counted: list[int]
    """Statements, rows, the engine's own steps (0 where it does not tell), and transactions."""

    def of(self, ask: Callable[[Store], Coroutine[Any, Any, Any]]) -> tuple[int, int, int, int]:
        self.counted[:] = [0, 0, 0, 0]
        self.store.run(ask(self.store.store))
        statements, rows, steps, transactions = self.counted
        return statements, rows, steps, transactions


def alive(boot: int, at_ms: int) -> Stamp:
    return Stamp(at_ms=at_ms, boot_id=f"boot-{boot}", boottime_ms=5, clock_synced=True)


def history(store: BlockingStore, size: int) -> None:
    """A device with `size` boots, conflicts, gaps, rejections, streams, ids, failures, tokens, moves and neighbours
    that used its code."""
    batches = [
        batch([2 * number + 5], sent=alive(number, NOON), received_ms=NOON + number * DAY) for number in range(size)
    ]
    for first in range(0, size, 100):
        store.write(batches[first : first + 100])
    for first in range(0, size, 500):
        conflicts = [event(5, note=f"version {number}") for number in range(first, min(size, first + 500))]
        bad = [invalid(10**6 + number, body="x") for number in range(first, min(size, first + 500))]
        send(store, batch(conflicts, received_ms=NOON + size * DAY))
        send(store, batch(bad, received_ms=NOON + size * DAY))
    store.write([batch([1], stream=f"other-{number}", received_ms=NOON) for number in range(size)])
    ids = [event(10**7 + number, event_id=f"id-{number}") for number in range(size)]
    send(store, batch(ids, received_ms=NOON + size * DAY))
    store.write([sync_event(NOON + 10 + n, failed=True, received_ms=NOON + DAY) for n in range(size)])
    store.write([CodeCreate(code_hash="code", at_ms=NOON, expires_ms=LATER, uses=10**6)])
    store.write([enroll(f"neighbour-{number}") for number in range(size)])
    store.write([TokenCreate(scope="viewer", token_hash=f"viewer-{number}", at_ms=NOON) for number in range(size)])
    store.write([DeviceChange(device_id="pibook-1", site=f"School {n}", at_ms=NOON + n * DAY) for n in range(size)])


def enroll(device: str) -> Enroll:
    return Enroll(code_hash="code", device_id=device, fallback_device_id="x", token_hash=f"t-{device}", at_ms=NOON)


SUBMISSIONS: Final[dict[str, Submission]] = {
    "new": batch(range(2 * 10**7, 2 * 10**7 + 50), sent=alive(10**6, NOON), received_ms=LATER),
    "far ahead": batch([SEQ_MAX], received_ms=LATER),
    "repeated": batch([5, 7, 9], received_ms=LATER),
    "late": batch([6, 8], received_ms=LATER),
    "conflict": batch([event(5, note="one more")], received_ms=LATER),
    "many conflicts": batch([event(5, note=f"more {number}") for number in range(100)], received_ms=LATER),
    "invalid": batch([invalid(10)], received_ms=LATER),
    "uuids": batch([event(3 * 10**7 + n, event_id=uuid) for n, uuid in enumerate(UUIDS)], received_ms=LATER),
    "known ids": batch([event(4 * 10**7 + n, event_id=f"id-{n}") for n in range(20)], received_ms=LATER),
    "carried": batch([event(1, origin=("stream-1", 5))], stream="new", received_ms=LATER),
    "one origin": batch([event(n, note=str(n), origin=("stream-1", 5)) for n in range(1, 101)], stream="o"),
    "another stream": batch([1], stream="another", received_ms=LATER),
    "late success": sync_event(NOON + 5, received_ms=LATER),
    "late failure": sync_event(NOON + 5, failed=True, received_ms=LATER),
    "with a key": sync_event(NOON + 5, key="key", received_ms=LATER),
    "enrollment": enroll("newcomer"),
    "enrollment again": enroll("neighbour-3"),
    "token": TokenCreate(scope="device", token_hash="its", device_id="pibook-1", at_ms=NOON),
    "move": DeviceChange(device_id="pibook-1", site="School", at_ms=LATER),
}

LATER_PAGE: Final = encode("device_id", 0, "", "a", NOON, 1000)
"""The first page of devices counts them all."""
READINGS: Final[dict[str, tuple[Callable[[Store], Coroutine[Any, Any, Any]], int]]] = {
    "device": (lambda store: store.device("pibook-1", criteria=CRITERIA), 1),
    "devices": (lambda store: store.devices(criteria=CRITERIA, limit=10, cursor=LATER_PAGE), 11),
    "events of a device": (lambda store: store.events(EventFilter(device_id="pibook-1"), limit=10), 11),
    "events": (lambda store: store.events(EventFilter(), limit=10), 11),
    "history": (lambda store: store.history("pibook-1", limit=10), 11),
    "rejected": (lambda store: store.rejected("pibook-1", limit=10), 11),
    "repeated failures": (lambda store: store.failures(limit=10), 12),
    "token": (lambda store: store.tokens_by_hash(["viewer-3"]), 1),
}
"""What is asked, and the most rows that it may fetch."""


class CostConformance:
    """Inherit with a fixture `measured`: Costs by the size of the history, in ascending order."""

    @pytest.mark.parametrize("name", SUBMISSIONS)
    def test_write_does_not_depend_on_the_past(self, measured: dict[int, Costs], name: str) -> None:
        async def write(store: Store) -> None:
            (outcome,) = await store.write([SUBMISSIONS[name]])
            assert not isinstance(outcome, Exception)

        few, many = (costs.of(write) for costs in measured.values())
        (statements, rows, work, _), (more_statements, more_rows, more_work, _) = few, many
        assert more_statements == statements
        # A receipt lists up to a hundred missing ranges, of which a batch can close some; a seq has up to ten versions.
        assert more_rows <= rows + 2 * RECEIPT_RANGES + CONFLICTS_KEPT
        assert more_work <= 2 * work + WORK

    @pytest.mark.parametrize("name", READINGS)
    def test_page_does_not_depend_on_the_past(self, measured: dict[int, Costs], name: str) -> None:
        ask, limit = READINGS[name]
        few, many = (costs.of(ask) for costs in measured.values())
        (statements, _, work, _), (more_statements, more_rows, more_work, _) = few, many
        assert more_statements == statements
        assert more_rows <= limit
        assert more_work <= 2 * work + WORK

    def test_completeness_grows_with_its_answer_alone(self, measured: dict[int, Costs]) -> None:
        (statements, *_), (more_statements, more_rows, *_) = (
            costs.of(lambda store: store.completeness("pibook-1")) for costs in measured.values()
        )
        assert more_statements == statements
        assert more_rows <= SIZES[1] + 10 + MISSING_RANGES + 100  # streams, ranges, rejections

    def test_bad_submission_costs_a_logarithmic_number_of_transactions(self, measured: dict[int, Costs]) -> None:
        group = [batch([1], stream=f"bad-{number}", device="grouped") for number in range(64)]
        group[37] = batch([2**70], stream="refused", device="grouped")

        async def write(store: Store) -> None:
            outcomes = await store.write(group)
            assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [37]

        *_, transactions = measured[SIZES[0]].of(write)
        assert transactions == 1 + 2 * 6, "one for each half of a half"
