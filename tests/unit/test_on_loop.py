"""Code that blocks, on the event loop: it waits, others go on, and what it waited for comes back, errors too."""

import asyncio
from collections.abc import Callable

import pytest

from pisync_receiver.store.postgres import on_loop


def test_while_one_waits_the_loop_and_others_go_on() -> None:
    done: list[str] = []

    def work(name: str, gate: "asyncio.Future[str]") -> str:
        done.append(f"{name} began")
        done.append(on_loop.wait_for(answer(gate)))
        done.append(on_loop.wait_for(answer(gate)))
        return name

    async def answer(gate: "asyncio.Future[str]") -> str:
        return await gate

    async def scene() -> list[str]:
        loop = asyncio.get_running_loop()
        slow, quick = loop.create_future(), loop.create_future()
        tasks = [asyncio.create_task(on_loop.run(work, name, gate)) for name, gate in (("a", slow), ("b", quick))]
        await asyncio.sleep(0)
        quick.set_result("quick")
        await tasks[1]
        assert not tasks[0].done()
        slow.set_result("slow")
        return [await task for task in tasks]

    assert asyncio.run(scene()) == ["a", "b"]
    assert done == ["a began", "b began", "quick", "quick", "slow", "slow"]


async def fails() -> None:
    await asyncio.sleep(0)
    raise OSError("the line is dead")


def test_what_fails_while_it_waits_is_raised_where_it_waits_and_can_be_dealt_with_there() -> None:
    def work() -> str:
        with pytest.raises(OSError, match="the line is dead"):
            on_loop.wait_for(fails())
        on_loop.sleep(0)
        return "went on"

    assert asyncio.run(on_loop.run(work)) == "went on"


@pytest.mark.parametrize("raising", [lambda: on_loop.wait_for(fails()), lambda: int("x")], ids=["waiting", "at once"])
def test_what_it_raises_is_raised(raising: Callable[[], object]) -> None:
    with pytest.raises((OSError, ValueError)):
        asyncio.run(on_loop.run(raising))


def test_a_task_that_is_cancelled_still_tidies_up() -> None:
    done: list[str] = []

    def work() -> None:
        try:
            on_loop.sleep(60)
        finally:
            on_loop.sleep(0)
            done.append("tidied")

    async def scene() -> None:
        task = asyncio.create_task(on_loop.run(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert done == ["tidied"]


def test_outside_of_it_nothing_waits_like_this() -> None:
    async def nothing() -> None: ...

    coroutine = nothing()
    with pytest.raises(AssertionError, match="only code that `run` runs"):
        on_loop.wait_for(coroutine)
    coroutine.close()
