"""The queue between the event loop and the writer: nothing lost, in order, and one wake-up a round."""

import asyncio
import threading

from pisync_receiver.handover import Handover


def test_everything_put_is_taken_once_and_in_order_and_closing_lets_the_writer_go() -> None:
    queue: Handover[int] = Handover()
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
    queue: Handover[str] = Handover()

    async def scene() -> None:
        for text in ("a", "b", "c"):
            taking = asyncio.create_task(asyncio.to_thread(queue.take, wait=True))
            await asyncio.sleep(0)
            queue.put(text, asyncio.get_running_loop())
            assert await asyncio.wait_for(taking, 30) == text

    asyncio.run(scene())


def test_closing_wakes_an_idle_writer_and_what_was_put_before_is_still_taken() -> None:
    async def scene() -> None:
        idle: Handover[int] = Handover()
        taking = asyncio.create_task(asyncio.to_thread(idle.take, wait=True))
        await asyncio.sleep(0)
        idle.close()
        assert await asyncio.wait_for(taking, 30) is None
        full: Handover[int] = Handover()
        full.put(1, asyncio.get_running_loop())
        full.close()
        assert [full.take(wait=True), full.take(wait=True)] == [1, None]

    asyncio.run(scene())


def test_without_waiting_an_empty_queue_gives_nothing() -> None:
    assert Handover[int]().take(wait=False) is None


def test_several_writers_take_everything_once_and_all_go_when_it_is_closed() -> None:
    queue: Handover[int] = Handover()
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
