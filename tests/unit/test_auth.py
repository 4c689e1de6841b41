"""Tokens, the gate, and look-ups of tokens."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.submissions import Scope
from pisync_receiver.errors import Overloaded, Problem, StoreUnusable
from pisync_receiver.http.auth import (
    KEEP_S,
    NO_CALLER,
    PREFIXES,
    Access,
    Caller,
    EndedTokens,
    Gate,
    TokenDirectory,
    new_token,
    token_hash,
)

NOW = 1_795_428_000_000
SECRET = "psd_secret"


def token(scope: Scope = "device", secret: str = SECRET, **changes: Any) -> Token:
    base = Token(
        id=1,
        scope=scope,
        token_hash=token_hash(secret),
        device_id="pi-1" if scope == "device" else None,
        created_ms=NOW,
    )
    return replace(base, **changes)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A table of tokens that others write. A query takes its answer when it begins, and gives it when `go` is set."""

    def __init__(self, *tokens: Token) -> None:
        self.tokens = {each.token_hash: each for each in tokens}
        self.asked: list[Sequence[str]] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def tokens_by_hash(self, hashes: Sequence[str]) -> list[Token]:
        self.asked.append(list(hashes))
        found = [self.tokens[each] for each in hashes if each in self.tokens]
        self.began.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return found


def admit(row: Token, access: Access, secret: str = SECRET, device_id: str = "pi-1", **how: Any) -> Caller:
    noted: list[int] = how.pop("noted", [])
    headers = {b"authorization": f"Bearer {secret}".encode("latin-1")}

    async def scene() -> Caller:
        gate = Gate(
            TokenDirectory(Store(row), clock=Clock()),
            required=how.pop("required", True),
            now_ms=lambda: NOW,
            on_ended=lambda _, now_ms: noted.append(now_ms),
        )
        return await gate.admit(access, headers, {"device_id": device_id}, local=how.pop("local", False))

    return asyncio.run(scene())


def test_a_token_shows_its_scope_and_is_never_the_same() -> None:
    for scope, prefix in PREFIXES.items():
        assert new_token(scope).startswith(prefix)
        assert new_token(scope) != new_token(scope)
        assert len(new_token(scope)) >= len(prefix) + 43  # 256 bits in base 64


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"revoked_ms": NOW}, "token_revoked"),
        ({"revoked_ms": NOW - 1}, "token_revoked"),
        ({"revoked_ms": NOW + 1}, None),
        ({"expires_ms": NOW}, "token_expired"),
        ({"expires_ms": NOW + 1}, None),
        ({"expires_ms": NOW + 1, "revoked_ms": NOW}, "token_revoked"),
    ],
)
def test_a_token_ends_at_its_time_and_later_use_is_noted(changes: dict[str, Any], code: str | None) -> None:
    noted: list[int] = []
    if code is None:
        assert admit(token(**changes), Access.DEVICE, noted=noted).device_id == "pi-1"
        assert noted == []
        return
    with pytest.raises(Problem) as caught:
        admit(token(**changes), Access.DEVICE, noted=noted)
    assert (caught.value.status, caught.value.problem_code) == (401, code)
    assert "invalid_token" in caught.value.headers["WWW-Authenticate"]
    assert noted == [NOW]


@pytest.mark.parametrize("secret", ["psd_other", "", "é", "\xff" * 10_000])
def test_an_unknown_token_is_401_and_not_noted(secret: str) -> None:
    noted: list[int] = []
    with pytest.raises(Problem) as caught:
        admit(token(), Access.DEVICE, secret=secret, noted=noted)
    assert caught.value.status == 401
    assert noted == []


LIMITED = '["Nakuru"]'
ALLOWED: dict[Access, set[str]] = {
    Access.PUBLIC: {"device", "other device", "viewer", "admin", "metrics", "site viewer", "site admin"},
    Access.DEVICE: {"device", "other device"},
    Access.READER: {"viewer", "admin", "site viewer", "site admin"},
    Access.OWNER: {"device", "viewer", "admin", "site viewer", "site admin"},
    Access.ADMIN: {"admin", "site admin"},
    Access.CHIEF: {"admin"},
    Access.METRICS: {"viewer", "admin", "metrics"},
}


