"""The audit log: what each act leaves, and that no change of it stays unnoticed."""

import itertools
import json
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisync_receiver.domain.audit import AuditRecord, Chain, audited
from pisync_receiver.domain.submissions import (
    Actor,
    AuditNote,
    CodeCreate,
    CodeEnd,
    DeviceChange,
    Enroll,
    SessionClose,
    SessionOpen,
    Submission,
    TokenCreate,
    TokenRevoke,
)
from pisync_receiver.errors import SignInRefused, StoreUnusable
from pisync_receiver.store.audit import audit_statement
from tests.conformance.tables import Tables
from tests.support.blocking import BlockingStore, send, written
from tests.support.submissions import DAY, HOUR, NOON, batch

BY: Final = Actor(name='مدير "A"', token_id=1, address="192.0.2.7")
_numbers = itertools.count(1)


def log(store: BlockingStore, **how: Any) -> list[AuditRecord]:
    """Every entry, the oldest first; the chain holds."""
    rows: list[AuditRecord] = []
    cursor = None
    while True:
        page = store.audit(oldest_first=True, limit=3, cursor=cursor, **how)
        rows += page.rows
        cursor = page.next
        if cursor is None:
            return rows


def problem(rows: list[AuditRecord], expected: str | None = None) -> str | None:
    """What is wrong with a log; None for nothing."""
    chain = Chain(expected)
    found = next((said for row in rows if (said := chain.add(row)) is not None), None)
    return found or (None if chain.found else "the head is not in the chain")


def acts(store: BlockingStore, *submissions: Submission) -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """Who, what, to what and the details of the entries that submissions leave."""
    before = len(log(store))
    for submission in submissions:
        written(store, submission)
    rows = log(store)
    assert problem(rows) is None
    return [(row.actor, row.act, row.target, json.loads(row.detail)) for row in rows[before:]]


