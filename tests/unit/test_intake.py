"""The intake: group commit, answers only after it, bounds on memory and waiting, Retry-After."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pisync_receiver.errors import Overloaded, StoreUnusable
from pisync_receiver.intake import PATIENCE_S, RETRY_AFTER_MAX, Intake, IntakeLimits, RetryAfter
from pisync_receiver.logs import REQUEST

Scene = Callable[[Intake], Awaitable[None]]


class GatedStore:
    """A store whose commits wait until the test lets them go; the outcome of a submission is its double."""

    def __init__(self, writers: int = 1) -> None:
        self.writers = writers
        self.groups: list[list[Any]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.open = False
        self.error: BaseException | None = None
        self.request_ids: list[str] = []

    async def write(self, submissions: Sequence[Any]) -> list[Any]:
        self.groups.append(list(submissions))
        self.request_ids.append(REQUEST.get()[0])
        self.gates.append(asyncio.get_running_loop().create_future())
        if not self.open:
            await self.gates[-1]
        if self.error is not None:
            raise self.error
        return [value if isinstance(value, Exception) else value * 2 for value in submissions]

    async def ready(self) -> None:
        await self.write([])

    def let_go(self, group: int | None = None) -> None:
        """Finish one group, or all groups from now on."""
        self.open = self.open or group is None
        for gate in self.gates if group is None else [self.gates[group]]:
            if not gate.done():
                gate.set_result(None)

    async def begun(self, count: int) -> None:
        """Give the loop a few rounds, enough for everything that is ready to run."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(self.groups) == count


