"""Tokens, enrollment codes, enrollment, and an admin's acts on devices."""

import dataclasses
import json
from typing import Any

import pytest
from msgspec.structs import replace

from pisync_common.times import format_ms
from pisync_receiver.domain.fleet import DeviceRecord
from pisync_receiver.domain.rows import Device, EnrollmentCode, Token
from pisync_receiver.domain.submissions import (
    CodeCreate,
    CodeEnd,
    DeviceChange,
    Enroll,
    Enrolled,
    Submission,
    TokenCreate,
    TokenRefused,
    TokenRevoke,
)
from pisync_receiver.errors import EnrollmentRefused, UnknownCode, UnknownToken
from tests.support.blocking import BlockingStore, send, stored, sync, written
from tests.support.submissions import DAY, HOUR, NOON, batch, event, sync_event


def token(store: BlockingStore, hashed: str = "hash-1", **fields: Any) -> Token:
    made = written(store, TokenCreate(**_filled(fields, scope="admin", token_hash=hashed, at_ms=NOON)))
    assert isinstance(made, Token)
    return made


def code(store: BlockingStore, code_hash: str = "code-1", **fields: Any) -> EnrollmentCode:
    made = written(store, CodeCreate(**_filled(fields, code_hash=code_hash, at_ms=NOON, expires_ms=NOON + DAY)))
    assert isinstance(made, EnrollmentCode)
    return made


def enroll(store: BlockingStore, device_id: str | None = "pibook-1", **fields: Any) -> Enrolled:
    given = _filled(
        fields,
        code_hash="code-1",
        device_id=device_id,
        fallback_device_id="pi-random",
        token_hash=f"token-of-{device_id}",
        at_ms=NOON + 5,
    )
    outcome = written(store, Enroll(**given))
    assert isinstance(outcome, Enrolled)
    return outcome


def change(store: BlockingStore, device_id: str = "pibook-1", **fields: Any) -> Device:
    outcome = written(store, DeviceChange(**_filled(fields, device_id=device_id, at_ms=NOON + HOUR)))
    assert isinstance(outcome, Device)
    return outcome


