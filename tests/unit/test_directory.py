"""Shared tokens: looked up together, believed for two seconds, and never an older state after a newer one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pisync_receiver.auth import token_hash
from pisync_receiver.directory import KEEP_S, Directory
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store import TokenRow

NOW = 1_795_428_000_000


def row(secret: str, **changes: Any) -> TokenRow:
    base = TokenRow(
        id=secret,
        role="viewer",
        token_hash=token_hash(secret),
        device_id=None,
        label=None,
        created_ms=NOW,
        expires_ms=None,
        revoked_ms=None,
        last_refused_ms=None,
    )
    return replace(base, **changes)


class Shared:
    """A table of tokens that others write, and a clock. A query waits for `go` where that is cleared."""

    def __init__(self, *rows: TokenRow) -> None:
        self.rows = {one.token_hash: one for one in rows}
        self.asked: list[Sequence[str]] = []
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.now = 100.0
        self.error: Exception | None = None
        self.directory = Directory(self.look_up, clock=lambda: self.now, size=3)

    def look_up(self, hashes: Sequence[str]) -> list[TokenRow]:
        self.asked.append(hashes)
        found = [self.rows[one] for one in hashes if one in self.rows]
        self.began.release()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return found


def play(scene: Callable[[Shared], Coroutine[Any, Any, None]], *rows: TokenRow) -> Shared:
    shared = Shared(*rows)
    asyncio.run(scene(shared))
    return shared


def test_a_token_is_asked_for_once_in_two_seconds_and_a_revocation_elsewhere_is_seen_then() -> None:
    async def scene(shared: Shared) -> None:
        for _ in range(5):
            assert await shared.directory.look_up("a") == row("a")
        shared.rows[token_hash("a")] = row("a", revoked_ms=NOW)
        shared.now += KEEP_S - 0.01
        assert await shared.directory.look_up("a") == row("a")
        shared.now += 0.01
        assert await shared.directory.look_up("a") == row("a", revoked_ms=NOW)

    assert len(play(scene, row("a")).asked) == 2


def test_its_age_counts_from_before_the_query() -> None:
    async def scene(shared: Shared) -> None:
        shared.go.clear()
        asking = asyncio.create_task(shared.directory.look_up("a"))
        await asyncio.to_thread(shared.began.acquire)
        shared.now += KEEP_S - 0.5
        shared.go.set()
        await asking
        shared.now += 0.5
        await shared.directory.look_up("a")

    assert len(play(scene, row("a")).asked) == 2


def test_what_is_asked_for_while_a_query_runs_is_the_next_query() -> None:
    async def scene(shared: Shared) -> None:
        shared.go.clear()
        first = asyncio.create_task(shared.directory.look_up("a"))
        await asyncio.to_thread(shared.began.acquire)
        others = [asyncio.create_task(shared.directory.look_up(name)) for name in "bcbbc"]
        await asyncio.sleep(0)
        shared.go.set()
        assert [one and one.id for one in await asyncio.gather(first, *others)] == list("abcbbc")

    assert [len(hashes) for hashes in play(scene, *map(row, "abc")).asked] == [1, 2]


def test_what_this_receiver_changed_is_known_at_once_and_a_slower_query_does_not_bring_the_old_state_back() -> None:
    async def scene(shared: Shared) -> None:
        shared.go.clear()
        asking = asyncio.create_task(shared.directory.look_up("a"))
        await asyncio.to_thread(shared.began.acquire)
        shared.now += 0.1
        shared.directory.put(row("a", revoked_ms=NOW))
        shared.go.set()
        assert await asking == row("a", revoked_ms=NOW)
        assert await shared.directory.look_up("a") == row("a", revoked_ms=NOW)

    play(scene, row("a"))


def test_a_token_nobody_made_is_asked_for_each_time_and_never_remembered() -> None:
    async def scene(shared: Shared) -> None:
        for _ in range(3):
            assert await shared.directory.look_up("nobody's") is None
        shared.rows[token_hash("nobody's")] = row("nobody's")
        assert await shared.directory.look_up("nobody's") == row("nobody's")

    assert len(play(scene).asked) == 4


def test_memory_is_bounded() -> None:
    async def scene(shared: Shared) -> None:
        for name in "abcd":
            await shared.directory.look_up(name)
        await shared.directory.look_up("d")
        await shared.directory.look_up("a")

    assert len(play(scene, *map(row, "abcd")).asked) == 5


def test_a_store_that_cannot_be_read_is_an_error_for_all_who_wait_and_the_next_try_may_work() -> None:
    async def scene(shared: Shared) -> None:
        shared.error = StoreUnusable("away")
        with pytest.raises(StoreUnusable):
            await shared.directory.look_up("a")
        shared.error = None
        assert await shared.directory.look_up("a") == row("a")

    play(scene, row("a"))


def test_an_answer_that_took_too_long_is_not_believed() -> None:
    async def scene(shared: Shared) -> None:
        shared.go.clear()
        asking = asyncio.create_task(shared.directory.look_up("a"))
        await asyncio.to_thread(shared.began.acquire)
        shared.rows[token_hash("a")] = row("a", revoked_ms=NOW)
        shared.now += KEEP_S
        shared.go.set()
        with pytest.raises(StoreUnusable, match="not believed"):
            await asking
        assert await shared.directory.look_up("a") == row("a", revoked_ms=NOW)

    play(scene, row("a"))


def test_what_was_changed_during_a_query_counts_even_if_it_is_no_longer_remembered() -> None:
    async def scene(shared: Shared) -> None:
        shared.go.clear()
        asking = asyncio.create_task(shared.directory.look_up("a"))
        await asyncio.to_thread(shared.began.acquire)
        shared.directory.put(row("a", revoked_ms=NOW))
        for name in "bcd":
            shared.directory.put(row(name))  # more than are remembered
        shared.go.set()
        assert await asking == row("a", revoked_ms=NOW)

    play(scene, row("a"))


def test_a_store_that_does_not_answer_is_an_error_in_time_and_the_next_try_may_work() -> None:
    answering = threading.Event()

    def look_up(hashes: Sequence[str]) -> list[TokenRow]:
        answering.wait()
        return [row("a")]

    async def scene() -> None:
        directory = Directory(look_up, clock=lambda: 0.0, patience_s=0.01)
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="looked up within"):
                await directory.look_up("a")
        answering.set()
        patient = Directory(look_up, clock=lambda: 0.0)
        assert await patient.look_up("a") == row("a")

    asyncio.run(scene())


def test_slow_questions_in_every_shared_thread_do_not_hold_up_a_look_up() -> None:
    async def scene(shared: Shared) -> None:
        enough = threading.Event()
        slow = [asyncio.create_task(asyncio.to_thread(enough.wait, 30)) for _ in range(64)]
        assert await shared.directory.look_up("a") == row("a")
        enough.set()
        await asyncio.gather(*slow)

    play(scene, row("a"))
