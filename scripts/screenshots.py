"""Pictures of the window's pages, of a made-up fleet of schools, in Chromium.

    scripts/screenshots                          every page, light and dark, on a phone, in Arabic
    scripts/screenshots --only today,device --look phone --to /tmp/pictures

The pictures for README and docs are in docs/pictures/window. The fleet and the time are the same at every run.
"""

import argparse
import base64
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, sync_playwright
from prometheus_client import CollectorRegistry

from pisync_receiver.alerts.alerts import AlertMetrics, Alerts
from pisync_receiver.alerts.notices import Links
from pisync_receiver.alerts.rules import Rules
from pisync_receiver.app import AppSettings
from pisync_receiver.store import Store
from tests.support.fleet_of_schools import FAILING, GAP, fill
from tests.support.live_receiver import NOW_MS, Live, live_receiver
from tests.support.services import installed

FOLDER: Final = Path(__file__).parents[1] / "docs/pictures/window"
LONGEST: Final = 1_240
"""Pixels of a page that its picture shows."""
QUALITY: Final = 55
SETTINGS: Final = AppSettings(cache_ttl_s=0, public_url="https://pisync.example.org")
LEARNERS: Final = ("s-0417", "s-0418")
SCHOOL: Final = "Turkana Primary"


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a page is looked at."""

    width: int = 1_280
    scheme: str = "light"
    language: str = "en"
    scale: float = 1


LOOKS: Final[Mapping[str, Look]] = {
    "light": Look(),
    "dark": Look(scheme="dark"),
    "phone": Look(width=390, scale=1.5),
    "arabic": Look(language="ar"),
}
Visit = Callable[[Page, str], None]


def at(path: str) -> Visit:
    """Return a visit of an address."""

    def visit(page: Page, url: str) -> None:
        page.goto(url + path)

    return visit


def submit(path: str, form: str, fields: Mapping[str, str], *, download: bool = False) -> Visit:
    """Return a visit that fills in the form that is sent to `form`."""

    def visit(page: Page, url: str) -> None:
        page.goto(url + path)
        place = page.locator(f'form[action="{form}"]').first
        for name, value in fields.items():
            place.locator(f'[name="{name}"]').fill(value)
        place.locator("button").first.click()
        page.wait_for_load_state("networkidle")

    return visit


PAGES: Final[Mapping[str, Visit]] = {
    "today": at("/"),
    "sites": at("/sites"),
    "site": at(f"/sites/{SCHOOL.replace(' ', '%20')}"),
    "devices": at("/devices?state=failing"),
    "device": at(f"/devices/{GAP}"),
    "learning": at("/learning"),
    "learner": submit("/learners", "/learners", {"learner_id": LEARNERS[0]}),
    "enrollment": at("/enrollment"),
    "sheet": submit("/enrollment", "/enrollment", {"site": "Kisumu Girls", "count": "6", "label": "Form 2"}),
    "privacy": at("/privacy"),
    "erase": submit("/privacy", "/privacy/erase", {"learner_id": LEARNERS[0]}),
    "audit": at("/audit"),
    "sign-in": at("/sign-in"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/screenshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PAGE,…", help=f"some of {', '.join(PAGES)}")
    parser.add_argument("--look", metavar="LOOK,…", help=f"some of {', '.join(LOOKS)}")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder to write to")
    options = parser.parse_args()
    pages = options.only.split(",") if options.only else [*PAGES]
    looks = options.look.split(",") if options.look else [*LOOKS]
    options.to.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        live_receiver(Path(folder), settings=SETTINGS) as live,
        sync_playwright() as playwright,
    ):
        live.run(fill(live.store, now_ms=NOW_MS, days=14))
        for hours in (72, 5):  # two schools fell silent in between
            live.run(watch(live.store, NOW_MS - hours * 3_600_000))
        use(live)
        browser = playwright.chromium.launch(executable_path=installed("chromium"), args=["--no-sandbox"])
        for look in looks:
            take(browser, live, look, pages, options.to)
        browser.close()
    return 0


async def watch(store: Store, at_ms: int) -> None:
    """Note which states had changed at a moment."""
    alerts = Alerts(
        store,
        (),
        rules=Rules(quiet_hours=None, zone=UTC),
        silent_after_ms=7 * 86_400_000,
        links=Links(None),
        now_ms=lambda: at_ms,
        uniform=random.uniform,
        metrics=AlertMetrics(CollectorRegistry()),
    )
    await alerts.watch()


def use(live: Live) -> None:
    """Do what people do, so that notes, codes and the audit log are not empty."""
    admin = live.client("admin")
    for path, body in ACTS:
        admin.post(path, json=body).raise_for_status()
    code = admin.post("/api/enrollment-codes", json={"site": "Kisumu Girls", "uses": 5, "label": "Form 1"}).json()
    for number in (1, 2):
        enrolled = {"code": code["code"], "device_id": f"pibook-21{number:02}"}
        given = live.client(None).post("/api/enroll", json=enrolled).json()
        device = live.client(None, Authorization=f"Bearer {given['token']}")
        device.post("/api/events", json=lesson(given["device_id"], LEARNERS[number - 1])).raise_for_status()


ACTS: Final[Sequence[tuple[str, Any]]] = (
    (f"/api/sites/{SCHOOL.replace(' ', '%20')}/notes", {"text": "The head teacher has the key of the router's room."}),
    (f"/api/devices/{GAP}/notes", {"text": "Card replaced on 12 November; the old card is in the office."}),
    (f"/api/devices/{FAILING}/sync", {}),
    ("/api/tokens", {"scope": "viewer", "label": "District office", "sites": ["Nakuru Secondary"]}),
    ("/api/enrollment-codes", {"site": "Nakuru Secondary", "uses": 30, "label": "Library"}),
)
OBJECTS: Final = ("math/g5/ch02/v03", "math/g5/ch02/v04", "science/g5/water-cycle", "english/g5/story-07")


def lesson(device_id: str, learner: str) -> dict[str, Any]:
    """Return what a learner did during a week."""
    types = ("video.watched", "note.taken", "assignment.completed")
    events = [
        {
            "seq": seq,
            "type": types[seq % 3],
            "occurred_at": datetime.fromtimestamp(NOW_MS / 1000 - 86_400 * (8 - seq / 3), UTC).isoformat(),
            "clock_synced": True,
            "learner_id": learner,
            "object_id": OBJECTS[seq % 4],
            "data": {"seconds_watched": 120 + 13 * seq} if seq % 3 == 0 else {"progress": round(seq / 20, 2)},
        }
        for seq in range(1, 20)
    ]
    return {"device_id": device_id, "stream": "9f3c1a7be2d04c55", "events": events}


def take(browser: Browser, live: Live, name: str, pages: Sequence[str], folder: Path) -> None:
    """Take pictures of pages in one look."""
    look = LOOKS[name]
    context = browser.new_context(
        viewport={"width": look.width, "height": 860},
        color_scheme="dark" if look.scheme == "dark" else "light",
        device_scale_factor=look.scale,
        locale=look.language,
    )
    page = context.new_page()
    if "sign-in" in pages:
        shoot(page, live.url, "sign-in", folder / f"sign-in-{name}.webp")
    page.goto(f"{live.url}/sign-in")
    page.locator('input[name="token"]').fill(live.secrets["admin"])
    page.locator("main button").click()
    page.wait_for_url(f"{live.url}/")
    for each in pages:
        if each != "sign-in":
            shoot(page, live.url, each, folder / f"{each}-{name}.webp")
    context.close()


def shoot(page: Page, url: str, name: str, file: Path) -> None:
    """Write a picture of one page."""
    PAGES[name](page, url)
    page.wait_for_load_state("networkidle")
    width, height = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    session = page.context.new_cdp_session(page)
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, LONGEST), "scale": 1}
    wanted = {"format": "webp", "quality": QUALITY, "captureBeyondViewport": True, "clip": clip}
    file.write_bytes(base64.b64decode(session.send("Page.captureScreenshot", wanted)["data"]))
    session.detach()
    print(f"{file.name}: {width} × {min(height, LONGEST)}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