class AuditConformance:
    def test_each_act_leaves_an_entry_and_its_repeat_none(self, store: BlockingStore) -> None:
        token = TokenCreate(scope="viewer", token_hash="t1", at_ms=NOON, label="office", sites=("Nakuru",), by=BY)
        made = written(store, token)
        told = {"scope": "viewer", "label": "office", "sites": ["Nakuru"]}
        (first,) = log(store)
        assert (first.act, first.target, json.loads(first.detail)) == ("token.create", f"token {made.id}", told)
        assert (first.actor, first.token_id, first.address) == (BY.name, 1, "192.0.2.7")
        assert acts(store, token) == []

        code = CodeCreate(code_hash="c1", at_ms=NOON, expires_ms=NOON + DAY, uses=2, site="Nakuru", by=BY)
        number = written(store, code).id
        assert log(store)[-1].target == f"code {number}"

        enroll = Enroll(
            code_hash="c1", device_id="pi-1", fallback_device_id="x", token_hash="d1", at_ms=NOON, address="192.0.2.9"
        )
        entered = (f"enrollment code {number}", "device.enroll", "device pi-1", {"site": "Nakuru", "again": False})
        assert acts(store, enroll) == [entered]
        assert log(store)[-1].address == "192.0.2.9"
        assert acts(store, enroll) == []

        move = DeviceChange(device_id="pi-1", at_ms=NOON + HOUR, site="Kisumu", label="shelf", by=BY)
        assert acts(store, move, DeviceChange(device_id="pi-1", at_ms=NOON + HOUR, label="shelf", by=BY)) == [
            (
                BY.name,
                "device.change",
                "device pi-1",
                {
                    "site": ["Nakuru", "Kisumu"],
                    "site_since": [None, "2026-11-23T13:00:00.000Z"],
                    "label": [None, "shelf"],
                },
            )
        ]
        retire = DeviceChange(device_id="pi-1", at_ms=NOON, retire=True, by=BY)
        assert acts(store, retire, retire) == [
            (BY.name, "device.change", "device pi-1", {"retired": [False, True]}),
        ]
        end = CodeEnd(code_id=number, at_ms=NOON, by=BY)
        assert acts(store, end, end) == [(BY.name, "code.end", f"code {number}", {"site": "Nakuru"})]
        revoke = TokenRevoke(token_id=made.id, at_ms=NOON, by=BY)
        ended = {"scope": "viewer", "label": "office"}
        assert acts(store, revoke, revoke) == [(BY.name, "token.revoke", f"token {made.id}", ended)]

    def test_signing_in_and_out_leaves_entries(self, store: BlockingStore) -> None:
        token = written(store, TokenCreate(scope="admin", token_hash="t1", at_ms=NOON))
        session = written(store, SessionOpen(token_hash="s1", parent_hash="t1", at_ms=NOON, address="::1"))
        entry = log(store)[-1]
        name = f"admin token {token.id}"
        assert (entry.actor, entry.token_id, entry.address) == (name, token.id, "::1")
        assert (entry.act, entry.target) == ("session.open", f"session {session.id}")
        close = SessionClose(session_id=session.id, at_ms=NOON, by=BY)
        assert acts(store, close, close) == [(BY.name, "session.close", f"session {session.id}", {})]
        before = len(log(store))
        with pytest.raises(SignInRefused):
            written(store, SessionOpen(token_hash="s2", parent_hash="unknown", at_ms=NOON))
        assert len(log(store)) == before

    def test_rotation_names_both_tokens(self, store: BlockingStore) -> None:
        old = written(store, TokenCreate(scope="admin", token_hash="t1", at_ms=NOON))
        rotate = TokenCreate(
            scope="admin", token_hash="t2", at_ms=NOON, replaces=old.id, replaced_until_ms=NOON + HOUR, by=BY
        )
        ((_, act, target, detail),) = acts(store, rotate)
        assert (act, target) == ("token.rotate", f"token {old.id + 1}")
        assert detail == {"scope": "admin", "replaces": old.id, "replaced_until": "2026-11-23T13:00:00.000Z"}

    def test_the_entries_of_a_group_are_chained_in_its_order(self, store: BlockingStore) -> None:
        store.write(
            [AuditNote(by=BY, act="list.export", at_ms=NOON, target=f"n {n}", detail={"n": n}) for n in range(5)]
        )
        rows = log(store)
        assert [row.target for row in rows] == [f"n {n}" for n in range(5)]
        assert [row.id for row in rows] == [1, 2, 3, 4, 5]
        assert problem(rows) is None

    def test_a_transaction_of_ours_adds_entries_or_nothing(self, store: BlockingStore) -> None:
        entry = audited(BY, "data.retain", None, NOON, {"events": 7})
        assert store.act([], lambda rows: [("beat", {}), audit_statement(entry), audit_statement(entry)])
        assert [row.act for row in log(store)] == ["data.retain"] * 2
        assert problem(log(store)) is None
        with pytest.raises(StoreUnusable):
            store.act([], lambda rows: [audit_statement(entry), ("insert_audit", {**BROKEN, "id": 1})])
        assert len(log(store)) == 2

    def test_filters(self, store: BlockingStore) -> None:
        for number, act in enumerate(["a.b", "c.d", "a.b"]):
            actor = Actor(name=f"n{number}")
            written(store, AuditNote(by=actor, act=act, at_ms=NOON + number, target=f"t {number % 2}"))
        assert [row.id for row in log(store, act="a.b")] == [1, 3]
        assert [row.id for row in log(store, target="t 1")] == [2]
        assert [row.id for row in log(store, actor="n2")] == [3]
        assert [row.id for row in log(store, since_ms=NOON + 1, until_ms=NOON + 2)] == [2]
        newest = store.audit(limit=2)
        assert [row.id for row in newest.rows] == [3, 2]
        assert [row.id for row in store.audit(limit=2, cursor=newest.next).rows] == [1]

    def test_events_leave_no_entry(self, store: BlockingStore) -> None:
        send(store, batch([1, 2]))
        assert log(store) == []

    @pytest.mark.parametrize("change", ["UPDATE audit SET actor = 'x' WHERE id = 1", "DELETE FROM audit"])
    def test_the_database_refuses_changes(self, store: BlockingStore, tables: Tables, change: str) -> None:
        written(store, AuditNote(by=BY, act="a.b", at_ms=NOON))
        with pytest.raises(Exception, match="append-only"):
            tables.execute(change)
        assert problem(log(store)) is None


