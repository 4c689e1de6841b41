"""The pages without scripts: what each says of a fleet whose truth is known, for whom, and what they refuse."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx
import pytest

from pisync_receiver.app import AppSettings
from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.http.auth import Access
from pisync_receiver.window import PAGES
from tests.support.fleet_of_schools import FAILING, FAILING_SCHOOL, SILENT_SCHOOLS
from tests.support.live_receiver import NOW_MS, Live, live_receiver
from tests.support.people import HTML, Person, sign_in, words
from tests.support.submissions import HOUR, batch, event, sync_event

HOSTILE: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=HYPERLINK(1)",
    "\u202eevil\u202d",
    "{{ 7 * 7 }}{% raise %}",
    "مدرسة الأمل",
    "../../sites",
    "🏫" * 64,
    "a" * 256,
)


@pytest.fixture(scope="module")
def admin(fleet: Live) -> Person:
    return sign_in(fleet)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A receiver whose two devices were never in contact, and are at no site."""
    with live_receiver(tmp_path_factory.mktemp("empty")) as running:
        yield running


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        yield running


def test_the_schools_that_need_help_stand_first_with_why(admin: Person) -> None:
    page = admin.get("/").text
    headings = [words(heading) for heading in re.findall(r"<h3>(.*?)</h3>", page, re.DOTALL)]
    assert set(headings) == {*SILENT_SCHOOLS, *FAILING_SCHOOL}
    said = words(page)
    assert "1,746" in said
    assert "119" in said
    assert "107" in said
    assert "25" in said
    assert "3 of 60 sites need help" in said
    assert "Nakuru Secondary silent All 34 devices are silent, for 9 days Call the school" in said
    assert "Turkana Primary failing All 33 devices fail, for" in said
    assert "no internet behind the link dns 33 devices Try another web page" in said
    assert "13 devices incomplete: 41 events missing" in said


def test_an_empty_fleet_says_what_to_do(empty: Live) -> None:
    assert "No site needs help No device was in contact yet." in sign_in(empty).text("/")
    person = sign_in(empty, "site viewer")
    assert "No site needs help There are no devices yet. Make an enrollment code" in person.text("/")
    assert "No site fits." in person.text("/sites")
    assert "No device fits." in person.text("/devices")


def test_sites_are_in_order_of_need_and_can_be_searched(admin: Person) -> None:
    page = words(admin.get("/sites").text)
    assert page.index("Nakuru Secondary") < page.index("Turkana Primary") < page.index("Kisumu Primary")
    assert "60 sites" in page
    found = words(admin.get("/sites?search=garissa&state=").text)
    assert "1 site " in found
    assert "Garissa Primary" in found
    assert "Nakuru" not in found


