"""The pages in Chromium: nothing for axe-core, no sideways scrolling, the keyboard alone, live without reload."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize

from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.http.auth import Access
from pisync_receiver.http.sessions import COOKIE
from pisync_receiver.window import PAGES
from tests.support.accessibility import violations
from tests.support.fault_proxy import FaultProxy
from tests.support.fleet_of_schools import GAP
from tests.support.live_receiver import NOW_MS, Live, live_receiver
from tests.support.people import Person, sign_in
from tests.support.submissions import DAY, HOUR, MINUTE, batch, event, invalid, sync_event

TROUBLED: Final = "troubled"
NAMES: Final = {"device_id": TROUBLED, "site": quote("A school"), "act": "replace", "code_id": "1"}
LOOKED_AT: Final = sorted(
    {
        row.path.format_map(NAMES)
        for row in PAGES
        if row.method == "GET" and row.access is not Access.PUBLIC and not row.path.startswith("/download/")
    }
    | {"/sign-in", "/devices?state=failing", "/devices/failing-0", f"/devices/{TROUBLED}/move", "/devices/unknown"}
)
"""Every page of the table: what is added later is looked at too."""
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def admin(fleet: Live) -> Person:
    return sign_in(fleet)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        yield running


def enter(context: BrowserContext, live: Live, person: Person) -> Page:
    """Open a tab of someone who has signed in; what the console says fails the test that looks at it."""
    context.add_cookies([{"name": COOKIE, "value": person.cookie, "url": live.url}])
    page = context.new_page()
    page.set_default_timeout(15_000)
    return page


def complaints(page: Page) -> list[str]:
    """Collect what the browser complains of: violations of the policy, errors in scripts."""
    found: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "404" not in message.text:
            found.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def small_fleet(live: Live) -> None:
    """Let a device of each state and flag happen: axe-core takes a second for each hundred rows."""
    batches = {
        "silent": batch([event(1)], device="silent", received_ms=NOW_MS - 9 * DAY),
        "retired": batch([event(1)], device="retired", received_ms=NOW_MS),
        TROUBLED: batch([event(1, note="of the first"), event(9), invalid(10)], device=TROUBLED, received_ms=NOW_MS),
    } | {f"failing-{number}": batch([event(1)], device=f"failing-{number}") for number in range(3)}
    for name, sent in batches.items():
        live.write(sent)
        site = "A school" if name.startswith("failing") or name == TROUBLED else "Another"
        live.write(DeviceChange(device_id=name, at_ms=NOW_MS, site=site, label="A label", retire=name == "retired"))
        for turn in range(3 if name.startswith("failing") else 0):
            at_ms = NOW_MS - turn * DAY
            live.write(sync_event(at_ms, failed=True, device=name, received_ms=at_ms, errors={"dns": 1}))
    live.write(batch([event(1, note="of the copy")], device=TROUBLED, received_ms=NOW_MS))
    for turn in range(3):
        live.write(sync_event(NOW_MS - turn * DAY, device=TROUBLED, received_ms=NOW_MS - turn * DAY))
    admin = live.client("admin")
    admin.post("/api/enrollment-codes", json={"site": "A school", "device_id": TROUBLED})
    admin.post(f"/api/devices/{TROUBLED}/notes", json={"text": "Lid broken"})


def test_axe_finds_nothing_and_nothing_scrolls_sideways(browser: Browser, live: Live) -> None:
    small_fleet(live)
    with closing(browser.new_context(reduced_motion="reduce", viewport=PHONE)) as context:
        page = enter(context, live, sign_in(live))
        found = complaints(page)
        for path in LOOKED_AT:
            answer = page.goto(live.url + path)
            assert answer is not None
            assert answer.status == (404 if path.endswith("unknown") else 200), path
            assert violations(page) == [], path
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], f"{path} is {width} wide"
        assert found == []


def test_a_chart_is_drawn_of_its_table(browser: Browser, fleet: Live, admin: Person) -> None:
    with closing(browser.new_context()) as context:
        page = enter(context, fleet, admin)
        found = complaints(page)
        page.goto(f"{fleet.url}/devices/{GAP}")
        page.wait_for_selector("figure.chart canvas")
        page.get_by_text("The numbers").first.click()
        assert page.locator("figure.chart details tbody tr").count() >= 3
        assert found == []


def test_the_keyboard_alone_signs_in_and_retires_a_device(context: BrowserContext, live: Live) -> None:
    live.write(batch([event(1)], device="pibook-7", received_ms=NOW_MS))
    page = context.new_page()
    page.goto(f"{live.url}/devices/pibook-7/retire")
    tab_to(page, "token")
    page.keyboard.insert_text(live.secrets["admin"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/devices/pibook-7/retire")
    tab_to(page, "Retire it")
    page.keyboard.press("Enter")
    page.wait_for_url("**/devices/pibook-7?done=retired")
    assert "The device was retired" in page.inner_text("main")
    assert live.client("admin").get("/api/devices/pibook-7").json()["state"] == "retired"


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this text or name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name || document.activeElement.innerText") == name:
            return
    pytest.fail(f"no Tab leads to {name}")


def test_a_failing_device_appears_and_recovers_without_reload(context: BrowserContext, live: Live) -> None:
    live.write(batch([event(1)], device="pibook-7", received_ms=NOW_MS))
    live.write(DeviceChange(device_id="pibook-7", site="Kisumu", at_ms=NOW_MS))
    page = enter(context, live, sign_in(live))
    found = complaints(page)
    page.goto(live.url)
    page.evaluate("window.notReloaded = true")
    assert "Kisumu" not in page.inner_text("main")

    for turn in range(3):
        at_ms = NOW_MS - HOUR + turn * MINUTE
        live.write(sync_event(at_ms, failed=True, device="pibook-7", received_ms=at_ms, errors={"tls": 1}))
    page.wait_for_selector("text=Kisumu")
    assert "the connection is not trusted" in page.inner_text("main")
    live.write(sync_event(NOW_MS, device="pibook-7", received_ms=NOW_MS))
    page.evaluate("htmx.trigger('#live', 'every')")  # the first poll came in its own time
    page.wait_for_selector("text=Kisumu", state="detached")
    assert page.evaluate("window.notReloaded")
    assert found == []


def test_a_button_that_is_pressed_twice_acts_once(context: BrowserContext, live: Live) -> None:
    person = sign_in(live)
    with FaultProxy("127.0.0.1", int(live.url.rpartition(":")[2])) as link:
        context.add_cookies([{"name": COOKIE, "value": person.cookie, "url": link.url}])
        page = context.new_page()
        page.goto(f"{link.url}/enrollment")
        page.get_by_label("How many codes").fill("3")
        link.latency = 0.3
        page.get_by_role("button", name="Make the codes").dblclick(delay=100)
        page.locator("img.qr").last.wait_for()
    assert len(live.client("admin").get("/api/enrollment-codes").json()) == 3


def test_devices_are_searched_while_one_types(browser: Browser, fleet: Live, admin: Person) -> None:
    with closing(browser.new_context()) as context:
        page = enter(context, fleet, admin)
        found = complaints(page)
        page.goto(f"{fleet.url}/devices")
        page.get_by_label("Search").press_sequentially(GAP)
        page.wait_for_selector("text=1 device")
        assert page.url.partition("?")[2].startswith(f"search={GAP}"), "the address has the state"
        assert page.evaluate("document.activeElement.name") == "search"
        page.reload()
        assert page.get_by_label("Search").input_value() == GAP
        assert page.locator("tbody tr").count() == 1
        assert found == []


def test_a_receiver_that_is_away_shows_and_so_does_the_end_of_a_session(context: BrowserContext, live: Live) -> None:
    person = sign_in(live)
    page = enter(context, live, person)
    page.goto(live.url)
    banner = page.locator("#offline")
    assert not banner.is_visible()
    page.route("**/*", lambda route: route.abort())
    page.evaluate("htmx.trigger('#live', 'every')")
    banner.wait_for(state="visible")
    page.unroute("**/*")
    page.evaluate("htmx.trigger('#live', 'every')")
    banner.wait_for(state="hidden")

    person.send("/sign-out", form_of="/")
    page.evaluate("htmx.trigger('#live', 'every')")
    page.wait_for_url("**/sign-in**")
