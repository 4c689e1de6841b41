"""Tokens and enrollment codes."""

import pytest

from pisync_receiver.errors import DeviceIdTaken, EnrollmentRefused, UnknownToken
from pisync_receiver.store import (
    OVERLAP_MS,
    Enroll,
    Enrolled,
    EnrollmentCreate,
    Store,
    TokenCreate,
    TokenRefused,
    TokenRevoke,
    TokenRow,
)
from tests.support.stores.made import NOON, batch, report, send, tell, written

DAY = 24 * 3_600_000


def token(store: Store, hashed: str = "hash-1", **fields: object) -> TokenRow:
    given = {"role": "admin", "token_hash": hashed, "created_ms": NOON} | fields
    made = written(store, TokenCreate(**given))  # type: ignore[arg-type]
    assert isinstance(made, TokenRow)
    return made


def code(store: Store, code_hash: str = "code-1", **fields: object) -> None:
    given = {"code_hash": code_hash, "created_ms": NOON, "expires_ms": NOON + DAY} | fields
    written(store, EnrollmentCreate(**given))  # type: ignore[arg-type]


def enroll(store: Store, device_id: str | None = "pibook-1", **fields: object) -> Enrolled:
    given = {
        "code_hash": "code-1",
        "device_id": device_id,
        "fallback_device_id": "pi-random",
        "token_hash": f"token-of-{device_id}",
        "at_ms": NOON + 5,
    } | fields
    outcome = written(store, Enroll(**given))  # type: ignore[arg-type]
    assert isinstance(outcome, Enrolled)
    return outcome


