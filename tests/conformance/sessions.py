"""Sessions: opened by a token, kept open by use, ended with their token."""

from typing import Any

import pytest

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.sessions import IDLE_MS, KEPT_MS, LASTS_MS, MOVE_MS, OPEN_AT_ONCE
from pisync_receiver.domain.submissions import SessionClose, SessionOpen, SessionUse, TokenCreate, TokenRevoke
from pisync_receiver.errors import SignInRefused, UnknownToken
from tests.support.blocking import BlockingStore, written
from tests.support.submissions import DAY, HOUR, MINUTE, NOON


def token(store: BlockingStore, digest: str = "t1", **fields: Any) -> Token:
    given: dict[str, Any] = {"scope": "viewer", "token_hash": digest, "at_ms": NOON}
    made = written(store, TokenCreate(**given | fields))
    assert isinstance(made, Token)
    return made


def opened(store: BlockingStore, digest: str = "s1", *, at_ms: int = NOON, parent: str = "t1") -> Token:
    made = written(store, SessionOpen(token_hash=digest, parent_hash=parent, at_ms=at_ms))
    assert isinstance(made, Token)
    assert store.tokens_by_hash([digest]) == [made]
    return made


def ends(store: BlockingStore, *digests: str) -> list[tuple[int | None, int | None, int | None]]:
    """When sessions end: revoked, without use, in any case; those that are gone are left out."""
    rows = sorted(store.tokens_by_hash(list(digests)), key=lambda row: row.id)
    return [(row.revoked_ms, row.expires_ms, row.session_until_ms) for row in rows]


class SessionConformance:
    def test_a_session_may_what_its_token_may(self, store: BlockingStore) -> None:
        parent = token(store, label="office", sites=("Nakuru",))
        session = opened(store)
        assert (session.scope, session.label, session.sites) == ("viewer", "office", '["Nakuru"]')
        assert (session.parent_id, session.id > parent.id) == (parent.id, True)
        assert ends(store, "s1") == [(None, NOON + IDLE_MS, NOON + LASTS_MS)]
        assert opened(store, at_ms=NOON + 1) == session
        assert [row.id for row in store.tokens()] == [parent.id]
        assert [row.id for row in store.tokens(sessions=True)] == [parent.id, session.id]

    def test_an_identity_provider_vouches_for_a_person(self, store: BlockingStore) -> None:
        session = written(store, SessionOpen(token_hash="s1", at_ms=NOON, scope="admin", label="a@example.org"))
        assert (session.scope, session.label, session.parent_id) == ("admin", "a@example.org", None)

    @pytest.mark.parametrize(
        "fields",
        [
            {"scope": "device", "device_id": "pi-1"},
            {"scope": "metrics"},
            {"expires_ms": NOON},
            {"expires_ms": NOON - 1},
        ],
    )
    def test_other_tokens_open_none(self, store: BlockingStore, fields: dict[str, Any]) -> None:
        token(store, **fields)
        for parent in ("t1", "unknown"):
            with pytest.raises(SignInRefused):
                opened(store, parent=parent)
        assert ends(store, "s1") == []

    def test_a_session_opens_no_other(self, store: BlockingStore) -> None:
        token(store)
        opened(store)
        with pytest.raises(SignInRefused):
            opened(store, "s2", parent="s1")

    def test_use_moves_the_idle_end_and_never_past_the_absolute_end(self, store: BlockingStore) -> None:
        token(store)
        session = opened(store)

        def used(at_ms: int) -> int | None:
            row = written(store, SessionUse(session_id=session.id, at_ms=at_ms))
            return None if row is None else row.expires_ms

        assert used(NOON + MOVE_MS - 1) == NOON + IDLE_MS
        assert used(NOON + MOVE_MS) == NOON + MOVE_MS + IDLE_MS
        for turn in range(1, 13):
            at_ms = NOON + turn * (HOUR - MINUTE)
            assert used(at_ms) == min(at_ms + IDLE_MS, NOON + LASTS_MS)
        assert used(NOON + LASTS_MS) is None
        assert written(store, SessionUse(session_id=99, at_ms=NOON)) is None
        assert written(store, SessionUse(session_id=0, at_ms=NOON)) is None

    def test_a_session_ends_with_its_token(self, store: BlockingStore) -> None:
        parent = token(store)
        other = token(store, "t2")
        opened(store, "s1")
        opened(store, "s2", parent="t2")
        ended = opened(store, "s3")
        written(store, SessionClose(session_id=ended.id, at_ms=NOON + 1))
        written(store, TokenRevoke(token_id=parent.id, at_ms=NOON + 2))
        assert [revoked for revoked, *_ in ends(store, "s1", "s2", "s3")] == [NOON + 2, None, NOON + 1]
        assert written(store, SessionUse(session_id=ended.id, at_ms=NOON + 3)) is None
        assert other.revoked_ms is None

    def test_opened_and_revoked_in_one_group_ends(self, store: BlockingStore) -> None:
        parent = token(store)
        opening = SessionOpen(token_hash="s1", parent_hash="t1", at_ms=NOON)
        store.write([opening, TokenRevoke(token_id=parent.id, at_ms=NOON + 1)])
        assert [revoked for revoked, *_ in ends(store, "s1")] == [NOON + 1]

    def test_a_rotated_token_takes_its_sessions_along(self, store: BlockingStore) -> None:
        parent = token(store)
        opened(store)
        until = NOON + 5 * MINUTE
        token(store, "t2", replaces=parent.id, replaced_until_ms=until)
        assert ends(store, "s1") == [(None, until, until)]
        with pytest.raises(UnknownToken):
            token(store, "t3", replaces=opened(store, at_ms=NOON + 1).id, replaced_until_ms=until)

    def test_a_session_ends_no_later_than_its_token(self, store: BlockingStore) -> None:
        token(store, expires_ms=NOON + MINUTE)
        opened(store)
        assert ends(store, "s1") == [(None, NOON + MINUTE, NOON + MINUTE)]

    def test_the_oldest_sessions_of_a_token_end(self, store: BlockingStore) -> None:
        token(store)
        names = [f"s{n}" for n in range(OPEN_AT_ONCE + 2)]
        for name in names:
            opened(store, name)
        found = [revoked for revoked, *_ in ends(store, *names)]
        assert found == [NOON, NOON] + [None] * OPEN_AT_ONCE

    def test_rows_of_sessions_that_ended_long_ago_are_deleted(self, store: BlockingStore) -> None:
        token(store)
        opened(store)
        opened(store, "s2", at_ms=NOON + LASTS_MS + KEPT_MS)
        assert len(ends(store, "s1", "s2")) == 2
        opened(store, "s3", at_ms=NOON + LASTS_MS + KEPT_MS + 1)
        assert len(ends(store, "s1", "s2", "s3")) == 2
        assert len(store.tokens()) == 1
        assert DAY < KEPT_MS
