"""Tokens and the gate: found by hash, ended at their time, noted when refused."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pisync_receiver.auth import NOBODY, PREFIXES, Caller, Gate, Tokens, Who, new_token, token_hash
from pisync_receiver.errors import Overloaded, Problem
from pisync_receiver.refusals import Refusals
from pisync_receiver.store import Role, TokenRow

NOW = 1_795_428_000_000
SECRET = "psd_secret"


def row(role: Role = "device", **changes: Any) -> TokenRow:
    base = TokenRow(
        id="t1",
        role=role,
        token_hash=token_hash(SECRET),
        device_id="pi-1" if role == "device" else None,
        label=None,
        created_ms=NOW,
        expires_ms=None,
        revoked_ms=None,
        last_refused_ms=None,
    )
    return replace(base, **changes)


def gate(token: TokenRow, *, required: bool = True, noted: list[int] | None = None) -> Gate:
    def note(_: TokenRow, now_ms: int) -> None:
        if noted is not None:
            noted.append(now_ms)

    return Gate(Tokens([token]), required=required, now_ms=lambda: NOW, refused=note)


def admit(token: TokenRow, who: Who, secret: str = SECRET, device_id: str = "pi-1", **how: Any) -> Caller:
    headers = {b"authorization": f"Bearer {secret}".encode("latin-1")}
    return asyncio.run(gate(token, **how).admit(who, headers, {"device_id": device_id}))


def test_a_token_says_what_it_is_for_and_is_never_the_same() -> None:
    for role, prefix in PREFIXES.items():
        assert new_token(role).startswith(prefix)
        assert new_token(role) != new_token(role)
        assert len(new_token(role)) >= len(prefix) + 43  # 256 bits in base 64


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        ({}, False),
        ({"revoked_ms": NOW}, True),
        ({"revoked_ms": NOW - 1}, True),
        ({"revoked_ms": NOW + 1}, False),
        ({"expires_ms": NOW}, True),
        ({"expires_ms": NOW + 1}, False),
        ({"expires_ms": NOW + 1, "revoked_ms": NOW}, True),
    ],
)
def test_a_token_ends_at_its_time_and_its_use_after_that_is_noted(changes: dict[str, Any], ended: bool) -> None:
    noted: list[int] = []
    if not ended:
        assert admit(row(**changes), Who.DEVICE, noted=noted).device_id == "pi-1"
        assert noted == []
        return
    with pytest.raises(Problem) as caught:
        admit(row(**changes), Who.DEVICE, noted=noted)
    assert (caught.value.status, caught.value.problem_code) == (401, "token_ended")
    assert "invalid_token" in caught.value.headers["WWW-Authenticate"]
    assert noted == [NOW]


@pytest.mark.parametrize("secret", ["psd_other", "", "é", "\xff" * 10_000])
def test_a_token_nobody_made_is_401_and_not_noted(secret: str) -> None:
    noted: list[int] = []
    with pytest.raises(Problem) as caught:
        admit(row(), Who.DEVICE, secret=secret, noted=noted)
    assert caught.value.status == 401
    assert noted == []


@pytest.mark.parametrize(
    ("role", "who", "path_device", "allowed"),
    [
        ("device", Who.DEVICE, "pi-1", True),
        ("device", Who.READER, "pi-1", False),
        ("device", Who.OWNER, "pi-1", True),
        ("device", Who.OWNER, "pi-2", False),
        ("admin", Who.DEVICE, "pi-1", False),
        ("admin", Who.READER, "pi-1", True),
        ("admin", Who.OWNER, "pi-1", True),
        ("viewer", Who.DEVICE, "pi-1", False),
        ("viewer", Who.READER, "pi-1", True),
        ("viewer", Who.OWNER, "pi-1", True),
    ],
)
def test_what_a_role_may_do(role: Role, who: Who, path_device: str, allowed: bool) -> None:
    if allowed:
        assert admit(row(role), who, device_id=path_device).role == role
        return
    with pytest.raises(Problem) as caught:
        admit(row(role), who, device_id=path_device)
    assert caught.value.status == 403


def test_a_token_of_no_device_owns_nothing_and_a_route_with_owners_must_name_one() -> None:
    with pytest.raises(Problem):
        admit(row(device_id=None), Who.OWNER)
    with pytest.raises(KeyError):
        asyncio.run(gate(row()).admit(Who.OWNER, {b"authorization": b"Bearer " + SECRET.encode()}, {}))


def test_a_device_speaks_for_itself_only() -> None:
    caller = Caller(role="device", token_id="t1", device_id="pi-1")
    caller.check_is("pi-1")
    with pytest.raises(Problem) as caught:
        caller.check_is("pi-2")
    assert caught.value.status == 403
    NOBODY.check_is("pi-2")


def test_a_replaced_row_counts_at_once() -> None:
    tokens = Tokens()
    assert tokens.find(SECRET) is None
    tokens.put(row())
    assert tokens.find(SECRET) == row()
    tokens.put(row(revoked_ms=NOW))
    assert tokens.find(SECRET) == row(revoked_ms=NOW)


class Taking:
    """Stands for the intake."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.full = False

    def submit(self, submission: Any, size: int = 0) -> "asyncio.Future[Any]":
        if self.full:
            raise Overloaded("full", retry_after=1)
        self.taken.append(submission)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("the store failed"))
        return future


def test_a_refusal_is_noted_at_most_once_a_minute_a_token_and_never_fails_the_request() -> None:
    async def scene() -> None:
        intake: Any = Taking()
        refusals = Refusals(intake)
        other = row(id="t2")
        for token, at in ((row(), 0), (row(), 59_999), (other, 1), (row(), 60_000), (row(), 30_000)):
            refusals.note(token, NOW + at)
        await asyncio.sleep(0)
        seen = [(one.token_id, one.at_ms - NOW) for one in intake.taken]
        assert seen == [("t1", 0), ("t2", 1), ("t1", 60_000), ("t1", 30_000)]  # the clock was set back: noted again
        intake.full = True
        refusals.note(row(), NOW + 200_000)

    asyncio.run(scene())