class AccessConformance:
    def test_a_token_is_kept_by_its_hash(self, store: Store) -> None:
        made = token(store, role="viewer", label="dashboard", expires_ms=NOON + DAY)
        assert store.all_tokens() == [made]
        assert (made.role, made.token_hash, made.label, made.expires_ms) == (
            "viewer",
            "hash-1",
            "dashboard",
            NOON + DAY,
        )
        assert (made.revoked_ms, made.last_refused_ms, made.device_id) == (None, None, None)
        assert "hash-1" not in repr(made)

    def test_one_hash_is_one_token(self, store: Store) -> None:
        token(store)
        first, second = store.write([TokenCreate(role="admin", token_hash="hash-1", created_ms=1), report(NOON)])
        assert isinstance(first, Exception)
        assert not isinstance(second, Exception)
        assert len(store.all_tokens()) == 1

    def test_a_token_is_revoked_once(self, store: Store) -> None:
        made = token(store)
        for at_ms in (NOON + 1, NOON + 2):
            ended = written(store, TokenRevoke(token_id=made.id, at_ms=at_ms))
            assert isinstance(ended, TokenRow)
            assert ended.revoked_ms == NOON + 1
        assert store.all_tokens()[0].revoked_ms == NOON + 1

    @pytest.mark.parametrize("token_id", ["99", "", "x", "-1", "²", "9" * 30])
    def test_a_token_nobody_made_cannot_be_revoked(self, store: Store, token_id: str) -> None:
        with pytest.raises(UnknownToken):
            written(store, TokenRevoke(token_id=token_id, at_ms=NOON))
        assert written(store, TokenRefused(token_id=token_id, at_ms=NOON)) is None

    def test_a_refused_token_is_noted_for_its_device(self, store: Store) -> None:
        code(store)
        made = enroll(store).token
        for at_ms in (NOON + 9, NOON + 7):
            assert written(store, TokenRefused(token_id=made.id, at_ms=at_ms)) is None
        device = store.device("pibook-1")
        assert device is not None
        assert (device.last_refused_ms, device.last_contact_ms) == (NOON + 9, None)
        assert store.all_tokens()[0].last_refused_ms == NOON + 9

    def test_a_code_becomes_a_device_and_a_token(self, store: Store) -> None:
        code(store, site="School 5")
        outcome = enroll(store)
        assert (outcome.device_id, outcome.ending) == ("pibook-1", ())
        assert (outcome.token.role, outcome.token.device_id, outcome.token.token_hash) == (
            "device",
            "pibook-1",
            "token-of-pibook-1",
        )
        device = store.device("pibook-1")
        assert device is not None
        assert (device.site, device.enrolled_ms, device.last_contact_ms) == ("School 5", NOON + 5, None)
        assert store.all_tokens() == [outcome.token]

    def test_a_device_without_a_wish_gets_an_id(self, store: Store) -> None:
        code(store)
        assert enroll(store, None).device_id == "pi-random"

    def test_a_code_counts_down(self, store: Store) -> None:
        code(store, uses=2)
        enroll(store, "a")
        enroll(store, "b")
        assert store.enrollments()[0].uses_left == 0
        with pytest.raises(EnrollmentRefused):
            enroll(store, "c")
        assert store.device("c") is None

    def test_two_of_one_group_cannot_share_the_last_use(self, store: Store) -> None:
        code(store)
        wishes = [
            Enroll(code_hash="code-1", device_id=name, fallback_device_id="x", token_hash=name, at_ms=NOON)
            for name in ("a", "b")
        ]
        first, second = store.write(wishes)
        assert isinstance(first, Enrolled)
        assert isinstance(second, EnrollmentRefused)
        assert [row.device_id for row in store.devices().rows] == ["a"]

    def test_a_code_expires(self, store: Store) -> None:
        code(store)
        with pytest.raises(EnrollmentRefused):
            enroll(store, at_ms=NOON + DAY)
        assert enroll(store, at_ms=NOON + DAY - 1).device_id == "pibook-1"

    def test_a_code_nobody_made_opens_nothing(self, store: Store) -> None:
        with pytest.raises(EnrollmentRefused):
            enroll(store)
        assert store.devices().rows == ()

    def test_an_id_that_is_taken_needs_consent(self, store: Store) -> None:
        code(store, uses=5)
        enroll(store)
        with pytest.raises(DeviceIdTaken):
            enroll(store, token_hash="another")
        assert store.enrollments()[0].uses_left == 4
        assert len(store.all_tokens()) == 1

    def test_an_id_that_ever_sent_something_is_taken(self, store: Store) -> None:
        tell(store, report(NOON, device="x"))
        code(store)
        with pytest.raises(DeviceIdTaken):
            enroll(store, "x")
        send(store, batch([1], device="y"))
        with pytest.raises(DeviceIdTaken):
            enroll(store, "y")

    def test_a_code_made_for_a_device_is_consent(self, store: Store) -> None:
        code(store, site="School 5")
        old = enroll(store).token
        code(store, "code-2", device_id="pibook-1")
        outcome = enroll(store, None, code_hash="code-2", at_ms=NOON + 50)
        assert outcome.device_id == "pibook-1"
        assert [(row.id, row.expires_ms) for row in outcome.ending] == [(old.id, NOON + 50 + OVERLAP_MS)]
        assert [row.expires_ms for row in store.all_tokens()] == [NOON + 50 + OVERLAP_MS, None]
        device = store.device("pibook-1")
        assert device is not None
        assert (device.site, device.enrolled_ms) == ("School 5", NOON + 50)

    def test_the_overlap_never_prolongs_a_token(self, store: Store) -> None:
        token(store, "short", role="device", device_id="pibook-1", expires_ms=NOON + 100)
        revoked = token(store, "gone", role="device", device_id="pibook-1")
        written(store, TokenRevoke(token_id=revoked.id, at_ms=NOON))
        code(store, device_id="pibook-1")
        outcome = enroll(store)
        assert [row.expires_ms for row in outcome.ending] == [NOON + 100]

    def test_a_code_made_for_one_device_opens_no_other(self, store: Store) -> None:
        code(store, device_id="pibook-1")
        with pytest.raises(EnrollmentRefused):
            enroll(store, "pibook-2")
        assert enroll(store, "pibook-1").device_id == "pibook-1"

    def test_tokens_are_found_by_their_hashes(self, store: Store) -> None:
        made = {name: token(store, name) for name in ("a", "b", "c")}
        written(store, TokenRevoke(token_id=made["b"].id, at_ms=NOON))
        wanted = [made["a"].token_hash, made["b"].token_hash, "nobody's"]
        found = {row.id: row.revoked_ms for row in store.tokens_by_hash(wanted)}
        assert found == {made["a"].id: None, made["b"].id: NOON}
        assert store.tokens_by_hash([]) == []

    def test_codes_are_listed_without_the_code(self, store: Store) -> None:
        code(store, uses=3, site="School 5", device_id="d")
        (row,) = store.enrollments()
        assert (row.uses_left, row.site, row.device_id, row.expires_ms) == (3, "School 5", "d", NOON + DAY)
        assert "code-1" not in repr(row)