def test_devices_are_searched_filtered_sorted_and_paged(admin: Person) -> None:
    assert "2,000 devices" in admin.text("/devices")
    assert "107 devices" in admin.text("/devices?state=silent&search=&site=")
    assert "13 devices" in admin.text("/devices?incomplete=true")
    failing = admin.text("/devices?state=failing&sort=failures")
    assert "119 devices" in failing
    found = admin.text(f"/devices?search={FAILING}")
    assert "1 device " in found
    assert "timeout" in found
    seen: list[str] = []
    address: str | None = "/devices?state=silent&sort=site"
    while address:
        page = admin.get(address).text
        seen += re.findall(r'<th scope="row"><a href="/devices/([\w-]+)"', page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        address = following[1].replace("&amp;", "&") if following else None
    assert len(seen) == len(set(seen)) == 107


def test_a_wrong_filter_is_refused_in_words(admin: Person) -> None:
    answer = admin.get("/devices?state=sleeping")
    assert answer.status_code == 400
    assert "state: must be one of well, failing, silent, new, retired" in words(answer.text)
    answer = admin.get("/devices?stat=silent")
    assert answer.status_code == 400
    assert "did you mean state?" in words(answer.text)


@pytest.mark.parametrize("path", ["/devices/unknown", "/sites/unknown", "/devices/unknown/retire", "/devices/a%2Fb"])
def test_what_is_not_there_is_a_page_with_a_way_back(admin: Person, path: str) -> None:
    answer = admin.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Not found" in words(answer.text)
    assert 'href="/"' in answer.text


@pytest.mark.parametrize("path", ["/", "/devices", "/devices/unknown", "/sign-in"])
def test_programs_get_json_as_ever(fleet: Live, path: str) -> None:
    answer = fleet.client(None, Accept="application/json").get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_every_page_has_the_strict_policy(fleet: Live, admin: Person) -> None:
    for path in ("/", "/sites", "/devices", "/devices/unknown", "/sign-in"):
        headers = admin.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = admin.get("/").text
    assert not re.search(r"<script(?! src)|<style| style=| on\w+=|https?://", page), "nothing inline, nothing foreign"


def test_a_page_that_holds_is_not_sent_again(admin: Person) -> None:
    first = admin.get("/devices")
    again = admin.get("/devices", **{"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


def test_the_live_part_is_made_once_for_all_who_ask(fleet: Live, admin: Person) -> None:
    part = admin.get("/", **{"HX-Request": "true"})
    assert part.text.startswith('<div id="live"')
    assert "<html" not in part.text
    assert 'name="csrf"' not in part.text, "it is shared by sessions"
    in_french = admin.get("/", **{"HX-Request": "true", "Accept-Language": "fr"})
    assert words(in_french.text) != words(part.text), "each language has its own"
    viewer = sign_in(fleet, "viewer")
    assert "Nakuru Secondary" in viewer.get("/", **{"HX-Request": "true"}).text
    limited = sign_in(fleet, "site viewer")
    assert "Nakuru Secondary" not in limited.get("/", **{"HX-Request": "true"}).text


def test_a_person_of_some_sites_sees_these_alone(fleet: Live) -> None:
    limited = sign_in(fleet, "site admin")
    assert "Nakuru Secondary" not in limited.text("/sites")
    assert "No device fits." in limited.text("/devices")
    assert limited.get(f"/devices/{FAILING}").status_code == 404
    assert limited.get("/sites/Turkana%20Primary").status_code == 404
    assert limited.get(f"/devices/{FAILING}/retire").status_code == 404


def test_names_are_text_everywhere(live: Live) -> None:
    for number, name in enumerate(HOSTILE):
        device = f"pibook-{number}"
        live.write(batch([event(1)], device=device, received_ms=NOW_MS))
        live.write(DeviceChange(device_id=device, at_ms=NOW_MS, site=name, label=name))
        for turn in range(3):
            at_ms = NOW_MS - turn * HOUR
            failed = sync_event(at_ms, failed=True, device=device, received_ms=at_ms, errors={"dns": 1})
            live.write(failed)
    person = sign_in(live)
    for path in ("/", "/sites", "/devices"):
        page = person.get(path).text
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "49" not in words(page)
        for name in HOSTILE:
            assert " ".join(name.split()) in words(page), (path, name)
        assert page.count("<bdi>") >= len(HOSTILE)
    for name in HOSTILE:
        for path in (f"/devices?search={quote(name)}", f"/sites/{quote(name, safe='')}", "/devices/pibook-0/move"):
            page = person.get(path).text
            assert "<script>alert" not in page
            assert "<img" not in page
        assert re.search(f'href="/sites/{re.escape(quote(name, safe=""))}"', person.get("/sites").text)


def test_languages_are_chosen_by_the_person(empty: Live) -> None:
    person = sign_in(empty)
    page = person.get("/?lang=en")
    assert '<html lang="en" dir="ltr">' in page.text
    assert "pisync-language=en" in page.headers["Set-Cookie"]
    assert person.get("/?lang=xx").status_code == 400


def test_no_link_of_a_page_that_answers_a_form_leads_nowhere(live: Live) -> None:
    live.write(batch([event(1)], received_ms=NOW_MS))
    admin = sign_in(live)
    for form, of, fields in (
        ("/privacy/erase", "/privacy", {"learner_id": "s-17"}),
        ("/privacy/retention", "/privacy", {"days": "3"}),
        ("/audit/verify", "/audit", {}),
        ("/learners/export", "/learners", {"learner_id": ""}),
        ("/enrollment", "/enrollment", {"count": "1", "uses": "1", "days": "1"}),
    ):
        page = admin.send(form, form_of=of, **fields).text
        links = {unescape(link) for link in re.findall(r'<a [^>]*href="(/[^"]*)"', page)}
        assert "/" in links
        assert {link: status for link in links if (status := admin.get(link).status_code) != 200} == {}, form


def test_without_sign_in_every_page_leads_there(fleet: Live) -> None:
    client = fleet.client(None, Accept=HTML)
    for row in PAGES:
        path = re.sub(r"\{\w+\}", "x", row.path)
        if row.access is Access.PUBLIC:
            continue
        answer = client.request(row.method, path)
        assert answer.status_code == (303 if row.method == "GET" else 403), row.path
        if row.method == "GET":
            assert answer.headers["Location"].startswith("/sign-in")
        else:
            assert "the session has ended" in words(answer.text)


def test_signing_in_by_the_form(fleet: Live) -> None:
    client = fleet.client(None, Accept=HTML)
    page = client.get("/sign-in?next=%2Fdevices")
    assert 'name="next" value="/devices"' in page.text
    assert "Sign out" not in page.text
    refused = client.post("/sign-in", data={"token": "psa_wrong", "next": "/devices"})
    assert refused.status_code == 403
    assert "this token is unknown or has ended" in words(refused.text)
    assert "psa_wrong" not in refused.text


def test_auth_off_needs_no_session(tmp_path: Path) -> None:
    with live_receiver(tmp_path, settings=AppSettings(auth=False)) as live:
        assert "Today" in httpx.get(live.url, headers={"Accept": HTML}, trust_env=False).text