class Groups:
    """Collects what a watcher is called with."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, float, float]] = []
        self.refusals: list[str] = []

    def group(self, size: int, waited: float, writing: float) -> None:
        self.groups.append((size, waited, writing))

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
        try:
            await scene(intake)
        finally:
            store.let_go()
            await intake.close()

    asyncio.run(main())


def submit(intake: Intake, value: Any, size: int = 0) -> "asyncio.Future[Any]":
    return intake.submit(value, size)


def test_items_that_arrive_during_a_commit_are_the_next_group() -> None:
    store, groups = GatedStore(), Groups()

    async def scene(intake: Intake) -> None:
        first = [submit(intake, value) for value in (1, 2)]
        await store.begun(1)
        rest = [submit(intake, value) for value in (3, 4, 5)]
        await store.begun(1)
        store.let_go(0)
        assert await asyncio.gather(*first) == [2, 4]
        await store.begun(2)
        store.let_go(1)
        assert await asyncio.gather(*rest) == [6, 8, 10]

    play(scene, store, watcher=groups)
    assert store.groups == [[1, 2], [3, 4, 5]]
    assert [size for size, _, _ in groups.groups] == [2, 3]


def test_no_answer_before_the_commit() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        future = submit(intake, 1)
        await store.begun(1)
        assert not future.done()
        store.let_go()
        assert await future == 2

    play(scene, store)


def test_watcher_gets_waiting_and_writing_times() -> None:
    store, groups, now = GatedStore(), Groups(), [5.0]

    async def scene(intake: Intake) -> None:
        submit(intake, 1)
        now[0] += 2
        await store.begun(1)
        now[0] += 3

    play(scene, store, watcher=groups, clock=lambda: now[0])
    assert groups.groups == [(1, 5.0, 3.0)]


def test_group_is_bounded_in_number_and_bytes() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        futures = [submit(intake, 0)]
        await store.begun(len(store.groups) or 1)
        futures += [submit(intake, value) for value in (1, 2, 3, 4)]
        futures += [submit(intake, 5, size=600), submit(intake, 6, size=600), submit(intake, 7)]
        store.let_go()
        await asyncio.gather(*futures)

    play(scene, store, IntakeLimits(group=3, group_bytes=1000))
    assert store.groups == [[0], [1, 2, 3], [4, 5], [6, 7]]


def test_failed_commit_acknowledges_nothing_and_the_next_group_is_tried() -> None:
    store = GatedStore()
    store.error = StoreUnusable("disk full")
    store.let_go()

    async def scene(intake: Intake) -> None:
        for future in (submit(intake, 1), submit(intake, 2)):
            with pytest.raises(StoreUnusable):
                await future
        store.error = None
        store.let_go()
        assert await submit(intake, 3) == 6

    play(scene, store)


def test_error_of_a_submission_is_its_own() -> None:
    store = GatedStore()
    store.let_go()

    async def scene(intake: Intake) -> None:
        good, bad, fine = submit(intake, 1), submit(intake, ValueError("mine")), submit(intake, 2)
        assert (await good, await fine) == (2, 4)
        with pytest.raises(ValueError, match="mine"):
            await bad

    play(scene, store)


def test_cancelled_request_does_not_take_its_submission_back() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        async def request(value: int) -> int:
            return int(await submit(intake, value))

        tasks = [asyncio.create_task(request(value)) for value in (1, 2, 3)]
        await store.begun(len(store.groups) or 1)
        tasks[0].cancel()
        tasks[1].cancel()
        store.let_go()
        assert await tasks[2] == 6
        for task in tasks[:2]:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert intake.waiting == 0

    play(scene, store)
    assert sorted(value for group in store.groups for value in group) == [1, 2, 3]


def test_full_intake_refuses_until_it_has_drained() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        taken = [submit(intake, 1), submit(intake, 2)]
        with pytest.raises(Overloaded) as refused:
            submit(intake, 3)
        assert refused.value.retry_after >= 1
        store.let_go()
        await asyncio.gather(*taken)
        assert await submit(intake, 4) == 8

    groups = Groups()
    play(scene, store, IntakeLimits(waiting=2), groups)
    assert groups.refusals == ["waiting"]
    assert 3 not in [value for group in store.groups for value in group]


def test_pending_bytes_are_bounded_and_released() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1, size=60)
        with pytest.raises(Overloaded):
            submit(intake, 2, size=41)
        store.let_go()
        await first
        await submit(intake, 3, size=100)

    groups = Groups()
    play(scene, store, IntakeLimits(waiting_bytes=100), groups)
    assert groups.refusals == ["bytes"]


def test_item_that_waited_too_long_is_refused_and_not_stored() -> None:
    store, groups, now = GatedStore(), Groups(), [5.0]

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await store.begun(1)
        late = [submit(intake, value, 10) for value in (2, 3)]
        now[0] += 20
        in_time = submit(intake, 4)
        now[0] += 15
        store.let_go(0)
        await store.begun(2)
        assert not in_time.done()
        for refused in late:
            with pytest.raises(Overloaded, match="nothing was stored"):
                await refused
        store.let_go()
        assert (await first, await in_time) == (2, 8)
        assert intake.waiting == 0
        assert await submit(intake, 5, 20) == 10

    play(scene, store, IntakeLimits(waiting_s=30, waiting_bytes=20), groups, lambda: now[0])
    assert store.groups == [[1], [4], [5]]
    assert groups.refusals == ["time", "time"]


def test_closing_finishes_pending_work_and_refuses_more() -> None:
    store, groups = GatedStore(), Groups()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await store.begun(1)
        second = submit(intake, 2)
        closing = asyncio.create_task(intake.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="stopping"):
            submit(intake, 3)
        with pytest.raises(Overloaded, match="stopping"):
            await intake.ready()
        store.let_go()
        await closing
        assert (first.result(), second.result()) == (2, 4)
        await intake.close()

    play(scene, store, watcher=groups)
    assert store.groups == [[1], [2]]
    assert groups.refusals == ["stopping"]


def test_item_that_arrives_as_a_writer_ends_starts_another() -> None:
    store = GatedStore()
    store.let_go()

    async def scene(intake: Intake) -> None:
        for value in range(20):
            future = submit(intake, value)
            for _ in range(value):  # another moment of the writer's end each time
                await asyncio.sleep(0)
            assert await asyncio.wait_for(future, 10) == value * 2

    play(scene, store)


def test_readiness_probe_is_a_group_of_its_own_in_its_turn() -> None:
    store, groups = GatedStore(), Groups()

    async def scene(intake: Intake) -> None:
        first = submit(intake, 1)
        await store.begun(1)
        before = submit(intake, 2)
        probe = asyncio.create_task(intake.ready())
        await asyncio.sleep(0)
        after = submit(intake, 3)
        store.let_go(0)
        await store.begun(2)
        store.let_go(1)
        await asyncio.gather(first, before)
        await store.begun(3)
        assert not probe.done()
        store.let_go()
        await asyncio.gather(probe, after)
        store.error = StoreUnusable("disk full")
        with pytest.raises(StoreUnusable):
            await intake.ready()

    play(scene, store, watcher=groups)
    assert store.groups == [[1], [2], [], [3], []]
    assert [size for size, _, _ in groups.groups] == [1, 1, 1]


def test_full_intake_accepts_a_readiness_probe() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        taken = submit(intake, 1)
        with pytest.raises(Overloaded):
            submit(intake, 2)
        store.let_go()
        await intake.ready()
        assert await taken == 2

    play(scene, store, IntakeLimits(waiting=1))


def test_writer_does_not_log_as_the_request_that_started_it() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        REQUEST.set(("request", None))
        submit(intake, 1)
        await store.begun(1)

    play(scene, store)
    assert store.request_ids == [""]


# Several writers.


class Timers:
    """The running loop's timers, which go off when the test says so."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        asyncio.get_running_loop().call_later = self._later  # type: ignore[method-assign, assignment]

    def _later(self, seconds: float, function: Callable[..., object], *arguments: object) -> object:
        assert seconds == PATIENCE_S
        self.pending.append(lambda: function(*arguments))
        return function

    def go_off(self) -> None:
        (timer,) = self.pending
        self.pending.clear()
        timer()


