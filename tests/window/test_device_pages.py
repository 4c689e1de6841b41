"""The page of a device in every state, and what an admin does there, each by a form without scripts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pisync_common.times import format_ms
from pisync_receiver.domain.submissions import DeviceChange, SyncEvent
from tests.support.fleet_of_schools import FAILING, GAP
from tests.support.live_receiver import DEVICE, NOW_MS, Live, live_receiver
from tests.support.people import Person, sign_in, words
from tests.support.submissions import DAY, HOUR, batch, event, invalid, sync_event

ACTS = ("move", "rename", "sync", "rotate", "replace", "revoke", "retire", "return")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        running.write(DeviceChange(device_id=DEVICE, at_ms=NOW_MS, site="Nakuru"))
        yield running


@pytest.fixture
def admin(live: Live) -> Person:
    return sign_in(live)


def device(live: Live) -> Any:
    return live.client("admin").get(f"/api/devices/{DEVICE}").json()


def test_the_state_is_a_sentence(live: Live, admin: Person) -> None:
    assert "new It was never in contact." in admin.text(f"/devices/{DEVICE}")
    live.write(batch([event(1)], device=DEVICE, received_ms=NOW_MS - 9 * DAY))
    assert "silent No contact for 9 days." in admin.text(f"/devices/{DEVICE}")
    for turn in range(4):
        at_ms = NOW_MS - 2 * DAY + turn * HOUR
        live.write(sync_event(at_ms, failed=True, device=DEVICE, received_ms=at_ms, errors={"portal": 1}))
    page = admin.text(f"/devices/{DEVICE}")
    assert "failing Its last 4 sync runs have failed, for 2 days." in page
    assert "the network asks for a sign-in portal 4 runs Open a browser on the device" in page
    live.write(sync_event(NOW_MS, device=DEVICE, received_ms=NOW_MS))
    assert "well Last contact just now." in admin.text(f"/devices/{DEVICE}")
    live.write(DeviceChange(device_id=DEVICE, at_ms=NOW_MS, retire=True))
    assert "retired It was retired just now." in admin.text(f"/devices/{DEVICE}")


def test_days_say_what_happened(fleet: Live) -> None:
    page = sign_in(fleet).text(f"/devices/{FAILING}")
    assert "2026-11-20: 1 run, 0 failed" in page
    assert "2026-11-23: 2 runs, 2 failed" in page
    assert "2026-11-01: no report" in page


def test_missing_events_are_named(fleet: Live) -> None:
    person = sign_in(fleet)
    assert "13 events missing: 108 to 120" in person.text(f"/devices/{GAP}")
    assert "Complete: 12 events of 12" in person.text(f"/devices/{FAILING}")


def test_a_conflict_shows_both_versions_and_a_rejected_event_its_reason(live: Live, admin: Person) -> None:
    live.write(batch([event(1, note="of the first")], device=DEVICE, received_ms=NOW_MS))
    live.write(batch([event(1, note="of the copy")], device=DEVICE, received_ms=NOW_MS))
    live.write(batch([invalid(2)], device=DEVICE, received_ms=NOW_MS))
    page = admin.text(f"/devices/{DEVICE}")
    assert "cloned Two devices have used this identity" in page
    assert '"note": "of the first"' in page
    assert '"note": "of the copy"' in page
    assert page.index("stands in the record") < page.index("another version")
    assert "Rejected events Event 2: invalid_event" in page


@pytest.mark.parametrize(
    ("off_ms", "said"),
    [(72 * 365 * DAY, "Its clock is ahead by 26,280 days."), (-56 * 365 * DAY, "Its clock is behind by 20,440 days")],
)
def test_a_wrong_clock_shows(live: Live, admin: Person, off_ms: int, said: str) -> None:
    at_ms = NOW_MS + off_ms
    values: dict[str, Any] = {"total_files_synced": 1, "total_errors": 0, "internet_speed": 1, "errors": {}}
    live.write(SyncEvent(device_id=DEVICE, timestamp=format_ms(at_ms), claimed_ms=at_ms, received_ms=NOW_MS, **values))
    assert said in admin.text(f"/devices/{DEVICE}")


@pytest.mark.parametrize("act", ACTS)
def test_an_act_says_what_it_will_do_before_its_form(live: Live, admin: Person, act: str) -> None:
    page = admin.get(f"/devices/{DEVICE}/{act}")
    assert page.status_code == 200
    assert "<h1>" in page.text
    assert "Cancel" in words(page.text)


def test_move_and_rename(live: Live, admin: Person) -> None:
    moved = admin.send(f"/devices/{DEVICE}/move", site=" Kisumu ")
    assert moved.status_code == 303
    assert moved.headers["Location"] == f"/devices/{DEVICE}?done=moved"
    assert "The device was moved." in admin.text(moved.headers["Location"])
    admin.send(f"/devices/{DEVICE}/rename", label="The librarian's")
    assert (device(live)["site"], device(live)["label"]) == ("Kisumu", "The librarian's")
    page = admin.text(f"/devices/{DEVICE}")
    assert "The librarian's" in page
    assert "Audit log device.change admin token" in page, "who did it, and when"
    assert "Audit log" not in words(sign_in(live, "site admin").get(f"/devices/{DEVICE}").text)


def test_an_act_that_the_api_refuses_says_why(live: Live, admin: Person) -> None:
    refused = admin.send(f"/devices/{DEVICE}/move", site="\x07")
    assert refused.status_code == 400
    assert "site" in words(refused.text)
    assert device(live)["site"] == "Nakuru"


def test_ask_for_a_sync_is_pending_until_the_next_contact(live: Live, admin: Person) -> None:
    admin.send(f"/devices/{DEVICE}/sync")
    assert "pending until the device's next contact" in admin.text(f"/devices/{DEVICE}")
    sent = live.client("device").post("/api/events", json={"device_id": DEVICE, "stream": "s1", "events": []})
    assert sent.headers["PiSync-Sync"] == "now"


def test_revoke_ends_its_tokens(live: Live, admin: Person) -> None:
    admin.send(f"/devices/{DEVICE}/revoke")
    assert "All tokens of the device were revoked" in admin.text(f"/devices/{DEVICE}?done=revoked")
    sent = live.client("device").post("/api/events", json={"device_id": DEVICE, "stream": "s1", "events": []})
    assert sent.status_code == 401


def test_retire_and_bring_back(live: Live, admin: Person) -> None:
    admin.send(f"/devices/{DEVICE}/retire")
    assert device(live)["state"] == "retired"
    assert "Bring back" in admin.text(f"/devices/{DEVICE}")
    admin.send(f"/devices/{DEVICE}/return")
    assert device(live)["retired_at"] is None


@pytest.mark.parametrize(("act", "old_token"), [("rotate", 200), ("replace", 401)])
def test_a_code_lets_the_device_enroll_again(live: Live, admin: Person, act: str, old_token: int) -> None:
    page = words(admin.send(f"/devices/{DEVICE}/{act}").text)
    assert "It is shown this once." in page
    code = page.partition("--code ")[2].split()[0]
    sent = live.client("device").post("/api/events", json={"device_id": DEVICE, "stream": "s1", "events": []})
    assert sent.status_code == old_token
    enrolled = live.client(None).post("/api/enroll", json={"code": code})
    assert enrolled.json()["device_id"] == DEVICE
    assert code not in admin.get(f"/devices/{DEVICE}/codes").text
    assert "this device" in admin.text(f"/devices/{DEVICE}/codes")


def test_a_code_is_ended(live: Live, admin: Person) -> None:
    code = words(admin.send(f"/devices/{DEVICE}/rotate").text).partition("--code ")[2].split()[0]
    ended = admin.send(f"/devices/{DEVICE}/codes/1/end", form_of=f"/devices/{DEVICE}/codes")
    assert ended.headers["Location"].endswith("done=code-ended")
    assert live.client(None).post("/api/enroll", json={"code": code}).status_code == 403


def test_notes_are_written_and_read(live: Live, admin: Person) -> None:
    sent = admin.send(f"/devices/{DEVICE}/notes", form_of=f"/devices/{DEVICE}", text="Lid broken\r\n<b>again</b>")
    assert sent.status_code == 303
    assert "Lid broken <b>again</b>" in admin.text(f"/devices/{DEVICE}")
    as_counted_by_a_browser = 1000 * "x\r\n"
    for of in (f"/devices/{DEVICE}", "/sites/Nakuru"):
        assert admin.send(f"{of}/notes", form_of=of, text=as_counted_by_a_browser).status_code == 303


@pytest.mark.parametrize("kind", ["viewer", "site viewer"])
def test_a_viewer_reads_and_does_not_act(live: Live, kind: str) -> None:
    viewer = sign_in(live, kind)
    page = viewer.get(f"/devices/{DEVICE}")
    assert page.status_code == 200
    assert "Retire" not in words(page.text)
    refused = viewer.get(f"/devices/{DEVICE}/retire")
    assert refused.status_code == 403
    assert "Not allowed" in words(refused.text)


def test_an_admin_of_other_sites_finds_nothing(live: Live) -> None:
    live.write(DeviceChange(device_id=DEVICE, at_ms=NOW_MS, site="Kisumu"))
    limited = sign_in(live, "site admin")
    for path in ("", *(f"/{act}" for act in ACTS), "/codes"):
        assert limited.get(f"/devices/{DEVICE}{path}").status_code == 404, path