@pytest.mark.parametrize("access", Access)
def test_each_access_lets_in_its_scopes_and_no_other(access: Access) -> None:
    let_in = set()
    for name in ("device", "other device", "viewer", "admin", "metrics", "site viewer", "site admin"):
        scope: Any = name.split()[-1]
        row = token(scope, sites=LIMITED if name.startswith("site") else None)
        with contextlib.suppress(Problem):
            admit(row, access, device_id="pi-2" if name == "other device" else "pi-1")
            let_in.add(name)
    assert let_in == ALLOWED[access]


def test_the_receivers_owner_is_an_admin_without_a_token() -> None:
    assert admit(token(), Access.CHIEF, secret="", local=True).scope == "admin"
    with pytest.raises(Problem):
        admit(token(), Access.DEVICE, secret="", local=True)


def test_a_device_token_without_a_device_owns_nothing() -> None:
    with pytest.raises(Problem):
        admit(token(device_id=None), Access.OWNER)


def test_a_device_may_only_speak_for_itself() -> None:
    caller = Caller(scope="device", token_id=1, device_id="pi-1")
    caller.check_is("pi-1")
    with pytest.raises(Problem) as caught:
        caller.check_is("pi-2")
    assert caught.value.status == 403
    NO_CALLER.check_is("pi-2")


