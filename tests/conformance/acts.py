"""What admins see and write about single devices and sites: notes, conflicts, sites, suspicious devices, a sync asked
for."""

import json
from typing import Any

import pytest

from pisync_common.times import format_ms
from pisync_receiver.domain.acts import Note
from pisync_receiver.domain.rows import Device, StoredSyncEvent
from pisync_receiver.domain.submissions import (
    Actor,
    CodeBatch,
    CodeCreate,
    CodesMade,
    DeviceChange,
    SyncAsked,
    TokenRefused,
)
from pisync_receiver.errors import UnknownDevice
from pisync_receiver.store.reading import PAGE_BYTES
from tests.conformance.access import change, code, enroll
from tests.support.blocking import BlockingStore, send, sync, written
from tests.support.submissions import DAY, DEVICE, HOUR, NOON, STREAM, batch, event, invalid, sync_event

AMINA = Actor(name="Amina", token_id=7, address="192.0.2.1")


def ask(store: BlockingStore, at_ms: int = NOON + HOUR) -> Device:
    made = written(store, DeviceChange(device_id=DEVICE, at_ms=at_ms, ask_for_sync=True))
    assert isinstance(made, Device)
    return made


def version(found: Any) -> tuple[bool, str]:
    return found.kept, json.loads(bytes(found.event)).get("data", {}).get("note")


