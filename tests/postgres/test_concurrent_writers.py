"""Several receivers write the same devices at once: each event once, true receipts, one winner, and nothing missed."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from pisync_common.models import Receipt
from pisync_receiver.store import Enroll, Enrolled, EnrollmentCreate, EventFilter, StoredSyncEvent, Submission
from pisync_receiver.store.postgres import PostgresStore
from tests.support.looped import open_looped
from tests.support.postgres import empty, fresh_database, needs_postgres
from tests.support.stores.made import NOON, batch, event, report, stored_seqs, written

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def opened() -> Iterator[list[PostgresStore]]:
    with fresh_database() as url, ExitStack() as stack:
        yield [stack.enter_context(closing(open_looped(url))) for _ in range(4)]


@pytest.fixture
def stores(opened: list[PostgresStore]) -> list[PostgresStore]:
    empty(opened[0].url.conninfo)
    return opened


def at_once(stores: list[PostgresStore], make: Callable[[int], list[Submission]]) -> list[list[object]]:
    """The outcomes of what each store is given, all started together."""
    start = threading.Barrier(len(stores))

    def write(number: int) -> list[object]:
        submissions = make(number)
        start.wait(30)
        return list(stores[number].write(submissions))

    with ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(write, range(len(stores))))


def test_groups_that_share_devices_in_any_order_never_block_each_other_for_good(stores: list[PostgresStore]) -> None:
    def make(number: int) -> list[Submission]:
        devices = [f"pibook-{one}" for one in range(30)]
        if number % 2:
            devices.reverse()
        return [batch(range(1, 11), device=device) for device in devices]

    for _ in range(5):
        outcomes = at_once(stores, make)
    assert all(isinstance(one, Receipt) and one.watermark == 10 for group in outcomes for one in group)
    for one in range(30):
        assert stored_seqs(stores[0], device=f"pibook-{one}") == list(range(1, 11))


def test_of_two_versions_of_an_event_one_stands_and_the_other_is_a_conflict(stores: list[PostgresStore]) -> None:
    outcomes = at_once(stores, lambda number: [batch([event(1, note=f"version {number}")])])
    receipts = [one for group in outcomes for one in group if isinstance(one, Receipt)]
    assert sorted((one.stored, len(one.rejected)) for one in receipts) == [(0, 1), (0, 1), (0, 1), (1, 0)]
    (row,) = stores[0].completeness("pibook-1")
    assert (row.stored, row.conflicts) == (1, 3)


def test_a_key_used_at_once_gives_all_the_same_record(stores: list[PostgresStore]) -> None:
    outcomes = at_once(stores, lambda number: [report(NOON, failed=True, key="k")])
    ids = {one.id for group in outcomes for one in group if isinstance(one, StoredSyncEvent)}
    assert len(ids) == 1
    device = stores[0].device("pibook-1")
    assert device is not None
    assert device.total_failures == 1


def test_failures_that_arrive_everywhere_at_once_are_all_counted(stores: list[PostgresStore]) -> None:
    at_once(stores, lambda number: [report(NOON + number * 100 + one, failed=True) for one in range(25)])
    device = stores[0].device("pibook-1")
    assert device is not None
    assert (device.consecutive_failures, device.total_failures) == (100, 100)


def test_of_many_devices_one_gets_the_last_use_of_a_code(stores: list[PostgresStore]) -> None:
    made = EnrollmentCreate(code_hash="code", created_ms=NOON, expires_ms=NOON + 1000)
    written(stores[0], made)

    def wish(number: int) -> list[Submission]:
        return [
            Enroll(
                code_hash="code", device_id=f"d-{number}", fallback_device_id="", token_hash=f"t-{number}", at_ms=NOON
            )
        ]

    outcomes = [one for group in at_once(stores, wish) for one in group]
    assert sum(isinstance(one, Enrolled) for one in outcomes) == 1
    assert len(stores[0].devices().rows) == 1


def test_of_many_wishes_for_one_id_one_is_granted(stores: list[PostgresStore]) -> None:
    written(stores[0], EnrollmentCreate(code_hash="code", created_ms=NOON, expires_ms=NOON + 1000, uses=9))

    def wish(number: int) -> list[Submission]:
        return [Enroll(code_hash="code", device_id="same", fallback_device_id="", token_hash=f"t-{number}", at_ms=NOON)]

    outcomes = [one for group in at_once(stores, wish) for one in group]
    assert sum(isinstance(one, Enrolled) for one in outcomes) == 1
    assert stores[0].enrollments()[0].uses_left == 8


def test_who_reads_on_from_the_last_event_it_saw_misses_none(stores: list[PostgresStore]) -> None:
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        last = 0
        while True:
            ended = done.is_set()
            for row in stores[0].iterate_events(EventFilter(), after=last):
                seen.append(row.id)
                last = row.id
            if ended:
                return

    reader = threading.Thread(target=read)
    reader.start()

    def write(number: int) -> None:
        for turn in range(60):
            seqs = range(turn * 20 + 1, turn * 20 + 21)
            stores[number].write([batch(seqs, device=f"{number}-{one}") for one in range(1 + (turn + number) % 3)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    done.set()
    reader.join()
    everything = [row.id for row in stores[0].iterate_events(EventFilter())]
    assert seen == everything == sorted(set(everything))
    assert len(everything) == everything[-1]
