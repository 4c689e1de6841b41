"""The intake: groups form by themselves, nobody is answered before the commit, memory and waiting are bounded."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pisync_receiver.errors import Overloaded, StoreUnusable
from pisync_receiver.intake import Intake, IntakeLimits

Scene = Callable[[Intake], Awaitable[None]]


class GatedStore:
    """A store whose commit waits until the test lets it go; the outcome of a submission is its double."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None
        self.threads: set[str] = set()

    def write(self, submissions: Sequence[Any]) -> list[Any]:
        self.groups.append(list(submissions))
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.go.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        return [value if isinstance(value, Exception) else value * 2 for value in submissions]

    def ready(self) -> None:
        self.write([])


class Groups:
    """Hears of groups."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, float]] = []
        self.refusals: list[str] = []

    def group(self, size: int, waited: float, writing: float) -> None:
        self.heard.append((size, waited))

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


def play(
    scene: Scene,
    store: Any,
    limits: IntakeLimits | None = None,
    watcher: Groups | None = None,
    clock: Callable[[], float] = lambda: 5.0,
) -> None:
    async def main() -> None:
        intake = Intake(store, limits=limits or IntakeLimits(), clock=clock, random=lambda: 0.0, watcher=watcher)
        intake.start()
        try:
            await scene(intake)
        finally:
            store.go.release(1000)
            await intake.close()

    asyncio.run(main())


async def entered(store: GatedStore) -> None:
    assert await asyncio.to_thread(store.entered.acquire, timeout=30)


def submit(intake: Intake, value: Any, size: int = 0) -> "asyncio.Future[Any]":
    return intake.submit(value, size)


def test_what_arrives_while_the_disk_is_busy_is_the_next_group() -> None:
    store, groups = GatedStore(), Groups()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await entered(store)
        rest = [submit(intake, value) for value in (2, 3, 4)]
        store.go.release()
        assert await first == 2
        store.go.release()
        assert await asyncio.gather(*rest) == [4, 6, 8]

    play(scene, store, watcher=groups)
    assert store.groups == [[1], [2, 3, 4]]
    assert [size for size, _ in groups.heard] == [1, 3]


def test_nobody_is_answered_before_the_commit() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        future = submit(intake, 1)
        await entered(store)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not future.done()
        store.go.release()
        assert await future == 2

    play(scene, store)


def test_a_group_is_bounded_in_number_and_in_bytes() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        futures = [submit(intake, 0)]
        await entered(store)
        futures += [submit(intake, value) for value in (1, 2, 3, 4)]
        futures += [submit(intake, 5, size=600), submit(intake, 6, size=600), submit(intake, 7)]
        store.go.release(100)
        await asyncio.gather(*futures)

    play(scene, store, IntakeLimits(group=3, group_bytes=1000))
    assert store.groups == [[0], [1, 2, 3], [4, 5], [6, 7]]


def test_a_failed_commit_acknowledges_nobody_and_the_next_group_is_tried() -> None:
    store = GatedStore()
    store.error = StoreUnusable("disk full")
    store.go.release(2)

    async def scene(intake: Intake) -> None:
        for future in (submit(intake, 1), submit(intake, 2)):
            with pytest.raises(StoreUnusable):
                await future
        store.error = None
        store.go.release()
        assert await submit(intake, 3) == 6

    play(scene, store)


def test_one_submissions_error_is_its_own() -> None:
    store = GatedStore()
    store.go.release(10)

    async def scene(intake: Intake) -> None:
        good, bad, fine = submit(intake, 1), submit(intake, ValueError("mine")), submit(intake, 2)
        assert (await good, await fine) == (2, 4)
        with pytest.raises(ValueError, match="mine"):
            await bad

    play(scene, store)


def test_a_cancelled_request_does_not_break_its_group() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        async def request(value: int) -> int:
            return int(await submit(intake, value))

        tasks = [asyncio.create_task(request(value)) for value in (1, 2, 3)]
        await entered(store)
        tasks[0].cancel()
        tasks[1].cancel()
        store.go.release(100)
        assert await tasks[2] == 6
        for task in tasks[:2]:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert intake.waiting == 0

    play(scene, store)
    assert sorted(value for group in store.groups for value in group) == [1, 2, 3]


def test_a_full_intake_refuses_at_once_and_takes_work_again_when_it_has_drained() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        taken = [submit(intake, 1), submit(intake, 2)]
        with pytest.raises(Overloaded) as refused:
            submit(intake, 3)
        assert refused.value.retry_after >= 1
        store.go.release(100)
        await asyncio.gather(*taken)
        assert await submit(intake, 4) == 8

    groups = Groups()
    play(scene, store, IntakeLimits(waiting=2), groups)
    assert groups.refusals == ["waiting"]
    assert 3 not in [value for group in store.groups for value in group]


def test_waiting_bytes_are_bounded_and_given_back() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1, size=60)
        with pytest.raises(Overloaded):
            submit(intake, 2, size=41)
        store.go.release(100)
        await first
        await submit(intake, 3, size=100)

    groups = Groups()
    play(scene, store, IntakeLimits(waiting_bytes=100), groups)
    assert groups.refusals == ["bytes"]


def test_whose_turn_comes_too_late_is_refused_unstored_and_gives_its_place_back() -> None:
    store, groups, now = GatedStore(), Groups(), [5.0]

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await entered(store)
        late = [submit(intake, value, 10) for value in (2, 3)]
        now[0] += 20
        in_time = submit(intake, 4)
        now[0] += 15
        store.go.release()
        await entered(store)
        assert not in_time.done()
        for refused in late:
            with pytest.raises(Overloaded, match="nothing was stored"):
                await refused
        store.go.release()
        assert (await first, await in_time) == (2, 8)
        assert intake.waiting == 0
        await submit_when_free(intake)

    async def submit_when_free(intake: Intake) -> None:
        store.go.release()
        assert await submit(intake, 5, 20) == 10

    limits = IntakeLimits(waiting_s=30, waiting_bytes=20)
    play(scene, store, limits, watcher=groups, clock=lambda: now[0])
    assert store.groups == [[1], [4], [5]]
    assert groups.refusals == ["time", "time"]


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await entered(store)
        second = submit(intake, 2)
        closing = asyncio.create_task(intake.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            submit(intake, 3)
        store.go.release(100)
        await closing
        assert (await first, await second) == (2, 4)
        await intake.close()

    play(scene, store)
    assert store.groups == [[1], [2]]


def test_what_comes_when_a_writer_has_found_nothing_more_and_not_yet_said_so_is_written() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        loop, said = asyncio.get_running_loop(), threading.Semaphore(0)
        say = loop.call_soon_threadsafe

        def heard(*what: Any) -> asyncio.Handle:
            handle = say(*what)
            said.release()
            return handle

        first = submit(intake, 1)
        await entered(store)
        loop.call_soon_threadsafe = heard  # type: ignore[method-assign, assignment]
        store.go.release(2)
        for _ in ("its group is stored", "nothing more waits"):  # the loop itself has no turn meanwhile
            assert said.acquire(timeout=30)
        second = submit(intake, 2)
        assert (await asyncio.wait_for(first, 10), await asyncio.wait_for(second, 10)) == (2, 4)

    play(scene, store)


def test_closing_waits_until_everyone_was_told_of_the_last_commit() -> None:
    store, telling, told = GatedStore(), asyncio.Event(), asyncio.Event()
    store.go.release(2)

    async def committed(outcomes: Sequence[object]) -> None:
        telling.set()
        await told.wait()

    async def main() -> None:
        blocking: Any = store
        intake = Intake(blocking, limits=IntakeLimits(), clock=lambda: 5.0, random=lambda: 0.0, committed=committed)
        intake.start()
        future = submit(intake, 1)
        closing = asyncio.create_task(intake.close())
        await telling.wait()
        await asyncio.wrap_future(intake._thread.submit(int))  # its turn comes when the writer has ended
        for _ in range(10):
            await asyncio.sleep(0)
        assert [closing.done(), future.done()] == [False, False]
        told.set()
        await closing
        assert future.done()

    asyncio.run(main())


def test_who_asks_for_readiness_is_told_after_a_write_of_its_own_in_its_turn() -> None:
    store, groups = GatedStore(), Groups()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await entered(store)
        before = submit(intake, 2)
        asked = asyncio.create_task(intake.ready())
        await asyncio.sleep(0)
        after = submit(intake, 3)
        store.go.release(2)
        await asyncio.gather(first, before)
        await entered(store)
        await entered(store)
        assert not asked.done()
        store.go.release(100)
        await asyncio.gather(asked, after)
        store.error = StoreUnusable("disk full")
        with pytest.raises(StoreUnusable):
            await intake.ready()

    play(scene, store, watcher=groups)
    assert store.groups == [[1], [2], [], [3], []]
    assert len(store.threads) == 1
    assert [size for size, _ in groups.heard] == [1, 1, 1]


def test_readiness_is_let_in_where_everything_else_is_refused_until_the_intake_closes() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        taken = submit(intake, 1)
        with pytest.raises(Overloaded):
            submit(intake, 2)
        store.go.release(100)
        await intake.ready()
        assert await taken == 2
        await intake.close()
        with pytest.raises(Overloaded):
            await intake.ready()

    play(scene, store, IntakeLimits(waiting=1))