BROKEN: Final = dict.fromkeys(("id", "at", "actor", "token", "address", "act", "target", "detail", "hash"))
_COLUMNS: Final = ("at_ms", "actor", "token_id", "address", "act", "target", "detail", "hash")
_texts: Final = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
_values: Final = {
    "at_ms": st.integers(NOON - DAY, NOON + DAY),
    "token_id": st.none() | st.integers(0, 3),
    **dict.fromkeys(("address", "target"), st.none() | _texts),
    **dict.fromkeys(("actor", "act", "detail", "hash"), _texts),
}
notes: Final = st.builds(
    AuditNote,
    by=st.builds(Actor, name=_texts, token_id=st.none() | st.integers(1, 3), address=st.none() | _texts),
    act=_texts,
    at_ms=_values["at_ms"],
    target=_values["target"],
    detail=st.dictionaries(_texts, _texts | st.booleans() | st.integers(0, 9), max_size=2),
)


class TamperingConformance:
    """With the triggers off, as an owner of the database can have them."""

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(written_notes=st.lists(notes, min_size=3, max_size=6), data=st.data())
    def test_any_change_is_found(
        self, store: BlockingStore, tables: Tables, written_notes: list[AuditNote], data: st.DataObject
    ) -> None:
        self.without_triggers(tables)
        tables.execute("DELETE FROM audit")
        store.write(written_notes)
        before = log(store)
        head = before[-1].hash
        assert problem(before, head) is None
        number = data.draw(st.integers(1, len(before)))
        how = data.draw(st.sampled_from(["change", "delete", "swap", "insert", "renumber"]))
        if how == "change":
            column = data.draw(st.sampled_from(_COLUMNS))
            tables.execute(f"UPDATE audit SET {column} = ? WHERE id = ?", data.draw(_values[column]), number)
        elif how == "delete":
            tables.execute("DELETE FROM audit WHERE id = ?", number)
        elif how == "swap":
            other = data.draw(st.integers(1, len(before)))
            for one, two in ((number, -1), (other, number), (-1, other)):
                tables.execute("UPDATE audit SET id = ? WHERE id = ?", two, one)
        elif how == "insert":
            for moved in range(len(before), number - 1, -1):
                tables.execute("UPDATE audit SET id = ? WHERE id = ?", moved + 1, moved)
            names = ", ".join(_COLUMNS)
            source = data.draw(st.integers(1, len(before) + 1).filter(lambda at: at != number))
            tables.execute(f"INSERT INTO audit (id, {names}) SELECT ?, {names} FROM audit WHERE id = ?", number, source)
        else:
            tables.execute("DELETE FROM audit WHERE id = ?", number)
            for moved in range(number + 1, len(before) + 1):
                tables.execute("UPDATE audit SET id = ? WHERE id = ?", moved - 1, moved)
        after = log(store)
        assert (problem(after, head) is None) == (after == before)

    @pytest.mark.parametrize("column", _COLUMNS)
    def test_a_change_of_each_column_is_found(self, store: BlockingStore, tables: Tables, column: str) -> None:
        self.without_triggers(tables)
        written(store, AuditNote(by=BY, act="a.b", at_ms=NOON, target="x", detail={"a": 1}))
        tables.execute(f"UPDATE audit SET {column} = ?", NOON + 1 if column in ("at_ms", "token_id") else "y")
        assert problem(log(store)) is not None

    @staticmethod
    def without_triggers(tables: Tables) -> None:
        for name in ("audit_is_not_changed", "audit_is_not_deleted"):
            tables.execute(f"DROP TRIGGER IF EXISTS {name}")