class Taking:
    """Stands for the intake."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.full = False

    def submit(self, submission: Any) -> "asyncio.Future[Any]":
        if self.full:
            raise Overloaded("full", retry_after=1)
        self.taken.append(submission)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("the store failed"))
        return future


def test_use_of_an_ended_token_is_noted_at_most_once_a_minute_and_never_fails_the_request() -> None:
    async def scene() -> None:
        intake = Taking()
        ended = EndedTokens(intake.submit)
        other = token(id=2)
        for row, at in ((token(), 0), (token(), 59_999), (other, 1), (token(), 60_000), (token(), 30_000)):
            ended.note(row, NOW + at)
        await asyncio.sleep(0)
        seen = [(each.token_id, each.at_ms - NOW) for each in intake.taken]
        assert seen == [(1, 0), (2, 1), (1, 60_000), (1, 30_000)]  # the clock was set back: noted again
        intake.full = True
        ended.note(token(), NOW + 200_000)

    asyncio.run(scene())


class TestLookUps:
    """Made together, believed for two seconds, and never an older state after a newer one."""

    @staticmethod
    def play(
        scene: Callable[[Store, TokenDirectory, Clock], Coroutine[Any, Any, None]], *names: str, size: int = 3
    ) -> Store:
        async def run() -> Store:
            store, clock = Store(*(named(name) for name in names)), Clock()
            await asyncio.wait_for(scene(store, TokenDirectory(store, clock=clock, size=size), clock), 30)
            return store

        return asyncio.run(run())

    def test_a_token_is_asked_for_once_in_two_seconds_and_a_revocation_elsewhere_is_seen_then(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            for _ in range(5):
                assert await tokens.look_up("a") == named("a")
            store.tokens[token_hash("a")] = named("a", revoked_ms=NOW)
            clock.now += KEEP_S - 0.01
            assert await tokens.look_up("a") == named("a")
            clock.now += 0.01
            assert await tokens.look_up("a") == named("a", revoked_ms=NOW)

        assert len(self.play(scene, "a").asked) == 2

    def test_its_age_counts_from_before_the_query(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            asking = await begun(store, tokens)
            clock.now += KEEP_S - 0.5
            store.go.set()
            await asking
            clock.now += 0.5
            await tokens.look_up("a")

        assert len(self.play(scene, "a").asked) == 2

    def test_look_ups_during_a_query_become_the_next_query(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            first = await begun(store, tokens)
            others = [asyncio.create_task(tokens.look_up(name)) for name in "bcbbc"]
            await asyncio.sleep(0)
            store.go.set()
            assert [row and row.label for row in await asyncio.gather(first, *others)] == list("abcbbc")

        assert [len(hashes) for hashes in self.play(scene, *"abc").asked] == [1, 2]

    def test_a_change_by_this_receiver_is_known_at_once_and_a_slower_query_does_not_undo_it(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            asking = await begun(store, tokens)
            clock.now += 0.1
            tokens.put(named("a", revoked_ms=NOW))
            store.go.set()
            assert await asking == named("a", revoked_ms=NOW)
            assert await tokens.look_up("a") == named("a", revoked_ms=NOW)

        self.play(scene, "a")

    def test_a_change_before_a_query_does_not_hide_a_later_change_elsewhere(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            tokens.put(named("a"))
            clock.now += KEEP_S
            store.tokens[token_hash("a")] = named("a", revoked_ms=NOW)
            assert await tokens.look_up("a") == named("a", revoked_ms=NOW)

        self.play(scene, "a")

    def test_clearing_makes_a_running_query_ask_again(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            asking = await begun(store, tokens)
            store.tokens[token_hash("a")] = named("a", revoked_ms=NOW)
            tokens.clear()
            store.go.set()
            assert await asking == named("a", revoked_ms=NOW)
            store.tokens[token_hash("a")] = named("a")
            tokens.clear()
            assert await tokens.look_up("a") == named("a")

        assert len(self.play(scene, "a").asked) == 3

    def test_an_unknown_token_is_asked_for_each_time_and_never_remembered(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            for _ in range(3):
                assert await tokens.look_up("new") is None
            store.tokens[token_hash("new")] = named("new")
            assert await tokens.look_up("new") == named("new")

        assert len(self.play(scene).asked) == 4

    def test_memory_is_bounded_and_the_token_looked_up_least_recently_is_forgotten(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            for name in "abc":
                await tokens.look_up(name)
            clock.now += KEEP_S
            await tokens.look_up("a")  # asked for again, so remembered as the newest
            await tokens.look_up("d")  # forgets b
            asked = len(store.asked)
            await tokens.look_up("a")
            await tokens.look_up("d")
            assert len(store.asked) == asked
            clock.now -= KEEP_S
            await tokens.look_up("c")
            assert len(store.asked) == asked
            await tokens.look_up("b")
            assert len(store.asked) == asked + 1

        self.play(scene, *"abcd")

    def test_a_store_error_reaches_every_caller_and_the_next_try_may_work(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            store.error = StoreUnusable("away")
            for found in await asyncio.gather(*(tokens.look_up("a") for _ in range(3)), return_exceptions=True):
                assert isinstance(found, StoreUnusable)
            store.error = None
            assert await tokens.look_up("a") == named("a")

        self.play(scene, "a")

    def test_an_answer_that_took_too_long_is_not_believed(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            asking = await begun(store, tokens)
            store.tokens[token_hash("a")] = named("a", revoked_ms=NOW)
            clock.now += KEEP_S
            store.go.set()
            with pytest.raises(StoreUnusable, match="not believed"):
                await asking
            assert await tokens.look_up("a") == named("a", revoked_ms=NOW)

        self.play(scene, "a")

    def test_a_change_during_a_query_counts_even_if_it_is_no_longer_remembered(self) -> None:
        async def scene(store: Store, tokens: TokenDirectory, clock: Clock) -> None:
            asking = await begun(store, tokens)
            tokens.put(named("a", revoked_ms=NOW))
            for name in "bcd":
                tokens.put(named(name))  # more than are remembered
            store.go.set()
            assert await asking == named("a", revoked_ms=NOW)

        self.play(scene, "a")

    def test_a_store_that_does_not_answer_is_an_error_in_time(self) -> None:
        async def scene() -> None:
            store = Store(named("a"))
            tokens = TokenDirectory(store, clock=Clock(), patience_s=0.01)
            store.go.clear()
            for _ in range(2):
                with pytest.raises(StoreUnusable, match="looked up within"):
                    await tokens.look_up("a")
            store.go.set()
            assert await tokens.look_up("a") == named("a")

        asyncio.run(scene())


def named(name: str, **changes: Any) -> Token:
    return token("viewer", name, label=name, **changes)


async def begun(store: Store, tokens: TokenDirectory) -> "asyncio.Task[Token | None]":
    """A look-up of "a" whose query has begun and waits for `go`."""
    store.go.clear()
    store.began.clear()
    asking = asyncio.create_task(tokens.look_up("a"))
    await store.began.wait()
    return asking
