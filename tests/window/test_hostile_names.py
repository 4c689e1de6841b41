"""A fleet whose every text attacks the pages: all of it is text, everywhere, and the layout holds on a phone."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import Browser, Page

from pisync_receiver.window.calls import path_of
from tests.support.accessibility import violations
from tests.support.live_receiver import Live, live_receiver

WIDTH: Final = 390
ATTACKS: Final = (
    "<script>canary = 1</script>",
    '"><img src=x onerror="canary = 1"><svg onload=canary=1>',
    "' autofocus onfocus='canary = 1' x='{{ 7 * 7 }}${7*7}%(n)s%s",
    "javascript:canary=1",
    "</title></textarea></template><base href=//example.org><meta http-equiv=refresh content=0>",
    '=HYPERLINK("https://example.org","Nakuru")',
    "\u202egro.elpmaxe\u2066 مدرسة الأمل \u200f(א)",
    "W" * 250,
    "👩‍🏫" * 60,
    "../../static/%2e%2e?a=b&c=#d",
)
WATCH: Final = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
        violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
LISTS: Final = (
    "/api/devices",
    "/api/sites",
    "/api/incomplete",
    "/api/events",
    "/api/activity",
    "/api/enrollment-codes",
    "/api/tokens",
    "/api/audit",
)


@dataclass
class Visitor:
    """A browser on a phone, signed in with a token whose label attacks."""

    page: Page
    url: str
    elsewhere: list[str] = field(default_factory=list)

    def sign_in(self, token: str) -> None:
        self.page.on("request", self._note)
        self.page.add_init_script(WATCH)
        self.page.goto(self.url)
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.url}/")

    def look_at(self, path: str) -> None:
        """Open a page and check it."""
        answer = self.page.goto(self.url + path)
        assert answer is not None
        assert answer.status == 200, path
        self.check(path)

    def press(self, name: str) -> None:
        """Send the first form with this button."""
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=name).first.click()

    def check(self, where: str) -> None:
        found = self.page.evaluate("[window.canary ?? null, violations, document.documentElement.scrollWidth]")
        assert found == [None, [], WIDTH], where
        assert self.elsewhere == [], where

    def _note(self, request: Any) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.elsewhere.append(request.url)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("hostile")) as running:
        for number, attack in enumerate(ATTACKS):
            attack_with(running, f"pibook-{number}", attack)
        yield running


@pytest.fixture
def visitor(live: Live, browser: Browser) -> Iterator[Visitor]:
    page = browser.new_page(viewport={"width": WIDTH, "height": 844}, reduced_motion="reduce")
    page.set_default_timeout(20_000)
    visitor = Visitor(page=page, url=live.url)
    visitor.sign_in(created(live.client("admin"), "/api/tokens", scope="admin", label=ATTACKS[0])["token"])
    yield visitor
    page.close()


def test_no_text_runs_or_breaks_a_page(visitor: Visitor) -> None:
    for path in ("/", "/sites", "/devices", "/learning", "/learners", "/enrollment", "/privacy", "/audit"):
        visitor.look_at(path)
    for number, attack in enumerate(ATTACKS):
        visitor.look_at(path_of("/sites/{}", attack))
        assert visitor.page.get_by_role("heading", level=1).inner_text().strip("\u2068\u2069") == attack
        visitor.look_at(f"/devices/pibook-{number}")
    visitor.look_at("/learning?" + str(httpx.QueryParams(site=ATTACKS[0], object_id=ATTACKS[1])))


def test_no_text_runs_in_answers_to_forms(visitor: Visitor) -> None:
    page = visitor.page
    for attack in (ATTACKS[6], ATTACKS[7]):
        page.goto(f"{visitor.url}/learners")
        page.get_by_label("Learner").fill(attack)
        visitor.press("Show")
        visitor.check("a learner's events")
        assert violations(page) == []
        assert page.get_by_role("row").count() == 2, page.inner_text("main")

        page.goto(f"{visitor.url}/privacy")
        page.get_by_label("Learner").first.fill(attack)
        visitor.press("Show what would be deleted")
        visitor.check("an erasure")
        assert violations(page) == []

        page.goto(f"{visitor.url}/enrollment")
        page.get_by_label("Site").fill(attack)
        page.get_by_label("Label").fill(attack)
        page.get_by_label("How many codes").fill("2")
        visitor.press("Make the codes")
        visitor.check("a sheet")
        assert violations(page) == []


@pytest.mark.parametrize("path", LISTS)
def test_no_cell_of_a_sheet_is_a_formula(live: Live, path: str) -> None:
    answer = live.client("admin").get(path, params={"format": "csv"})
    assert answer.status_code == 200, answer.text
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert len(rows) > 1
    for cell in (cell for row in rows for cell in row):
        assert cell[:1] not in ("=", "+", "@", "\t", "\r"), cell
        assert cell[:1] != "-" or cell[1:].replace(".", "").isdigit(), cell


def attack_with(live: Live, device_id: str, attack: str) -> None:
    """Put a text into every field that takes it."""
    admin = live.client("admin")
    code = created(admin, "/api/enrollment-codes", site=attack, label=attack)["code"]
    token = created(live.client(None), "/api/enroll", code=code, device_id=device_id)["token"]
    device = httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    with device:
        for version in ("one", "two"):  # the second is a conflict
            events = [
                {
                    "seq": 3,
                    "type": "video.watched",
                    "occurred_at": "2026-11-23T09:00:00Z",
                    "learner_id": attack,
                    "object_id": attack,
                    "id": attack[:100],
                    "data": {attack: [attack, version]},
                },
                {"seq": 4, "type": attack, "occurred_at": attack, "learner_id": attack},
            ]
            batch = {"device_id": device_id, "stream": "s", "agent": attack[:128], "events": events}
            answer = device.post("/api/events", content=json.dumps(batch), headers={"Content-Type": "application/json"})
            assert answer.status_code == 200, answer.text
    assert admin.patch(f"/api/devices/{device_id}", json={"label": attack}).status_code == 200
    created(admin, f"/api/devices/{device_id}/notes", text=attack)
    created(admin, path_of("/api/sites/{}/notes", attack), text=attack)


def created(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()