def _filled(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | fields


class TokenConformance:
    def test_token_is_kept_by_its_hash(self, store: BlockingStore) -> None:
        made = token(store, scope="viewer", label="dashboard", sites=("School 5", "مدرسة"), expires_ms=NOON + DAY)
        assert store.tokens_by_hash(["hash-1"]) == [made]
        assert made.id > 0
        assert "hash-1" not in repr(made)
        (record,) = store.tokens()
        assert (record.id, record.scope, record.label, record.sites) == (
            made.id,
            "viewer",
            "dashboard",
            ["School 5", "مدرسة"],
        )
        assert (record.created_at, record.expires_at) == (format_ms(NOON), format_ms(NOON + DAY))
        assert (record.revoked_at, record.last_refused, record.device_id) == (None, None, None)

    def test_new_tokens_of_a_group_have_their_own_ids(self, store: BlockingStore) -> None:
        outcomes = store.write([TokenCreate(scope="admin", token_hash=f"h{n}", at_ms=NOON) for n in range(3)])
        assert sorted(outcome.id for outcome in outcomes) == [record.id for record in store.tokens()]

    @pytest.mark.parametrize("token_id", [99, 0, -1, 2**53 - 1])
    def test_unknown_token_cannot_be_revoked(self, store: BlockingStore, token_id: int) -> None:
        with pytest.raises(UnknownToken):
            written(store, TokenRevoke(token_id=token_id, at_ms=NOON))
        assert written(store, TokenRefused(token_id=token_id, at_ms=NOON)) is None

    def test_rotation_lets_the_old_token_end_later(self, store: BlockingStore) -> None:
        old = token(store)
        new = token(store, "hash-2", replaces=old.id, replaced_until_ms=NOON + HOUR)
        found = {row.id: row.expires_ms for row in store.tokens_by_hash(["hash-1", "hash-2"])}
        assert found == {old.id: NOON + HOUR, new.id: None}
        with pytest.raises(UnknownToken):
            token(store, "hash-3", replaces=99, replaced_until_ms=NOON)
        assert len(store.tokens()) == 2

    def test_refused_token_is_noted_for_its_device(self, store: BlockingStore) -> None:
        code(store)
        made = enroll(store).token
        for at_ms in (NOON + 9, NOON + 7):
            assert written(store, TokenRefused(token_id=made.id, at_ms=at_ms)) is None
        device = store.device("pibook-1")
        assert (device.last_refused, device.last_contact) == (format_ms(NOON + 9), None)
        assert store.tokens()[0].last_refused == format_ms(NOON + 9)

    def test_tokens_are_found_by_their_hashes(self, store: BlockingStore) -> None:
        made = {name: token(store, name) for name in ("a", "b", "c")}
        written(store, TokenRevoke(token_id=made["b"].id, at_ms=NOON))
        found = {row.id: row.revoked_ms for row in store.tokens_by_hash(["a", "b", "unknown"])}
        assert found == {made["a"].id: None, made["b"].id: NOON}
        assert store.tokens_by_hash([]) == []


class EnrollmentConformance:
    def test_code_counts_down_and_remembers_its_devices(self, store: BlockingStore) -> None:
        code(store, uses=2, site="School 5", label="term 1")
        enroll(store, "b")
        enroll(store, "a")
        with pytest.raises(EnrollmentRefused):
            enroll(store, "c")
        assert store.device("c") is None
        (record,) = store.codes()
        assert (record.uses, record.uses_left, record.devices) == (2, 0, ["a", "b"])
        assert (record.label, record.site, record.expires_at) == ("term 1", "School 5", format_ms(NOON + DAY))
        assert "code-1" not in repr(record)

    @pytest.mark.parametrize("twice", [False, True])
    def test_known_device_keeps_its_past_if_its_code_is_made_in_the_same_group(
        self, store: BlockingStore, twice: bool
    ) -> None:
        """A code that is made twice stays as it was made first."""
        send(store, batch([event(1)]))
        create = CodeCreate(
            code_hash="code-1", at_ms=NOON, expires_ms=NOON + DAY, uses=1, site=None, device_id="pibook-1", label=None
        )
        use = Enroll(
            code_hash="code-1",
            device_id=None,
            fallback_device_id="pi-random",
            token_hash="token-1",
            at_ms=NOON,
            overlap_ms=DAY,
        )

        again = [dataclasses.replace(create, device_id=None)] if twice else []
        *_, enrolled = store.write([create, *again, use])

        assert isinstance(enrolled, Enrolled)
        device = store.device("pibook-1")
        assert device is not None
        assert (enrolled.device_id, device.agent) == ("pibook-1", "pisync/0.2.0")

    def test_ended_code_is_refused(self, store: BlockingStore) -> None:
        made = code(store)
        for at_ms in (NOON + 1, NOON + 2):
            assert written(store, CodeEnd(code_id=made.id, at_ms=at_ms)).ended_ms == NOON + 1
        with pytest.raises(EnrollmentRefused):
            enroll(store)
        assert store.codes()[0].ended_at == format_ms(NOON + 1)
        with pytest.raises(UnknownCode):
            written(store, CodeEnd(code_id=99, at_ms=NOON))


class DeviceConformance:
    def test_change_grouped_with_a_first_submission_succeeds_in_any_order(self, store: BlockingStore) -> None:
        for first in (batch([1]), sync_event(NOON)):
            outcomes = []
            for place, device_id in enumerate((f"{type(first).__name__}-a", f"{type(first).__name__}-b")):
                group: list[Submission] = [replace(first, device_id=device_id)]
                group.insert(place, DeviceChange(device_id=device_id, at_ms=NOON, label="x"))
                changed = store.write(group)[place]
                assert isinstance(changed, Device)
                assert changed.label == store.device(device_id).label == "x"
                outcomes.append(replace(store.device(device_id), device_id="same"))
            assert outcomes[0] == outcomes[1]

    def test_moved_device_leaves_its_past_where_it_was(self, store: BlockingStore) -> None:
        code(store, site="Nakuru")
        enroll(store)
        send(store, batch([self._at(1, NOON + HOUR)], received_ms=NOON + HOUR))
        sync(store, sync_event(NOON + HOUR, received_ms=NOON + HOUR))
        change(store, site="Kisumu", at_ms=NOON + 5 * HOUR, site_since_ms=NOON + 3 * HOUR)
        send(store, batch([self._at(2, NOON + 2 * HOUR), self._at(3, NOON + 4 * HOUR)], received_ms=NOON + 6 * HOUR))
        sync(store, sync_event(NOON + 4 * HOUR, received_ms=NOON + 6 * HOUR))
        assert [row.site for row in stored(store)] == ["Nakuru", "Nakuru", "Kisumu"]
        assert [row.site for row in store.history("pibook-1").rows] == ["Kisumu", "Nakuru"]
        assert store.device("pibook-1").site == "Kisumu"

    def test_every_field_of_a_device_comes_back(self, store: BlockingStore) -> None:
        code(store, site="Nakuru")
        enroll(store)
        send(store, batch([1], agent="pisync/9", received_ms=NOON + 9))
        change(store, label="front row")
        made = change(store, site="Kisumu")
        assert json.loads(made.site_history or "") == [[NOON + HOUR, "Nakuru"]]
        assert store.device("pibook-1") == DeviceRecord(
            device_id="pibook-1",
            label="front row",
            site="Kisumu",
            state="well",
            since=None,
            incomplete=False,
            agent="pisync/9",
            enrolled_at=format_ms(NOON + 5),
            retired_at=None,
            last_contact=format_ms(NOON + 9),
            last_refused=None,
            consecutive_failures=0,
            total_failures=0,
            failing_since=None,
            last_sync_at=None,
            last_success_at=None,
            last_errors={},
            cloned_since=None,
            conflicts=0,
            sync_asked_at=None,
        )

    def _at(self, seq: int, ms: int) -> Any:
        return event(seq, occurred_ms=ms, clock_synced=True)
