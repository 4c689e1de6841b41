"""Tokens, enrollment codes and devices: what an act changes, and what a repeat of it returns."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisync_receiver.domain.access import ENDING_KEPT
from pisync_receiver.domain.rows import Device, EnrollmentCode, Token
from pisync_receiver.domain.submissions import (
    OVERLAP_MS,
    CodeCreate,
    CodeEnd,
    DeviceChange,
    Enroll,
    Enrolled,
    Outcome,
    Submission,
    TokenCreate,
    TokenRefused,
    TokenRevoke,
)
from pisync_receiver.errors import DeviceIdTaken, EnrollmentRefused, UnknownCode, UnknownDevice, UnknownToken
from tests.support.memory_store import MemoryStore
from tests.support.submissions import HOUR, MINUTE, NOON, sync_event

T1 = "t1"


def code(store: MemoryStore, code_hash: str = "code", **changes: Any) -> EnrollmentCode:
    fields: dict[str, Any] = {"expires_ms": NOON + 100 * HOUR, "uses": 2} | changes
    (created,) = store.run(CodeCreate(code_hash=code_hash, at_ms=NOON, **fields))
    assert isinstance(created, EnrollmentCode)
    assert created.id > 0
    return created


def enroll_act(
    device_id: str | None = "pibook-1",
    *,
    code_hash: str = "code",
    token_hash: str = T1,
    at_ms: int = NOON,
    site: str | None = None,
) -> Enroll:
    return Enroll(
        code_hash=code_hash,
        device_id=device_id,
        fallback_device_id=f"random-{token_hash}",
        token_hash=token_hash,
        at_ms=at_ms,
        site=site,
    )


def enroll(store: MemoryStore, *args: Any, **changes: Any) -> Enrolled:
    (outcome,) = store.run(enroll_act(*args, **changes))
    assert isinstance(outcome, Enrolled), outcome
    return outcome


def refused(store: MemoryStore, *args: Any, **changes: Any) -> Exception:
    """A refusal, which must change nothing."""
    before = (dict(store.devices), dict(store.tokens), dict(store.codes))
    (outcome,) = store.run(enroll_act(*args, **changes))
    assert isinstance(outcome, Exception)
    assert (store.devices, store.tokens, store.codes) == before
    return outcome


# Enrollment.


def test_enrolling_makes_a_device_and_its_token() -> None:
    store = MemoryStore()
    made = code(store, site="north")
    enrolled = enroll(store)
    assert (enrolled.device_id, enrolled.ending, enrolled.token) == ("pibook-1", (), store.tokens["t1"])
    assert (enrolled.token.scope, enrolled.token.device_id, enrolled.token.expires_ms) == ("device", "pibook-1", None)
    assert enrolled.token.id > 0
    assert store.devices["pibook-1"] == Device(
        device_id="pibook-1", site="north", enrolled_ms=NOON, code_id=made.id, changed_ms=NOON
    )
    assert store.codes["code"].uses_left == 1


def test_the_same_code_and_id_again_use_nothing_up() -> None:
    store = MemoryStore()
    code(store, uses=1)
    first = enroll(store)
    again = enroll(store, token_hash="t2", at_ms=NOON + MINUTE)
    assert again.token == store.tokens["t2"] != first.token
    assert [(token.token_hash, token.expires_ms) for token in again.ending] == [("t1", NOON + MINUTE + OVERLAP_MS)]
    assert store.tokens["t1"] == again.ending[0]
    assert store.codes["code"].uses_left == 0
    third = enroll(store, token_hash="t3", at_ms=NOON + HOUR)
    assert [token.expires_ms for token in third.ending] == [NOON + MINUTE + OVERLAP_MS, NOON + HOUR + OVERLAP_MS]


def test_the_same_submission_again_returns_the_same_token() -> None:
    store = MemoryStore()
    code(store)
    first = enroll(store, None)
    (again,) = store.run(enroll_act(None))
    assert again == first
    assert len(store.tokens) == 1


def test_a_code_of_another_site_is_refused_with_both_names() -> None:
    store = MemoryStore()
    code(store, site="north")
    said = str(refused(store, site="south"))
    assert "'north'" in said
    assert "'south'" in said
    enroll(store, site="north")
    assert store.devices["pibook-1"].site == "north"


def test_a_devices_own_site_is_taken_where_there_is_none() -> None:
    store = MemoryStore()
    code(store, uses=3)
    enroll(store, site="south")
    assert store.devices["pibook-1"].site == "south"
    enroll(store, site="north", token_hash="t2")
    assert store.devices["pibook-1"].site == "south", "a device does not move on its own word"


def test_two_devices_in_one_group_share_the_last_use() -> None:
    store = MemoryStore()
    code(store, uses=1)
    one, other = store.run(enroll_act("a", token_hash="t1"), enroll_act("b", token_hash="t2"))
    assert isinstance(one, Enrolled)
    assert isinstance(other, EnrollmentRefused)
    assert store.devices.keys() == {"a"}
    assert store.codes["code"].uses_left == 0


def test_a_device_without_a_wish_gets_a_random_id() -> None:
    store = MemoryStore()
    code(store)
    assert enroll(store, None).device_id == "random-t1"


@pytest.mark.parametrize("device_id", [None, "pibook-1"])
def test_a_code_for_a_device_lets_it_in_though_it_exists(device_id: str | None) -> None:
    store = MemoryStore()
    code(store)
    enroll(store)
    code(store, "bound", device_id="pibook-1", uses=1)
    enrolled = enroll(store, device_id, code_hash="bound", token_hash="t2", at_ms=NOON + HOUR)
    assert enrolled.device_id == "pibook-1"
    assert [token.token_hash for token in enrolled.ending] == ["t1"]
    assert store.codes["bound"].uses_left == 0


def test_a_code_takes_no_device_that_came_to_another_site_after_it_was_made() -> None:
    store = MemoryStore()
    code(store, "early", site="north", device_id="pibook-1")
    code(store, site="south")
    enroll(store, at_ms=NOON + HOUR)
    taken = refused(store, code_hash="early", token_hash="t2", at_ms=NOON + 2 * HOUR)
    assert isinstance(taken, DeviceIdTaken)
    assert "another site" in str(taken)


def test_a_code_for_another_device_is_refused() -> None:
    store = MemoryStore()
    code(store, device_id="pibook-9")
    assert isinstance(refused(store), EnrollmentRefused)


def test_an_unknown_code_is_refused() -> None:
    assert isinstance(refused(MemoryStore()), EnrollmentRefused)


def test_a_used_up_code_is_refused() -> None:
    store = MemoryStore()
    code(store, uses=1)
    enroll(store)
    assert isinstance(refused(store, "pibook-2", token_hash="t2"), EnrollmentRefused)


def test_an_expired_code_is_refused_even_for_the_device_that_it_let_in() -> None:
    store = MemoryStore()
    code(store, expires_ms=NOON + HOUR)
    enroll(store, at_ms=NOON + HOUR - 1)
    assert isinstance(refused(store, token_hash="t2", at_ms=NOON + HOUR), EnrollmentRefused)
    assert isinstance(refused(store, "pibook-2", token_hash="t2", at_ms=NOON + HOUR), EnrollmentRefused)


def test_an_ended_code_is_refused_even_for_the_device_that_it_let_in() -> None:
    store = MemoryStore()
    made = code(store)
    enroll(store)
    (ended,) = store.run(CodeEnd(code_id=made.id, at_ms=NOON + MINUTE))
    (again,) = store.run(CodeEnd(code_id=made.id, at_ms=NOON + HOUR))
    assert isinstance(ended, EnrollmentCode)
    assert (ended.ended_ms, again) == (NOON + MINUTE, ended)
    assert isinstance(refused(store, token_hash="t2"), EnrollmentRefused)


def test_an_id_that_is_taken_needs_a_code_of_its_own() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON, device="pibook-1"))
    code(store)
    assert isinstance(refused(store), DeviceIdTaken)


def test_a_code_is_remembered_with_the_devices_it_let_in() -> None:
    store = MemoryStore()
    made, other = code(store), code(store, "other")
    enroll(store, "a")
    enroll(store, "b", token_hash="t2")
    enroll(store, "c", code_hash="other", token_hash="t3")
    assert [device.code_id for device in store.devices.values()] == [made.id, made.id, other.id]


def test_enrolling_again_and_again_leaves_few_tokens() -> None:
    store = MemoryStore()
    code(store)
    for n in range(30):
        enroll(store, token_hash=f"t{n}", at_ms=NOON + n)
    live = [token.token_hash for token in store.tokens.values() if token.revoked_ms is None]
    assert live == [f"t{n}" for n in range(30 - ENDING_KEPT - 1, 30)]
    store.served = 0
    ending = enroll(store, token_hash="last", at_ms=NOON + HOUR).ending
    assert store.served == 1 + 1 + len(live)
    assert [token.revoked_ms for token in ending] == [NOON + HOUR] + [None] * ENDING_KEPT


# Tokens.


def token(store: MemoryStore, token_hash: str = T1, **changes: Any) -> Token:
    fields: dict[str, Any] = {"scope": "viewer", "at_ms": NOON} | changes
    (created,) = store.run(TokenCreate(token_hash=token_hash, **fields))
    assert isinstance(created, Token), created
    return created


def one(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def test_creating_a_token_twice_returns_the_first() -> None:
    store = MemoryStore()
    first = token(store, label="the wall screen", sites=("nørth", "south"), expires_ms=NOON + HOUR)
    assert (first.id, first.sites, first.created_ms) == (1, '["nørth", "south"]', NOON)
    assert token(store, label="another", at_ms=NOON + HOUR) == first
    assert "t1" not in repr(first)


def test_a_token_for_a_device_makes_the_device() -> None:
    store = MemoryStore()
    token(store, scope="device", device_id="pibook-1")
    assert store.devices["pibook-1"] == Device(device_id="pibook-1")


@pytest.mark.parametrize(("expires_ms", "ends_ms"), [(None, NOON + HOUR), (NOON + MINUTE, NOON + MINUTE)])
def test_rotating_leaves_an_overlap(expires_ms: int | None, ends_ms: int) -> None:
    store = MemoryStore()
    old = token(store, expires_ms=expires_ms)
    new = token(store, "t2", replaces=old.id, replaced_until_ms=NOON + HOUR)
    assert (new.id, new.expires_ms) == (2, None)
    assert store.tokens["t1"].expires_ms == ends_ms
    assert store.tokens["t1"].revoked_ms is None


@pytest.mark.parametrize("replaces", [0, 7])
def test_replacing_an_unknown_token_creates_none(replaces: int) -> None:
    store = MemoryStore()
    assert isinstance(
        one(store.run(TokenCreate(scope="viewer", token_hash="t2", at_ms=NOON, replaces=replaces))), UnknownToken
    )
    assert store.tokens == {}


def test_replacing_a_token_of_another_scope_creates_none() -> None:
    store = MemoryStore()
    old = token(store)
    act = TokenCreate(scope="admin", token_hash="t2", at_ms=NOON, replaces=old.id, replaced_until_ms=NOON)
    assert isinstance(one(store.run(act)), UnknownToken)
    assert store.tokens == {"t1": old}


def test_revoking_twice_keeps_the_first_time() -> None:
    store = MemoryStore()
    made = token(store)
    first = one(store.run(TokenRevoke(token_id=made.id, at_ms=NOON + MINUTE)))
    assert isinstance(first, Token)
    assert first.revoked_ms == NOON + MINUTE
    assert one(store.run(TokenRevoke(token_id=made.id, at_ms=NOON + HOUR))) == first
    assert isinstance(one(store.run(TokenRevoke(token_id=99, at_ms=NOON))), UnknownToken)


def test_a_refused_token_is_noted_with_its_device() -> None:
    store = MemoryStore()
    made = token(store, scope="device", device_id="pibook-1")
    refusals = [TokenRefused(token_id=made.id, at_ms=NOON + at) for at in (5, 9, 7)]
    assert store.run(*refusals, TokenRefused(token_id=99, at_ms=NOON)) == [None] * 4
    assert store.tokens["t1"].last_refused_ms == NOON + 9
    assert store.devices["pibook-1"].last_refused_ms == NOON + 9
    assert store.devices["pibook-1"].last_contact_ms is None


# Devices and codes.


def test_retiring_revokes_every_token_and_bringing_back_revives_none() -> None:
    store = MemoryStore()
    code(store)
    enroll(store)
    enroll(store, token_hash="t2")
    enroll(store, "pibook-2", token_hash="t3")
    retired = one(store.run(DeviceChange(device_id="pibook-1", retire=True, at_ms=NOON + HOUR)))
    assert isinstance(retired, Device)
    assert retired.retired_ms == NOON + HOUR
    revoked = {name: row.revoked_ms for name, row in store.tokens.items()}
    assert revoked == {"t1": NOON + HOUR, "t2": NOON + HOUR, "t3": None}
    again = one(store.run(DeviceChange(device_id="pibook-1", retire=True, at_ms=NOON + 2 * HOUR)))
    assert isinstance(again, Device)
    assert again.retired_ms == retired.retired_ms
    back = one(store.run(DeviceChange(device_id="pibook-1", retire=False, at_ms=NOON + 3 * HOUR)))
    assert isinstance(back, Device)
    assert back.retired_ms is None
    assert store.tokens["t1"].revoked_ms == NOON + HOUR


def test_a_retired_device_that_enrolls_again_is_back() -> None:
    store = MemoryStore()
    code(store)
    enroll(store)
    store.run(DeviceChange(device_id="pibook-1", retire=True, at_ms=NOON))
    enroll(store, token_hash="t2")
    assert store.devices["pibook-1"].retired_ms is None


def test_a_token_revoked_in_the_same_group_is_not_ended_again() -> None:
    store = MemoryStore()
    code(store)
    enroll(store)
    retire = DeviceChange(device_id="pibook-1", retire=True, at_ms=NOON + HOUR)
    _, enrolled = store.run(retire, enroll_act(token_hash="t2", at_ms=NOON + HOUR))
    assert isinstance(enrolled, Enrolled)
    assert enrolled.ending == ()
    assert (store.tokens["t1"].revoked_ms, store.tokens["t1"].expires_ms) == (NOON + HOUR, None)


def test_changes_leave_other_fields_as_they_are() -> None:
    store = MemoryStore()
    code(store, site="north")
    enroll(store)
    before = store.devices["pibook-1"]
    renamed = one(store.run(DeviceChange(device_id="pibook-1", label="Front desk", at_ms=NOON)))
    assert isinstance(renamed, Device)
    assert (renamed.label, renamed.site, renamed.retired_ms) == ("Front desk", "north", None)
    assert one(store.run(DeviceChange(device_id="pibook-1", at_ms=NOON))) == renamed
    assert before.label is None


def test_a_change_of_an_unknown_device_makes_none() -> None:
    store = MemoryStore()
    outcome = one(store.run(DeviceChange(device_id="pibook-1", site="north", retire=True, at_ms=NOON)))
    assert isinstance(outcome, UnknownDevice)
    assert "'pibook-1'" in str(outcome)
    assert store.devices == {}


def test_creating_a_code_twice_returns_the_first() -> None:
    store = MemoryStore()
    first = code(store, uses=3, label="room 4")
    assert (first.uses, first.uses_left, first.label) == (3, 3, "room 4")
    assert code(store, uses=9) == first
    assert isinstance(one(store.run(CodeEnd(code_id=99, at_ms=NOON))), UnknownCode)
    assert '"code"' not in repr(first)


def test_acts_of_one_group_build_on_each_other() -> None:
    store = MemoryStore()
    made = code(store, uses=1)
    group: list[Submission] = [
        enroll_act(),
        DeviceChange(device_id="pibook-1", label="Front desk", at_ms=NOON),
        enroll_act(token_hash="t2"),
        DeviceChange(device_id="pibook-1", retire=True, at_ms=NOON + HOUR),
        CodeEnd(code_id=made.id, at_ms=NOON),
        enroll_act(token_hash="t3"),
    ]
    grouped = store.run(*group)
    singly = MemoryStore()
    code(singly, uses=1)
    outcomes = [singly.run(each)[0] for each in group]
    assert [type(each) for each in grouped] == [type(each) for each in outcomes]
    assert (store.devices, store.codes, store.tokens) == (singly.devices, singly.codes, singly.tokens)
    assert [row.revoked_ms for row in store.tokens.values()] == [NOON + HOUR, NOON + HOUR]


devices = st.sampled_from(["pibook-1", "pibook-2", "pibook-3"])
acts = st.lists(
    st.one_of(
        st.builds(enroll_act, devices | st.none(), code_hash=st.sampled_from(["one", "two", "bound", "ended"])),
        st.builds(DeviceChange, device_id=devices, at_ms=st.just(NOON), retire=st.sampled_from([None, True, False])),
        st.builds(TokenRevoke, token_id=st.integers(1, 2), at_ms=st.just(NOON)),
        st.builds(TokenRefused, token_id=st.integers(1, 2), at_ms=st.just(NOON)),
        st.builds(CodeEnd, code_id=st.integers(1, 4), at_ms=st.just(NOON)),
        st.builds(sync_event, st.just(NOON), device=st.just("pibook-2")),
    ),
    max_size=14,
)


@settings(max_examples=300, derandomize=True)
@given(acts=acts, sizes=st.lists(st.integers(1, 5), max_size=10))
def test_acts_end_the_same_in_any_groups(acts: list[Submission], sizes: list[int]) -> None:
    acts = [
        replace(act, token_hash=f"t{at}", fallback_device_id=f"random-{at}", at_ms=NOON + at)
        if isinstance(act, Enroll)
        else act
        for at, act in enumerate(acts)
    ]
    grouped, outcomes = run_acts(acts, sizes)
    singly, single_outcomes = run_acts(acts, [1] * len(acts))
    assert (grouped.devices, grouped.tokens, grouped.codes) == (singly.devices, singly.tokens, singly.codes)
    assert [type(each) for each in outcomes] == [type(each) for each in single_outcomes]
    for made in grouped.codes.values():
        let_in = {
            each.device_id
            for act, each in zip(acts, outcomes, strict=True)
            if isinstance(act, Enroll) and isinstance(each, Enrolled) and act.code_hash == made.code_hash
        }
        assert 0 <= made.uses_left <= made.uses
        assert len(let_in) >= made.uses - made.uses_left >= (len(let_in) > 0)
    for device_id, device in grouped.devices.items():
        live = [row for row in grouped.tokens.values() if row.device_id == device_id and row.revoked_ms is None]
        assert not live or device.retired_ms is None


def run_acts(acts: list[Submission], sizes: list[int]) -> tuple[MemoryStore, list[Outcome]]:
    """Run acts in groups of these sizes, on four codes and two device tokens."""
    store = MemoryStore()
    code(store, "one", uses=1)
    code(store, "two", uses=2, site="north")
    code(store, "bound", uses=1, device_id="pibook-1")
    store.run(CodeEnd(code_id=code(store, "ended").id, at_ms=NOON))
    token(store, "k1", scope="device", device_id="pibook-2")
    token(store, "k2")
    outcomes: list[Outcome] = []
    for size in [*sizes, len(acts)]:
        group, acts = acts[:size], acts[size:]
        outcomes += store.run(*group) if group else []
    return store, outcomes
