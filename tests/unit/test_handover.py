"""The queue between the event loop and the writers: nothing lost, in order, and no writer woken without need."""

import asyncio
import queue as queues
import threading
from collections.abc import Callable
from typing import Any, cast

from pisync_receiver.handover import PATIENCE_S, Handover
from tests.support.receiver_process import wait_until


def test_everything_put_is_taken_once_and_in_order_and_closing_lets_the_writer_go() -> None:
    queue: Handover[int] = Handover(writers=1)
    taken: list[int] = []

    def write() -> None:
        while (item := queue.take(wait=True)) is not None:
            taken.append(item)

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        writer = threading.Thread(target=write)
        writer.start()
        for number in range(20_000):
            queue.put(number, loop)
            if number % 7 == 0:
                await asyncio.sleep(0)  # another round of the loop: the writer may fall idle between any two
        queue.close()
        await asyncio.to_thread(writer.join)

    asyncio.run(scene())
    assert taken == list(range(20_000))


def test_a_lone_item_wakes_an_idle_writer() -> None:
    queue: Handover[str] = Handover(writers=1)

    async def scene() -> None:
        for text in ("a", "b", "c"):
            taking = asyncio.create_task(asyncio.to_thread(queue.take, wait=True))
            await asyncio.sleep(0)
            queue.put(text, asyncio.get_running_loop())
            assert await asyncio.wait_for(taking, 30) == text

    asyncio.run(scene())


def test_closing_wakes_an_idle_writer_and_what_was_put_before_is_still_taken() -> None:
    async def scene() -> None:
        idle: Handover[int] = Handover(writers=1)
        taking = asyncio.create_task(asyncio.to_thread(idle.take, wait=True))
        await asyncio.sleep(0)
        idle.close()
        assert await asyncio.wait_for(taking, 30) is None
        full: Handover[int] = Handover(writers=1)
        full.put(1, asyncio.get_running_loop())
        full.close()
        assert [full.take(wait=True), full.take(wait=True)] == [1, None]

    asyncio.run(scene())


def test_without_waiting_an_empty_queue_gives_nothing() -> None:
    assert Handover[int](writers=1).take(wait=False) is None


def test_several_writers_take_everything_once_and_all_go_when_it_is_closed() -> None:
    queue: Handover[int] = Handover(writers=3)
    taken: list[list[int]] = [[], [], []]

    def write(mine: list[int]) -> None:
        while (item := queue.take(wait=True)) is not None:
            mine.append(item)

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        writers = [threading.Thread(target=write, args=(mine,)) for mine in taken]
        for writer in writers:
            writer.start()
        for number in range(20_000):
            queue.put(number, loop)
            if number % 7 == 0:
                await asyncio.sleep(0)
        queue.close()
        for writer in writers:
            await asyncio.to_thread(writer.join)

    asyncio.run(scene())
    assert sorted(number for mine in taken for number in mine) == list(range(20_000))
    assert all(mine == sorted(mine) for mine in taken)


class Later:
    """A loop whose rounds end, and whose timers go off, when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        self.soon.append(lambda: function(*arguments))

    def end_round(self) -> None:
        for function in self.soon:
            function()
        self.soon.clear()

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: object) -> None:
        assert seconds == PATIENCE_S
        self.waiting.append(lambda: function(*arguments))

    def go_off(self) -> None:
        (timer,) = self.waiting
        self.waiting.clear()
        timer()
        self.end_round()


class TwoWriters:
    """They take an item each time and hold on to it until they are let go."""

    def __init__(self) -> None:
        self.queue: Handover[str] = Handover(writers=2)
        self.later = Later()
        self._taken: queues.Queue[tuple[int, str]] = queues.Queue()
        self._go = [threading.Semaphore(0), threading.Semaphore(0)]
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in (0, 1)]
        for thread in self._threads:
            thread.start()
        self.until_idle(2)

    def _write(self, number: int) -> None:
        while (item := self.queue.take(wait=True)) is not None:
            self._taken.put((number, item))
            self._go[number].acquire()

    def until_idle(self, count: int) -> None:
        wait_until(lambda: self.queue.idle == count, f"{count} are idle")

    def put(self, item: str, *, large: bool = False) -> None:
        self.queue.put(item, cast(Any, self.later), large=large)
        self.later.end_round()

    def let_go(self, number: int) -> None:
        self._go[number].release()

    def taken(self) -> tuple[int, str]:
        """Who took the next item, and which."""
        return self._taken.get(timeout=30)


def test_what_comes_in_one_round_wakes_one_writer_when_the_round_ends() -> None:
    writers = TwoWriters()
    for item in "abc":
        writers.queue.put(item, cast(Any, writers.later))
    assert (len(writers.later.soon), writers.queue.idle) == (1, 2)
    writers.later.end_round()
    for item in "abc":
        writer, taken = writers.taken()
        assert taken == item
        writers.let_go(writer)


def test_what_comes_while_a_writer_is_busy_is_its_own_to_take_and_no_other_is_woken() -> None:
    writers = TwoWriters()
    writers.put("a")
    busy, item = writers.taken()
    assert item == "a"
    writers.until_idle(1)
    for item in "bcd":
        writers.put(item)
        writers.let_go(busy)
        assert writers.taken() == (busy, item)
    assert len(writers.later.waiting) == 1


def test_what_has_waited_for_long_wakes_another_writer_and_what_just_came_does_not() -> None:
    writers = TwoWriters()
    writers.put("a")
    busy, _ = writers.taken()
    writers.until_idle(1)
    writers.put("b")
    writers.let_go(busy)
    assert writers.taken() == (busy, "b")
    writers.put("c")
    writers.later.go_off()  # it was set for b, and c just came: another look, later
    assert writers.queue.idle == 1
    writers.later.go_off()
    assert writers.taken() == (1 - busy, "c")
    writers.until_idle(0)
    writers.later.go_off()  # nobody is left to be woken
    assert writers.later.waiting == []
    writers.put("d")
    writers.let_go(1 - busy)
    assert writers.taken() == (1 - busy, "d")


def test_a_large_item_wakes_another_writer_at_once() -> None:
    writers = TwoWriters()
    writers.put("a")
    busy, _ = writers.taken()
    writers.until_idle(1)
    writers.put("b", large=True)
    assert writers.taken() == (1 - busy, "b")
