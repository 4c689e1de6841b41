"""The intake of a store that the event loop writes: groups, and when another writer begins."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pisync_receiver.intake import LARGE, PATIENCE_S, Intake, IntakeLimits
from pisync_receiver.logs import REQUEST_ID
from pisync_receiver.store import LoopStore, Reader, Store


class LoopGated:
    """A store with two writers whose commits wait until the test lets them go; an outcome is the submission."""

    writers = 2

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.blocked: list[object] = []
        self.gates: list[asyncio.Future[None]] = []
        self.closed = 0

    def write(self, submissions: Sequence[Any]) -> list[Any]:
        self.blocked.append(submissions)
        return list(submissions)

    async def awrite(self, submissions: Sequence[Any]) -> list[Any]:
        self.groups.append(list(submissions))
        self.gates.append(asyncio.get_running_loop().create_future())
        await self.gates[-1]
        return [REQUEST_ID.get() if value == "id" else value for value in submissions]

    async def aready(self) -> None:
        await self.awrite([])

    async def aclose(self) -> None:
        self.closed += 1

    async def begun(self, count: int) -> None:
        """A few rounds of the loop are enough for whatever shall begin, and for nothing else to happen."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(self.groups) == count


def play_on_loop(scene: Callable[[Intake, LoopGated], Awaitable[None]]) -> LoopGated:
    store = LoopGated()

    async def main() -> None:
        intake = Intake(as_loop_store(store), limits=IntakeLimits(), clock=lambda: 5.0, random=lambda: 0.0)
        intake.start()
        await scene(intake, store)
        closing = asyncio.create_task(intake.close())
        while not closing.done():
            await asyncio.sleep(0)
            for gate in store.gates:
                if not gate.done():
                    gate.set_result(None)

    asyncio.run(main())
    assert store.closed == 1
    return store


def as_loop_store(store: LoopGated) -> Any:
    """Everything that a query may ask for is there, and nobody asks."""
    for name in vars(LoopStore) | vars(Store) | vars(Reader):
        if not name.startswith("_") and not hasattr(store, name):
            setattr(store, name, lambda: None)
    return store


def test_on_the_loop_what_comes_together_is_one_group_and_what_comes_meanwhile_is_the_next() -> None:
    async def scene(intake: Intake, store: LoopGated) -> None:
        first = [submit(intake, value) for value in "abc"]
        await store.begun(1)
        rest = [submit(intake, value) for value in "de"]
        await store.begun(1)
        assert not any(future.done() for future in (*first, *rest))
        store.gates[0].set_result(None)
        assert await asyncio.gather(*first) == ["a", "b", "c"]
        await store.begun(2)
        store.gates[1].set_result(None)
        assert await asyncio.gather(*rest) == ["d", "e"]

    store = play_on_loop(scene)
    assert store.groups == [["a", "b", "c"], ["d", "e"]]
    assert store.blocked == []


def test_a_large_submission_lets_another_writer_begin_at_once() -> None:
    async def scene(intake: Intake, store: LoopGated) -> None:
        submit(intake, "a")
        await store.begun(1)
        submit(intake, "b", size=LARGE - 1)
        await store.begun(1)
        submit(intake, "c", size=LARGE)
        await store.begun(2)
        submit(intake, "d", size=LARGE)
        await store.begun(2)

    assert play_on_loop(scene).groups == [["a"], ["b", "c"], ["d"]]


def test_what_has_waited_for_long_lets_another_writer_begin_and_what_just_came_does_not() -> None:
    async def scene(intake: Intake, store: LoopGated) -> None:
        timers = Timers()
        submit(intake, "a")
        await store.begun(1)
        submit(intake, "b")
        store.gates[0].set_result(None)
        await store.begun(2)
        submit(intake, "c")
        timers.go_off()  # it was set for b, and c just came: another look, later
        await store.begun(2)
        timers.go_off()
        await store.begun(3)
        timers.go_off()  # nobody is left to begin
        assert timers.waiting == []
        submit(intake, "d")
        await store.begun(3)
        assert timers.waiting == []

    assert play_on_loop(scene).groups == [["a"], ["b"], ["c"], ["d"]]


class Timers:
    """The running loop's timers, which go off when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        asyncio.get_running_loop().call_later = self._later  # type: ignore[method-assign, assignment]

    def _later(self, seconds: float, function: Callable[..., object], *arguments: object) -> object:
        assert seconds == PATIENCE_S
        self.waiting.append(lambda: function(*arguments))
        return function

    def go_off(self) -> None:
        (timer,) = self.waiting
        self.waiting.clear()
        timer()


def test_what_a_writer_logs_does_not_carry_the_request_that_let_it_begin() -> None:
    async def scene(intake: Intake, store: LoopGated) -> None:
        REQUEST_ID.set("mine")
        stored = submit(intake, "id")
        await store.begun(1)
        store.gates[0].set_result(None)
        assert await stored != "mine"

    play_on_loop(scene)


def submit(intake: Intake, value: Any, size: int = 0) -> "asyncio.Future[Any]":
    return intake.submit(value, size)