class ActConformance:
    def test_next_contact_takes_up_a_request_for_a_sync_once(self, store: BlockingStore) -> None:
        send(store, batch([1]))
        assert ask(store).sync_asked_ms == NOON + HOUR
        assert ask(store, NOON + 2 * HOUR).sync_asked_ms == NOON + HOUR
        first, second = store.write([batch([2]), batch([3])])
        assert isinstance(first, SyncAsked)
        assert (first.outcome.stored, second.stored) == (1, 1)
        assert not isinstance(written(store, batch([4])), SyncAsked)
        ask(store)
        asked = written(store, sync_event(NOON))
        assert isinstance(asked, SyncAsked)
        assert isinstance(asked.outcome, StoredSyncEvent)
        assert isinstance(sync(store, sync_event(NOON)), StoredSyncEvent)

    def test_unknown_device_cannot_be_asked(self, store: BlockingStore) -> None:
        with pytest.raises(UnknownDevice):
            ask(store)

    def test_retired_device_is_not_asked_any_more(self, store: BlockingStore) -> None:
        send(store, batch([1]))
        ask(store)
        assert change(store, retire=True).sync_asked_ms is None

    def test_every_token_of_a_device_is_revoked(self, store: BlockingStore) -> None:
        code(store, uses=2)
        enroll(store)
        enroll(store, token_hash="second")
        enroll(store, "pibook-2")
        change(store, revoke=True)
        revoked = {token.device_id: token.revoked_at for token in store.tokens()}
        assert revoked == {"pibook-1": format_ms(NOON + HOUR), "pibook-2": None}
        assert store.device("pibook-1").retired_at is None

    def test_codes_of_a_batch_have_their_own_ids(self, store: BlockingStore) -> None:
        codes = tuple(CodeCreate(code_hash=f"c{n}", at_ms=NOON, expires_ms=NOON + DAY, site="Nakuru") for n in range(3))
        made = written(store, CodeBatch(codes=codes))
        assert isinstance(made, CodesMade)
        assert [row.code_hash for row in made.codes] == ["c0", "c1", "c2"]
        assert [row.id for row in made.codes] == [record.id for record in store.codes()]

    def test_notes_are_listed_newest_first_page_by_page(self, store: BlockingStore) -> None:
        send(store, batch([1]))
        texts = ["قبل العطلة", "line one\nline two", "=HYPERLINK()"]
        made = [store.add_note(device_id=DEVICE, at_ms=NOON + n, by=AMINA, text=text) for n, text in enumerate(texts)]
        store.add_note(site="Nakuru", at_ms=NOON, by=AMINA, text="elsewhere")
        first = store.notes(device_id=DEVICE, limit=2)
        assert first.rows == made[:0:-1]
        assert store.notes(device_id=DEVICE, limit=2, cursor=first.next).rows == made[:1]
        assert made[0] == Note(id=made[0].id, at=format_ms(NOON), author="Amina", text=texts[0])
        assert [note.text for note in store.notes(site="Nakuru").rows] == ["elsewhere"]

    def test_stays_of_a_device_are_listed_newest_first(self, store: BlockingStore) -> None:
        assert store.stays(DEVICE) == []
        send(store, batch([1]))
        change(store, site="Nakuru")
        change(store, site="Kisumu", at_ms=NOON + 2 * HOUR)
        moved = format_ms(NOON + 2 * HOUR)
        found = [(stay.site, stay.since, stay.until) for stay in store.stays(DEVICE)]
        assert found == [("Kisumu", moved, None), ("Nakuru", None, moved)]

    def test_versions_of_a_conflict_stand_side_by_side(self, store: BlockingStore) -> None:
        send(store, batch([event(1, note="mine"), 2, invalid(3)]))
        send(store, batch([event(1, note="clone's"), event(3, note="later")], received_ms=NOON + 5))
        send(store, batch([event(1, note="third")], received_ms=NOON + 6))
        one, three = store.conflicts(DEVICE).rows
        assert (one.stream, one.seq, three.seq) == (STREAM, 1, 3)
        assert [version(each) for each in one.versions] == [(True, "mine"), (False, "clone's"), (False, "third")]
        assert [each.received_at for each in one.versions] == [format_ms(NOON + ms) for ms in (0, 5, 6)]
        assert [each.kept for each in three.versions] == [True, False]
        stands = json.loads(bytes(one.versions[0].event))
        assert (stands["seq"], stands["type"], stands["learner_id"]) == (1, "video.watched", "s-17")

    def test_conflict_with_an_event_stored_elsewhere_shows_it(self, store: BlockingStore) -> None:
        send(store, batch([event(7, note="same")], stream="old"))
        send(store, batch([event(1, note="same", origin=("old", 7))], stream="new"))
        send(store, batch([event(1, note="clone's")], stream="new", received_ms=NOON + 5))
        (found,) = store.conflicts(DEVICE).rows
        assert (found.stream, [version(each) for each in found.versions]) == (
            "new",
            [(True, "same"), (False, "clone's")],
        )

    def test_conflicts_come_in_pages_that_stay_small(self, store: BlockingStore) -> None:
        large = "x" * (PAGE_BYTES // 20)
        send(store, batch([event(seq, note=large) for seq in range(1, 13)]))
        send(store, batch([event(seq, note=large + "!") for seq in range(1, 13)], received_ms=NOON + 5))
        seqs: list[int] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = store.conflicts(DEVICE, cursor=cursor)
            seqs += [found.seq for found in page.rows]
            cursor, pages = page.next, pages + 1
        assert seqs == list(range(1, 13))
        assert pages == 2

    def test_caller_of_some_sites_sees_what_arrived_there(self, store: BlockingStore) -> None:
        send(store, batch([event(1, note="mine"), event(2, note="mine")]))
        change(store, site="Nakuru", at_ms=NOON)
        send(store, batch([event(1, note="in Nakuru"), invalid(3)], received_ms=NOON + 5))
        change(store, site="Kisumu", at_ms=NOON + 10)
        send(store, batch([event(1, note="in Kisumu"), event(2, note="in Kisumu"), invalid(4)], received_ms=NOON + 20))
        found = store.conflicts(DEVICE, sites=["Kisumu"]).rows
        assert [[version(each)[1] for each in row.versions] for row in found] == [["in Kisumu"], ["in Kisumu"]]
        found = store.conflicts(DEVICE, sites=["Nakuru"]).rows
        assert [[version(each)[1] for each in row.versions] for row in found] == [["in Nakuru"]]
        assert [row.seq for row in store.rejected(DEVICE, sites=["Nakuru"]).rows] == [1, 3]
        assert [row.seq for row in store.rejected(DEVICE, sites=["Kisumu"]).rows] == [1, 2, 4]

    def test_suspicious_devices_are_listed_with_reasons(self, store: BlockingStore) -> None:
        code(store, uses=9, site="Nakuru")
        for name in ("again", "fine", "lost"):
            enroll(store, name)
        enroll(store, "again", token_hash="other", at_ms=NOON + 9)
        change(store, "lost", revoke=True, at_ms=NOON + 10)
        (token,) = (token for token in store.tokens() if token.device_id == "lost")
        written(store, TokenRefused(token_id=token.id, at_ms=NOON + 11))
        send(store, batch([event(1, note="mine")]))
        send(store, batch([event(1, note="clone's")], received_ms=NOON + 5))
        found = {
            each.device_id: [(reason.code, reason.at) for reason in each.reasons] for each in store.suspicious().rows
        }
        assert found == {
            "again": [("enrolled_again", format_ms(NOON + 9))],
            "lost": [("used_after_end", format_ms(NOON + 11))],
            DEVICE: [("cloned", format_ms(NOON + 5))],
        }
        assert [each.device_id for each in store.suspicious(sites=["Nakuru"]).rows] == ["again", "lost"]
        first = store.suspicious(limit=1)
        assert store.suspicious(limit=5, cursor=first.next).rows[0].device_id == "lost"

    def test_acts_leave_audit_entries(self, store: BlockingStore) -> None:
        code(store)
        enroll(store)
        written(store, DeviceChange(device_id=DEVICE, at_ms=NOON, ask_for_sync=True, by=AMINA))
        written(store, DeviceChange(device_id=DEVICE, at_ms=NOON, revoke=True, by=AMINA))
        codes = tuple(CodeCreate(code_hash=f"c{n}", at_ms=NOON, expires_ms=NOON + DAY, by=AMINA) for n in range(2))
        made = written(store, CodeBatch(codes=codes))
        note = store.add_note(device_id=DEVICE, at_ms=NOON, by=AMINA, text="secret of a person")
        entries = store.audit(oldest_first=True).rows
        found = [(row.act, row.target, row.detail) for row in entries if row.actor == "Amina"]
        assert [(act, target) for act, target, _ in found] == [
            ("device.sync", f"device {DEVICE}"),
            ("device.revoke", f"device {DEVICE}"),
            *(("code.create", f"code {row.id}") for row in made.codes),
            ("note.write", f"device {DEVICE}"),
        ]
        assert (found[1][2], found[-1][2]) == ('{"tokens":1}', f'{{"note":{note.id}}}')
