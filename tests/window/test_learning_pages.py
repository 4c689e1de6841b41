"""Learning, learners, privacy and the audit log, without scripts: what the pages say is what the API answers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import pisync_receiver.window.privacy as privacy
from tests.support.live_receiver import NOW_MS, SITE, Live, live_receiver
from tests.support.people import Person, sign_in, words
from tests.support.submissions import DAY, batch, event

LEARNER: Final = "عائشة <b>17</b>"
VIDEO: Final = "math/g5/ch02"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        for device, site in (("pibook-1", SITE), ("pibook-2", "Kisumu")):
            enroll(running, device, site)
            running.write(batch([done(seq, device) for seq in range(1, 6)], device=device, received_ms=NOW_MS))
        yield running


def enroll(live: Live, device: str, site: str) -> None:
    code = live.client("admin").post("/api/enrollment-codes", json={"site": site}).json()["code"]
    answer = live.client(None).post("/api/enroll", json={"code": code, "device_id": device})
    assert answer.status_code == 201, answer.text


def done(seq: int, device: str) -> Any:
    """Return an event: four of LEARNER and one of another learner, on days of their own."""
    return event(
        seq,
        type="video.watched" if seq % 2 else "note.taken",
        learner_id="s-2" if seq == 5 else LEARNER,
        object_id=VIDEO,
        occurred_ms=NOW_MS - seq * DAY,
        clock_synced=True,
    )


@pytest.fixture
def admin(live: Live) -> Person:
    return sign_in(live)


# Learning


def test_learning_sums_up_days_sites_types_and_objects(admin: Person) -> None:
    page = admin.text("/learning")
    assert "10 events They count on the day on which they happened" in page
    assert "day video.watched note.taken 2026-11-18 2 0 2026-11-19 0 2 2026-11-20 2 0" in page
    assert f"Kisumu 5 {SITE} 5" in page
    assert "video.watched 6 note.taken 4" in page
    assert f"{VIDEO} 10" in page


def test_filters_of_learning_are_in_the_address(admin: Person) -> None:
    assert "3 events" in admin.text(f"/learning?site={SITE}&type=video.watched&object_id=&days=7")
    assert "0 events" in admin.text("/learning?object_id=other")
    links = re.findall(r'href="(/learning\?[^"]*)"', admin.get(f"/learning?site={SITE}&days=90").text)
    assert f"/learning?site={SITE}&amp;days=90&amp;type=note.taken" in links


def test_a_viewer_of_a_site_learns_of_that_site_alone(live: Live) -> None:
    page = sign_in(live, "site viewer").text("/learning")
    assert "5 events" in page
    assert "Kisumu" not in page


# One learner


def test_a_timeline_is_newest_first_and_its_learner_is_in_no_address(admin: Person) -> None:
    answer = admin.send("/learners", learner_id=LEARNER, learner_home=SITE, since="2026-11-20", until="")
    page = words(answer.text)
    assert f"What {LEARNER} did" in page
    times = re.findall(r'<time datetime="([^"]+)"', answer.text)
    assert times == sorted(times, reverse=True)
    assert len(times) == 3
    assert "b%3E17" not in answer.text
    assert answer.headers["Referrer-Policy"] in ("no-referrer", "same-origin")
    assert not answer.request.url.query


def test_an_unknown_learner_is_nothing(admin: Person) -> None:
    assert "Nothing is known of this learner" in words(admin.send("/learners", learner_id="s-404").text)
    assert admin.send("/learners", learner_id=" ").status_code == 400


def test_a_timeline_has_pages(monkeypatch: pytest.MonkeyPatch, admin: Person) -> None:
    monkeypatch.setattr("pisync_receiver.window.learners.ROWS", 3)
    first = admin.send("/learners", learner_id=LEARNER, learner_home=SITE)
    (cursor,) = re.findall(r'name="cursor" value="([^"]+)"', first.text)
    second = admin.send("/learners", learner_id=LEARNER, learner_home=SITE, cursor=cursor)
    assert [answer.text.count("<time datetime") for answer in (first, second)] == [3, 1]


def test_a_learner_gets_their_data_as_a_file(admin: Person) -> None:
    answer = admin.send("/learners/export", form_of="/learners", learner_id=LEARNER, format="csv")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert answer.text.count(LEARNER) == 8


# Erasing


def test_a_learner_is_erased_after_their_id_was_typed_again(live: Live, admin: Person) -> None:
    learner = {"learner_id": LEARNER, "learner_home": SITE}
    asked = admin.send("/privacy/erase", form_of="/privacy", **learner)
    assert "4 events would be deleted" in words(asked.text)

    mistyped = admin.send("/privacy/erase", form_of="/privacy", **learner, step="erase", confirmed="s-17")
    assert "Nothing was deleted." in words(mistyped.text)
    assert events_of(live) == 8

    erased = admin.send("/privacy/erase", form_of="/privacy", **learner, step="erase", confirmed=LEARNER)
    assert "The learner is erased" in words(erased.text)
    assert "Events deleted 4" in words(erased.text)
    assert events_of(live) == 4
    assert LEARNER not in admin.text("/audit")


def events_of(live: Live) -> int:
    return len(live.client("admin").get("/api/events", params={"learner_id": LEARNER}).json())


def test_old_events_are_deleted_after_a_look(live: Live, admin: Person) -> None:
    live.write(batch([event(1, type="old.event")], device="pibook-3", received_ms=NOW_MS - 900 * DAY))
    form = {"days": "730", "type": ""}
    assert "Events 1 Sync events 0" in words(admin.send("/privacy/retention", form_of="/privacy", **form).text)
    assert len(live.client("admin").get("/api/events", params={"type": "old.event"}).json()) == 1
    page = words(admin.send("/privacy/retention", form_of="/privacy", **form, step="delete").text)
    assert "Deleted Events 1" in page
    assert live.client("admin").get("/api/events", params={"type": "old.event"}).json() == []


@pytest.mark.parametrize("days", ["", "0", "-1", "1.5", "x", "٣", str(privacy.DAYS_MAX + 1)])
def test_days_that_are_no_number_delete_nothing(admin: Person, days: str) -> None:
    answer = admin.send("/privacy/retention", form_of="/privacy", days=days, step="delete")
    assert answer.status_code == 400
    assert "must be a whole number from 1" in words(answer.text)


def test_privacy_is_for_admins(live: Live) -> None:
    assert sign_in(live, "viewer").get("/privacy").status_code == 403
    assert sign_in(live, "site admin").get("/audit").status_code == 403
    assert "Keep for so long" not in sign_in(live, "site admin").text("/privacy")


# The audit log


def test_the_audit_log_is_filtered_and_verified(admin: Person) -> None:
    assert "Every act, export and sign-in" in admin.text("/audit")
    assert "There is no such entry." in admin.text("/audit?act=unknown.act&since=&until=&actor=&target=")
    verified = words(admin.send("/audit/verify", form_of="/audit").text)
    (head,) = re.findall(r"\b[0-9a-f]{64}\b", verified)
    assert "all are as they were written" in verified
    assert "all are as they were written" in words(admin.send("/audit/verify", form_of="/audit", expected=head).text)
    other = words(admin.send("/audit/verify", form_of="/audit", expected="0" * 64).text)
    assert "The head that you gave is not in the log" in other


def test_verifying_works_in_steps(monkeypatch: pytest.MonkeyPatch, admin: Person) -> None:
    monkeypatch.setattr("pisync_receiver.window.audit.STEP_PAGES", 1)
    monkeypatch.setattr("pisync_receiver.window.audit.ROWS_MAX", 2)
    answer = admin.send("/audit/verify", form_of="/audit")
    for _ in range(20):
        if "and there are more" not in words(answer.text):
            break
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', answer.text))
        answer = admin.client.post("/audit/verify", data=hidden)
    assert "all are as they were written" in words(answer.text)
