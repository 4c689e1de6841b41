"""Several receivers write the same devices at once: each event once, true receipts, one winner, no event missed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from pisync_common.models import Receipt
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import CodeCreate, Enroll, Enrolled, Submission
from pisync_receiver.store.postgres import PostgresStore
from tests.support.blocking import every_event
from tests.support.postgres import empty, fresh_database, needs_postgres, on_a_loop, opened, stored_seqs, written
from tests.support.submissions import CRITERIA, NOON, batch, event, sync_event

pytestmark = needs_postgres

UUID = "5c1e3d8e-7a3f-4d57-9c5e-3f9b6a1d2e4f"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@asynccontextmanager
async def four_stores(url: str) -> AsyncIterator[list[PostgresStore]]:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url)) for _ in range(4)]
        empty(url)
        yield stores


async def at_once(stores: list[PostgresStore], make: Callable[[int], Sequence[Submission]]) -> list[list[object]]:
    """Write a group to each store at once; return the outcomes of each."""
    return [list(group) for group in await asyncio.gather(*(s.write(make(n)) for n, s in enumerate(stores)))]


@on_a_loop
async def test_groups_that_share_devices_in_any_order_all_succeed(database: str) -> None:
    def make(number: int) -> list[Submission]:
        devices = [f"pibook-{device}" for device in range(30)]
        if number % 2:
            devices.reverse()
        return [batch(range(1, 11), device=device) for device in devices]

    async with four_stores(database) as stores:
        for _ in range(5):
            outcomes = await at_once(stores, make)
        assert all(isinstance(item, Receipt) and item.watermark == 10 for group in outcomes for item in group)
        for device in range(30):
            assert await stored_seqs(stores[0], device=f"pibook-{device}") == list(range(1, 11))


@on_a_loop
async def test_first_of_two_versions_stands_and_the_others_are_conflicts(database: str) -> None:
    async with four_stores(database) as stores:
        outcomes = await at_once(stores, lambda number: [batch([event(1, note=f"version {number}")])])
        receipts = [item for group in outcomes for item in group if isinstance(item, Receipt)]
        assert sorted((item.stored, len(item.rejected)) for item in receipts) == [(0, 1), (0, 1), (0, 1), (1, 0)]
        found = await stores[0].completeness("pibook-1")
        assert found is not None
        assert [(row.stored, row.conflicts) for row in found.streams] == [(1, 3)]


@on_a_loop
async def test_same_uuid_from_many_devices_is_stored_once(database: str) -> None:
    """Devices do not share a lock: the primary key of `event_keys` decides, and the others look again."""
    async with four_stores(database) as stores:
        for turn in range(5):
            uuid = UUID[:-1] + str(turn)
            outcomes = await at_once(
                stores, lambda number, uuid=uuid: [batch([event(1, event_id=uuid)], device=f"{uuid}-{number}")]  # type: ignore[misc]
            )  # fmt: skip
            receipts = [item for group in outcomes for item in group if isinstance(item, Receipt)]
            assert sorted((item.stored, item.duplicates) for item in receipts) == [(0, 1), (0, 1), (0, 1), (1, 0)]
        assert len(await every_event(stores[0], EventFilter())) == 5


@on_a_loop
async def test_idempotency_key_used_at_once_gives_the_same_record(database: str) -> None:
    async with four_stores(database) as stores:
        outcomes = await at_once(stores, lambda number: [sync_event(NOON, failed=True, key="k")])
        assert len({item.id for group in outcomes for item in group if isinstance(item, StoredSyncEvent)}) == 1
        device = await stores[0].device("pibook-1", criteria=CRITERIA)
        assert device is not None
        assert device.total_failures == 1


@on_a_loop
async def test_failures_that_arrive_at_once_are_all_counted(database: str) -> None:
    async with four_stores(database) as stores:
        await at_once(stores, lambda number: [sync_event(NOON + number * 100 + n, failed=True) for n in range(25)])
        device = await stores[0].device("pibook-1", criteria=CRITERIA)
        assert device is not None
        assert (device.consecutive_failures, device.total_failures) == (100, 100)


def enrollments(device: str) -> Callable[[int], list[Submission]]:
    """An enrollment for each store; `device` may contain the store's number as {}."""
    return lambda number: [
        Enroll(
            code_hash="code",
            device_id=device.format(number),
            fallback_device_id="",
            token_hash=f"t-{number}",
            at_ms=NOON,
        )
    ]


@on_a_loop
async def test_last_use_of_a_code_lets_in_one_device(database: str) -> None:
    async with four_stores(database) as stores:
        await written(stores[0], CodeCreate(code_hash="code", at_ms=NOON, expires_ms=NOON + 1000))
        outcomes = [item for group in await at_once(stores, enrollments("d-{}")) for item in group]
        assert sum(isinstance(item, Enrolled) for item in outcomes) == 1
        assert len((await stores[0].devices(criteria=CRITERIA)).rows) == 1


@on_a_loop
async def test_devices_that_enroll_at_once_with_two_codes_do_not_share_an_id(database: str) -> None:
    async with four_stores(database) as stores:
        for number in range(4):
            code = CodeCreate(code_hash=f"code-{number}", at_ms=NOON, expires_ms=NOON + 1000)
            await written(stores[0], code)

        def wish(number: int) -> list[Submission]:
            return [
                Enroll(
                    code_hash=f"code-{number}",
                    device_id="same",
                    fallback_device_id="",
                    token_hash=f"t-{number}",
                    at_ms=NOON,
                )
            ]

        outcomes = [item for group in await at_once(stores, wish) for item in group]
        assert sorted(type(item).__name__ for item in outcomes) == ["DeviceIdTaken"] * 3 + ["Enrolled"]
        assert sorted(code.uses_left for code in await stores[0].codes()) == [0, 1, 1, 1]


@on_a_loop
async def test_reader_that_continues_from_the_last_event_misses_none(database: str) -> None:
    async with four_stores(database) as stores:
        seen: list[int] = []
        done = asyncio.Event()

        async def read() -> None:
            ended = False
            while not ended:
                ended = done.is_set()
                new = await every_event(stores[0], EventFilter(), after=seen[-1] if seen else 0)
                seen.extend(record.id for record in new)

        async def write(number: int) -> None:
            for turn in range(60):
                seqs = range(turn * 20 + 1, turn * 20 + 21)
                devices = [f"{number}-{device}" for device in range(1 + (turn + number) % 3)]
                await stores[number].write([batch(seqs, device=device) for device in devices])

        reader = asyncio.create_task(read())
        await asyncio.gather(*map(write, range(4)))
        done.set()
        await reader
        everything = [record.id for record in await every_event(stores[0], EventFilter())]
        assert seen == everything == sorted(set(everything))
        assert len(everything) == everything[-1]
