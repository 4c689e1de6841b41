"""What receivers share through a real Redis: never too old, never after a commit, never more than the rate."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import redis

from pisync_receiver.auth import token_hash
from pisync_receiver.caching import Kept, Question
from pisync_receiver.directory import KEEP_S, Directory
from pisync_receiver.limits import Limits, Rate
from pisync_receiver.marks import EVERYTHING, Mark
from pisync_receiver.sharing import Sharing
from pisync_receiver.sharing.address import redis_url
from pisync_receiver.sharing.link import AWAY_S, Link
from pisync_receiver.sharing.memory import Memory, Moment, Remembered, SharedCache, SharedTokens
from pisync_receiver.sharing.rates import SharedRates
from pisync_receiver.store import TokenRow
from tests.support.redis import SERVER, fresh_space, needs_redis

pytestmark = needs_redis

NOBODY = "redis://127.0.0.1:1/0"
A, B, C = b"a", b"b", b"c"


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """One receiver's share, on a link of its own."""

    def __init__(self, space: str, *, url: str = SERVER, limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.heard: list[bool] = []
        self.link = Link(redis_url(url), clock=self.clock, noticed=self.heard.append)
        self.memory = Memory(self.link, space=space, clock=self.clock)
        self.cache = SharedCache(self.memory)
        self.tokens = SharedTokens(self.memory)
        if limits is not None:
            self.rates = SharedRates(limits, self.link, space=space, clock=self.clock)

    async def close(self) -> None:
        await self.link.close()


def play(scene: Callable[[Receiver, Receiver], Awaitable[None]], *, url: str = SERVER) -> None:
    """A scene with two receivers of one database."""
    space = fresh_space()

    async def both() -> None:
        one, other = Receiver(space), Receiver(space, url=url)
        try:
            await scene(one, other)
        finally:
            await one.close()
            await other.close()

    asyncio.run(both())


async def known(receiver: Receiver, *names: bytes, mark: Mark = Mark.ANYTHING) -> dict[bytes, bytes]:
    found = await receiver.memory.recall(mark, names)
    return {name: bytes(value) for name, (value, _) in found.values.items()}


async def ask(receiver: Receiver, mark: Mark = Mark.ANYTHING) -> Remembered:
    found = await receiver.memory.recall(mark, [A, B])
    assert found.moment is not None
    return found


def test_what_one_found_the_other_knows_until_a_commit() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        found = await ask(one)
        await one.memory.keep(found.moment, {A: 1})
        assert await known(other, A, B) == {A: b"\x01"}
        await other.memory.changed({Mark.FAILING})
        assert await known(one, A) == {A: b"\x01"}
        await other.memory.changed({Mark.ANYTHING})
        assert await known(one, A) == await known(other, A) == {}

    play(scene)


def test_what_was_asked_before_a_commit_is_not_believed_after_it() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        before = await ask(one)
        await other.memory.changed({Mark.ANYTHING})
        await one.memory.keep(before.moment, {A: 1})
        assert await known(one, A) == await known(other, A) == {}
        after = await ask(one)
        await one.memory.keep(after.moment, {A: 2})  # what nobody believes is in nobody's way
        assert await known(other, A) == {A: b"\x02"}

    play(scene)


def test_an_entry_ends_two_seconds_after_its_query_began_however_late_it_came() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        now = (await ask(one)).moment
        assert now is not None
        old = replace(now, ms=now.ms - round(KEEP_S * 1000))
        young = replace(now, ms=now.ms - 1000)
        await one.memory.keep(old, {A: 1})
        await one.memory.keep(young, {B: 2})
        await one.memory.keep(replace(now, ms=now.ms + 60_000), {C: 3})  # as after a failover to a clock that is behind
        found = await other.memory.recall(Mark.ANYTHING, [A, B, C])
        assert list(found.values) == [B]
        assert found.values[B][1] >= 1.0

    play(scene)


def test_a_redis_that_forgot_the_mark_makes_nothing_old_believable() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        before = await ask(one)
        with redis.Redis.from_url(SERVER) as client:
            for key in client.scan_iter(match="pisync:*:mark:*"):
                client.delete(key)
        await one.memory.keep(before.moment, {A: 1})
        assert await known(other, A) == {}

    play(scene)


def test_databases_on_one_redis_know_nothing_of_each_other() -> None:
    async def scene() -> None:
        one, other = Receiver(fresh_space()), Receiver(fresh_space())
        await one.memory.keep((await ask(one)).moment, {A: 1})
        assert await known(other, A) == {}
        await one.close()
        await other.close()

    asyncio.run(scene())


def test_whoever_could_not_tell_of_a_commit_believes_nothing_for_two_seconds() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        await one.memory.keep((await ask(one)).moment, {A: 1})
        link, one.memory._link = one.memory._link, other.link  # where nobody answers
        await one.memory.changed(EVERYTHING)
        one.memory._link = link
        assert await known(one, A) == {}
        one.clock.now += KEEP_S
        assert await known(one, A) == {A: b"\x01"}

    play(scene, url=NOBODY)


def test_a_redis_that_is_away_is_asked_once_a_second_and_raises_nothing() -> None:
    async def scene(other: Receiver, alone: Receiver) -> None:
        for _ in range(5):
            assert await alone.memory.recall(Mark.ANYTHING, [A]) == Remembered()
            await alone.memory.keep(Moment(ms=1, mark=b"m"), {A: 1})
            await alone.memory.changed(EVERYTHING)
        assert alone.heard == [False]
        alone.clock.now += AWAY_S
        await alone.memory.changed(EVERYTHING)
        assert alone.heard == [False, False]

    play(scene, url=NOBODY)


@pytest.mark.parametrize("text", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x92\xc4\x01a", b"x" * 100_000])
def test_what_is_none_of_ours_is_nothing(text: bytes) -> None:
    async def scene(one: Receiver, _: Receiver) -> None:
        await one.memory.keep((await ask(one)).moment, {A: 1})
        with redis.Redis.from_url(SERVER) as client:
            (name,) = client.scan_iter(match=(one.memory._prefix + A).decode())
            client.set(name, text)
        assert await known(one, A) == {}

    play(scene)


def test_a_list_where_an_entry_should_be_is_nothing() -> None:
    async def scene(one: Receiver, _: Receiver) -> None:
        await ask(one)
        with redis.Redis.from_url(SERVER) as client:
            client.rpush(one.memory._prefix + A, "x")
            client.expire(one.memory._prefix + A, 60)
        assert await known(one, A) == {}

    play(scene)


def test_answers_come_back_as_they_were_and_a_large_one_by_its_etag_alone() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        small = Kept(etag=b'"s"', content_type="application/json", headers=((b"link", b"<x>"),), body=b"[]")
        large = Kept(etag=b'"l"', content_type="application/json", headers=(), body=b"x" * 300_000)
        for key, kept in ((b"small", small), (b"large", large)):
            question = Question(key=key, mark=Mark.FAILING, moves=False)
            await one.cache.keep(question, await one.cache.recall(question), kept)
        known = {
            key: (await other.cache.recall(Question(key=key, mark=Mark.FAILING, moves=False))).kept
            for key in (b"small", b"large", b"none")
        }
        assert known[b"small"] == small
        assert known[b"none"] is None
        assert known[b"large"] is not None
        assert (known[b"large"].etag, known[b"large"].body) == (b'"l"', None)

    play(scene)


def row(digest: str = "d" * 64, *, revoked_ms: int | None = None) -> TokenRow:
    return TokenRow(
        id="7",
        role="viewer",
        token_hash=digest,
        device_id=None,
        label=None,
        created_ms=1,
        expires_ms=None,
        revoked_ms=revoked_ms,
        last_refused_ms=None,
    )


def test_a_token_is_handed_on_until_any_token_changes() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        digest = row().token_hash
        moment, found = await one.tokens.recall([digest])
        assert found == {}
        await one.tokens.keep(moment, [row()])
        _, found = await other.tokens.recall([digest, "e" * 64])
        assert {name: kept for name, (kept, _) in found.items()} == {digest: row()}
        await one.memory.changed({Mark.TOKENS})
        assert (await other.tokens.recall([digest]))[1] == {}

    play(scene)


def test_a_row_under_another_tokens_name_opens_nothing() -> None:
    async def scene(one: Receiver, other: Receiver) -> None:
        found = await one.memory.recall(Mark.TOKENS, [])
        await one.memory.keep(found.moment, {b"token:" + b"e" * 64: row()})
        assert (await other.tokens.recall(["e" * 64]))[1] == {}

    play(scene)


def test_a_token_is_believed_two_seconds_from_the_first_query_and_not_from_the_second_hand() -> None:
    asked: list[int] = []

    def look_up(hashes: object) -> list[TokenRow]:
        asked.append(1)
        return []

    async def scene(one: Receiver, other: Receiver) -> None:
        secret = "psv_x"
        digest = token_hash(secret)
        now, _ = await one.tokens.recall([digest])
        assert isinstance(now, Moment)
        await one.tokens.keep(replace(now, ms=now.ms - 1500), [row(digest)])
        directory = Directory(look_up, clock=other.clock, elsewhere=other.tokens)
        assert await directory.look_up(secret) == row(digest)
        assert not asked
        other.clock.now += KEEP_S - 1.5  # it is two seconds old now, though this receiver has just heard of it
        with redis.Redis.from_url(SERVER) as client:
            client.delete(other.memory._prefix + b"token:" + digest.encode())
        assert await directory.look_up(secret) is None
        assert asked

    play(scene)


def test_what_a_device_sends_to_one_counts_at_the_other() -> None:
    async def scene() -> None:
        space, clock = fresh_space(), Clock()
        rate = Rate(count=1, period_s=3600, burst=4)
        limits = [Limits(rate, clock=clock, shared=True) for _ in range(2)]
        one, other = (Receiver(space, limits=each) for each in limits)
        one.clock = other.clock = clock
        assert [limits[0].take("pibook-1") for _ in range(3)] == [0, 0, 0]
        await one.rates.exchange()
        assert limits[1].take("pibook-1") == 0  # the other has not heard of it yet
        await other.rates.exchange()
        await one.rates.exchange()
        assert limits[1].take("pibook-1") > 0
        assert limits[1].take("pibook-2") == 0
        await one.close()
        await other.close()

    asyncio.run(scene())


def test_rates_are_kept_alone_while_redis_is_away() -> None:
    async def scene() -> None:
        limits = Limits(Rate(count=1, period_s=3600, burst=2), clock=Clock(), shared=True)
        alone = Receiver(fresh_space(), url=NOBODY, limits=limits)
        assert limits.take("a") == 0
        await alone.rates.exchange()
        assert limits.take("a") == 0
        assert limits.take("a") > 0
        await alone.close()

    asyncio.run(scene())


def test_a_share_is_begun_and_ended() -> None:
    async def scene() -> None:
        limits = Limits(Rate(count=1, period_s=1, burst=1), clock=Clock(), shared=True)
        sharing = Sharing(redis_url(SERVER), space=fresh_space(), limits=limits, clock=Clock(), noticed=lambda up: None)
        await sharing.start()
        await sharing.close()
        await sharing.close()

    asyncio.run(scene())