def test_second_writer_begins_for_an_item_that_waited_and_not_for_a_fresh_one() -> None:
    store = GatedStore(writers=2)

    async def scene(intake: Intake) -> None:
        timers = Timers()
        submit(intake, 1)
        await store.begun(1)
        submit(intake, 2)
        store.let_go(0)
        await store.begun(2)
        submit(intake, 3)
        timers.go_off()  # it was set for 2, and 3 is fresh: look again later
        await store.begun(2)
        timers.go_off()
        await store.begun(3)
        timers.go_off()  # no writer is left to begin
        assert timers.pending == []
        submit(intake, 4)
        await store.begun(3)
        assert timers.pending == []

    play(scene, store)
    assert store.groups == [[1], [2], [3], [4]]


def test_single_writer_sets_no_timer() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        timers = Timers()
        submit(intake, 1)
        await store.begun(1)
        submit(intake, 2)
        assert timers.pending == []

    play(scene, store)


# Retry-After.


def drained(random: float = 0.0) -> RetryAfter:
    """After a long time at a hundred submissions a second."""
    retry_after = RetryAfter(clock=lambda: 0.0, random=lambda: random)
    for _ in range(200):
        retry_after.drained(100, 1.0)
    return retry_after


def test_retry_after_is_the_backlog_over_the_measured_rate() -> None:
    assert drained().next(1000) == 10


def test_each_refused_caller_gets_a_later_turn() -> None:
    retry_after = drained()
    turns = [retry_after.next(1000) for _ in range(1000)]
    assert (turns[0], turns[449], turns[949]) == (10, 15, 20)


def test_jitter_is_added_to_the_turn() -> None:
    assert (drained(0.0).next(1000), drained(0.999999).next(1000)) == (10, 20)


def test_retry_after_is_at_least_a_second_and_bounded() -> None:
    assert drained().next(0) == 1
    slow = RetryAfter(clock=lambda: 0.0, random=lambda: 0.9)
    slow.drained(1, 10_000.0)
    assert slow.next(10**9) == RETRY_AFTER_MAX


async def rounds() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_refusal_takes_its_turn_with_the_group_under_way() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        submit(intake, 1)
        await store.begun(1)
        turns = [asyncio.ensure_future(intake.turn()) for _ in range(3)]
        submit(intake, 2)
        await rounds()
        assert not any(turn.done() for turn in turns)
        store.let_go(0)
        await asyncio.gather(*turns)
        await store.begun(2)

    play(scene, store)
    assert store.groups == [[1], [2]], "a turn is no work for the store"


def test_a_loop_of_refusals_gets_one_turn_a_group() -> None:
    store = GatedStore()
    refused = 0

    async def refuse(intake: Intake) -> None:
        nonlocal refused
        while True:
            await intake.turn()
            refused += 1
            await asyncio.sleep(0)

    async def scene(intake: Intake) -> None:
        submit(intake, 0)
        await store.begun(1)
        loop = asyncio.ensure_future(refuse(intake))
        for group in range(20):
            submit(intake, group)
            await rounds()
            assert refused == group
            store.let_go(group)
            await store.begun(group + 2)
        loop.cancel()

    play(scene, store)


def test_a_turn_is_over_at_once_without_work_and_costs_no_group() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        turn = asyncio.ensure_future(intake.turn())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert turn.done()
        await store.begun(0)

    play(scene, store)


def test_a_turn_ends_when_the_group_fails_and_when_the_intake_closes() -> None:
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        failing = submit(intake, 1)
        await store.begun(1)
        turn = asyncio.ensure_future(intake.turn())
        await rounds()
        store.error = StoreUnusable("disk I/O error")
        store.let_go(0)
        await turn
        with pytest.raises(StoreUnusable):
            await failing
        store.error = None
        submit(intake, 2)
        await store.begun(2)
        turn = asyncio.ensure_future(intake.turn())
        await rounds()
        closing = asyncio.ensure_future(intake.close())
        await turn
        await intake.turn()
        store.let_go()
        await closing

    play(scene, store)


def test_a_store_that_does_not_answer_holds_a_refusal_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pisync_receiver.intake.TURN_S", 0.01)
    store = GatedStore()

    async def scene(intake: Intake) -> None:
        submit(intake, 1)
        await store.begun(1)
        await intake.turn()
        await intake.turn()
        assert not store.gates[0].done()

    play(scene, store)


def test_a_cancelled_commit_fails_its_group_and_no_other() -> None:
    store = GatedStore()
    store.open = True

    async def scene(intake: Intake) -> None:
        store.error = asyncio.CancelledError()
        with pytest.raises(StoreUnusable, match="cancelled"):
            await submit(intake, 1)
        with pytest.raises(StoreUnusable, match="cancelled"):
            await intake.ready()
        store.error = None
        assert await submit(intake, 2) == 4
        assert intake.waiting == 0

    play(scene, store)
