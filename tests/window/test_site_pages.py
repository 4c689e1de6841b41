"""The page of a site: its trouble in words, its charts with their numbers, notes, and when it counts as silent."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_receiver.domain.submissions import DeviceChange
from tests.support.live_receiver import DEVICE, NOW_MS, SITE, Live, live_receiver
from tests.support.people import Person, sign_in, words
from tests.support.submissions import DAY, HOUR, batch, event, sync_event

PATH = f"/sites/{SITE}"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        running.write(DeviceChange(device_id=DEVICE, at_ms=NOW_MS, site=SITE, site_since_ms=0))
        yield running


@pytest.fixture
def admin(live: Live) -> Person:
    return sign_in(live)


def rows(page: str, title: str) -> list[str]:
    """Return the rows of a chart's table, as words."""
    figure = page[page.index(f"<figcaption>{title}") :].partition("</figure>")[0]
    return [words(row) for row in re.findall(r"<tr>.*?</tr>", figure, re.DOTALL)]


def test_charts_have_their_numbers_as_tables(live: Live, admin: Person) -> None:
    live.write(batch([event(1), event(2, type="note.taken")], device=DEVICE, received_ms=NOW_MS))
    for turn, code in enumerate(("dns", "dns", "tls")):
        at_ms = NOW_MS - turn * HOUR
        live.write(sync_event(at_ms, failed=True, device=DEVICE, received_ms=at_ms, errors={code: 1}))
    at_ms = NOW_MS - 2 * DAY
    live.write(sync_event(at_ms, device=DEVICE, received_ms=at_ms, internet_speed=1.5))

    page = admin.get(PATH).text
    assert rows(page, "Sync runs a day") == [
        "day succeeded failed", "2026-11-21 1 0", "2026-11-22 0 0", "2026-11-23 0 3",
    ]  # fmt: skip
    assert rows(page, "Causes of failures a day") == ["day dns tls", "2026-11-23 2 1"]
    assert rows(page, "What learners did a day") == ["day note.taken video.watched", "2026-11-23 1 1"]
    assert rows(page, "Speed of the link, median of a day, Mbit/s")[1].startswith("2026-11-21 ")
    assert "1 of 1 devices failing" in words(page)


def test_holidays_make_a_site_silent_later(live: Live, admin: Person) -> None:
    live.write(batch([event(1)], device=DEVICE, received_ms=NOW_MS - 9 * DAY))
    assert "1 of 1 devices silent" in admin.text(PATH)
    sent = admin.send(f"{PATH}/silent-after", form_of=PATH, days="30")
    assert "time until silence was changed" in admin.text(sent.headers["Location"])
    assert "After 30 days without contact, as set for this site." in admin.text(PATH)
    assert "Every device is well" in admin.text(PATH)
    admin.send(f"{PATH}/silent-after", form_of=PATH, days="")
    assert "As the receiver's setting says." in admin.text(PATH)
    for wrong in ("many", "0", "366", "9" * 5_000):
        assert admin.send(f"{PATH}/silent-after", form_of=PATH, days=wrong).status_code == 400


def test_notes_of_a_site(live: Live, admin: Person) -> None:
    assert "No notes yet." in admin.text(PATH)
    admin.send(f"{PATH}/notes", form_of=PATH, text="Generator broken")
    assert "Generator broken" in admin.text(PATH)
    assert "A new note" not in sign_in(live, "viewer").text(PATH)


def test_a_person_of_another_site_finds_nothing(live: Live) -> None:
    live.write(DeviceChange(device_id="elsewhere", at_ms=NOW_MS, site="Kisumu"))
    limited = sign_in(live, "site admin")
    assert limited.get("/sites/Kisumu").status_code == 404
    assert limited.get(PATH).status_code == 200
