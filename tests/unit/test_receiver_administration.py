"""Tokens and codes made by command: what is stored, what callers' tokens become, what is refused."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pisync_common.errors import PiSyncError
from pisync_receiver.administration import Administration, alone
from pisync_receiver.auth import Tokens, token_hash
from pisync_receiver.codes import normalized
from pisync_receiver.config import Paths
from pisync_receiver.control import ControlError
from pisync_receiver.store import Enroll, Enrolled, Submission
from pisync_receiver.store.sqlite import SqliteStore, open_store

NOW = 1_795_428_000_000  # 2026-11-23T10:00:00Z
HOUR = 3_600_000


class Desk:
    """An administration over a real store, at a time of the test's choosing."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.tokens = Tokens()
        self.now = NOW
        self._do = Administration(store, tokens=self.tokens, submit=self.submit, now_ms=lambda: self.now).do

    async def submit(self, submission: Submission) -> object:
        (outcome,) = self.store.write([submission])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def do(self, name: str, **message: object) -> Mapping[str, Any]:
        return asyncio.run(self._do({"do": name} | message))

    def token(self, replaces: str | None = None, overlap_ms: int = HOUR) -> Mapping[str, Any]:
        return self.do("token.create", role="viewer", replaces=replaces, overlap_ms=overlap_ms)

    def code(self, **message: object) -> Mapping[str, Any]:
        return self.do(
            "enrollment.create", **({"uses": 1, "expires_ms": HOUR, "site": None, "device_id": None} | message)
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = open_store(tmp_path / "receiver.db", create=True)
    yield Desk(store)
    store.close()


def test_a_token_is_known_at_once_and_stored_only_as_a_hash(desk: Desk) -> None:
    made = desk.token()
    known = desk.tokens.find(made["token"])
    assert known is not None
    assert (known.id, known.role) == (made["id"], "viewer")
    assert desk.store.all_tokens() == [known]
    assert known.token_hash == token_hash(made["token"])
    assert made["token"].encode() not in desk.store.path.read_bytes()


def test_a_replaced_token_gets_an_end_that_is_never_put_off(desk: Desk) -> None:
    first = desk.token()
    assert desk.token(first["id"], HOUR)["replaced_ends"] == "2026-11-23T11:00:00.000Z"
    assert desk.token(first["id"], 2 * HOUR)["replaced_ends"] == "2026-11-23T11:00:00.000Z"
    assert desk.token(first["id"], 0)["replaced_ends"] == "2026-11-23T10:00:00.000Z"
    known = desk.tokens.find(first["token"])
    assert known is not None
    assert known.expires_ms == NOW


def test_a_token_with_an_end_to_come_can_be_revoked_now(desk: Desk) -> None:
    first = desk.token()
    desk.token(first["id"], HOUR)
    desk.do("token.revoke", id=first["id"])
    known = desk.tokens.find(first["token"])
    assert known is not None
    assert known.revoked_ms == NOW


def test_a_devices_token_is_not_replaced_by_an_admins(desk: Desk) -> None:
    code = desk.code()
    enrolled = asyncio.run(
        desk.submit(
            Enroll(
                code_hash=token_hash(normalized(code["code"])),
                device_id="pibook-1",
                fallback_device_id="pi-1",
                token_hash=token_hash("psd_x"),
                at_ms=NOW,
            )
        )
    )
    assert isinstance(enrolled, Enrolled)
    for unknown in (enrolled.token.id, "77", "x"):
        with pytest.raises(ControlError, match="nothing was changed"):
            desk.token(unknown)
    assert len(desk.store.all_tokens()) == 1


def test_a_code_keeps_what_it_was_made_for(desk: Desk) -> None:
    made = desk.code(uses=30, site="Nakuru", device_id="pibook-1")
    (row,) = desk.store.enrollments()
    assert (row.uses_left, row.site, row.device_id, row.expires_ms) == (30, "Nakuru", "pibook-1", NOW + HOUR)
    assert made["expires_at"] == "2026-11-23T11:00:00.000Z"


@pytest.mark.parametrize("message", [{}, {"do": "dance"}, {"do": 5}, {"do": ["x"]}])
def test_an_unknown_command_is_refused(desk: Desk, message: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match="another version"):
        asyncio.run(desk._do(message))


def test_alone_it_makes_the_database_and_closes_it(tmp_path: Path) -> None:
    paths = Paths(database=tmp_path / "new" / "receiver.db")
    message = {"do": "token.create", "role": "admin", "replaces": None, "overlap_ms": 0}
    for expected in ("1", "2"):
        assert asyncio.run(_done(alone(lambda: open_store(paths.database, create=True)), message))["id"] == expected
    with pytest.raises(PiSyncError, match="no token"):
        asyncio.run(_done(alone(lambda: open_store(paths.database, create=True)), {"do": "token.revoke", "id": "3"}))
    assert {file.name for file in paths.database.parent.iterdir()} == {"receiver.db"}


async def _done(do: Any, message: Mapping[str, Any]) -> Mapping[str, Any]:
    result: Mapping[str, Any] = await do(message)
    return result
