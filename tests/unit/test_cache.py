"""Answers kept for a few seconds: never longer, made once at a time, in memory or in Redis, which may be away."""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import redis

from pisync_receiver.cache import PAYBACK, TTL_S, Cache, MemoryStorage, RedisStorage, RedisUrl
from tests.support.services import needs

SERVER: Final = os.environ.get("PISYNC_TEST_REDIS", "redis://127.0.0.1:6379/0")


def ping() -> None:
    with redis.Redis.from_url(SERVER, socket_connect_timeout=2, socket_timeout=2) as client:
        client.ping()


needs_redis = needs("Redis", "PISYNC_TEST_REDIS", ping, redis.RedisError)


def fresh_space() -> str:
    """A name that nothing else in the server has."""
    return f"test-{uuid.uuid4().hex}"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes numbered answers, each in `takes` seconds of the clock."""

    def __init__(self, clock: Clock, takes: float = 1.0) -> None:
        self.made = 0
        self._clock = clock
        self._takes = takes

    async def __call__(self) -> bytes:
        self.made += 1
        self._clock.now += self._takes
        await asyncio.sleep(0)
        return b"%d" % self.made


def play(scene: Callable[[Cache, Clock], Awaitable[None]], **how: Any) -> None:
    clock = Clock()
    asyncio.run(_run(scene, Cache(MemoryStorage(clock=clock, entries=2), clock=clock, **how), clock))


async def _run(scene: Callable[[Cache, Clock], Awaitable[None]], cache: Cache, clock: Clock) -> None:
    await scene(cache, clock)


def test_an_answer_is_kept_for_the_time_to_live() -> None:
    async def scene(cache: Cache, clock: Clock) -> None:
        make = Maker(clock)
        assert [await cache.answer("k", make) for _ in range(3)] == [b"1"] * 3
        clock.now += TTL_S - 0.01
        assert await cache.answer("k", make) == b"1"
        clock.now += 0.01
        assert await cache.answer("k", make) == b"2"

    play(scene)


def test_an_answer_that_was_made_quickly_is_kept_briefly() -> None:
    async def scene(cache: Cache, clock: Clock) -> None:
        make = Maker(clock, takes=0.001)
        await cache.answer("k", make)
        clock.now += 0.001 * PAYBACK + 1e-9
        assert await cache.answer("k", make) == b"2"

    play(scene)


def test_callers_at_once_share_the_making() -> None:
    async def scene(cache: Cache, clock: Clock) -> None:
        make = Maker(clock)
        assert await asyncio.gather(*(cache.answer("k", make) for _ in range(50))) == [b"1"] * 50
        assert await cache.answer("other", make) == b"2"

    play(scene)


def test_an_error_reaches_every_caller_and_is_not_kept() -> None:
    async def scene(cache: Cache, clock: Clock) -> None:
        async def fail() -> bytes:
            await asyncio.sleep(0)
            raise ValueError("no")

        found = await asyncio.gather(*(cache.answer("k", fail) for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["no"] * 3
        assert await cache.answer("k", Maker(clock)) == b"1"

    play(scene)


def test_fresh_answers_and_no_time_to_live_keep_nothing() -> None:
    async def fresh(cache: Cache, clock: Clock) -> None:
        make = Maker(clock)
        await cache.answer("k", make)
        assert await cache.answer("k", make, fresh=True) == b"2"

    async def none(cache: Cache, clock: Clock) -> None:
        make = Maker(clock)
        assert [await cache.answer("k", make) for _ in range(2)] == [b"1", b"2"]

    play(fresh)
    play(none, ttl_s=0)


def test_memory_is_bounded() -> None:
    async def scene(cache: Cache, clock: Clock) -> None:
        make = Maker(clock, takes=0.5)
        for key in "abc":
            await cache.answer(key, make)
        assert await cache.answer("c", make) == b"3"
        assert await cache.answer("a", make) == b"4"

    play(scene)


@needs_redis
def test_receivers_share_answers_through_redis_and_databases_do_not() -> None:
    async def scene() -> None:
        clock, space = Clock(), fresh_space()
        one, two, other = (
            Cache(RedisStorage(RedisUrl(url=SERVER), space=name, clock=clock), clock=clock)
            for name in (space, space, space + "b")
        )
        make = Maker(clock)
        assert await one.answer("k", make) == b"1"
        assert await two.answer("k", make) == b"1"
        assert await other.answer("k", make) == b"2"
        for cache in (one, two, other):
            await cache.aclose()

    asyncio.run(scene())


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "is silent"])
def test_a_redis_that_is_away_makes_answers_slower_and_nothing_else(
    caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    async def scene(port: int) -> None:
        clock = Clock()
        storage = RedisStorage(RedisUrl(url=f"redis://ann:hunter2@127.0.0.1:{port}"), space="a", clock=clock)
        cache = Cache(storage, clock=clock)
        make = Maker(clock)
        assert [await cache.answer("k", make) for _ in range(3)] == [b"1", b"2", b"3"]
        await cache.aclose()

    with caplog.at_level(logging.INFO, "pisync_receiver.cache"), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if silent:
            taken.listen()
        asyncio.run(scene(taken.getsockname()[1]))
    (record,) = caplog.records
    assert "does not answer" in record.getMessage()
    assert "hunter2" not in record.getMessage()
