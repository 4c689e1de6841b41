"""The window's story with real programs: a receiver, agents behind a bad link, and an administrator in Chromium."""

import asyncio
import csv
import shlex
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page

from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.store.opening import open_store
from tests.support.fault_proxy import FaultProxy
from tests.support.live_receiver import running_loop
from tests.support.processes import AgentProcess, ReceiverProcess
from tests.support.services import installed
from tests.support.submissions import DAY, MINUTE, batch, event, sync_event

BUSY: Final = "pibook-busy"
RUNS: Final = 100_000
QUIET_SITE: Final = "Isiolo Primary"
SITE: Final = "Kisumu Girls"
LEARNER, CLASSMATE = "pupil-planted-7", "pupil-kept-8"
WALK: Final = """async (address) => {
  const files = [];
  let last = address;
  for (let next = address; next;) {
    last = next;
    const answer = await fetch(next);
    if (!answer.ok) throw new Error(`${next}: ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const row of page.querySelectorAll("main tbody tr")) files.push(row.cells[2].textContent);
    next = page.querySelector("a[rel=next]")?.getAttribute("href");
  }
  return {files, last};
}"""
"""Follow a list's links to the next page to its end, as a tab of the person who has signed in."""


@dataclass(frozen=True, kw_only=True)
class School:
    """A receiver with a past: a device of many runs, and a site that was in contact three days ago."""

    receiver: ReceiverProcess
    token: str

    def api(self, path: str, **query: Any) -> httpx.Response:
        answer = httpx.get(
            self.receiver.url + path,
            params=query,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    receiver = ReceiverProcess(tmp_path_factory.mktemp("school") / "receiver")
    with running_loop() as loop:
        asyncio.run_coroutine_threadsafe(_past(receiver.database), loop).result()
    _many_runs(receiver.database)
    token = receiver.admin_token()
    with receiver:
        yield School(receiver=receiver, token=token)


async def _past(database: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    store = await open_store(database, create=True)
    await store.write(
        [
            batch([event(1)], device="pibook-quiet", received_ms=now_ms - 3 * DAY),
            DeviceChange(device_id="pibook-quiet", at_ms=now_ms - 3 * DAY, site=QUIET_SITE),
            sync_event(now_ms - MINUTE, device=BUSY, received_ms=now_ms - MINUTE),
            DeviceChange(device_id=BUSY, at_ms=now_ms - MINUTE, site="Lamu Primary"),
        ]
    )
    await store.aclose()


def _many_runs(database: Path) -> None:
    """Copy a device's sync event into the past, three at each moment: pages end within a moment, too."""
    with closing(sqlite3.connect(database)) as connection, connection:
        own = ("id", "at_ms", "total_files_synced")
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(sync_events)") if name not in own]
        others = ", ".join(columns)
        connection.execute(
            f"WITH RECURSIVE copy (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM copy WHERE n < {RUNS} - 1) "
            f"INSERT INTO sync_events (at_ms, total_files_synced, {others}) "
            f"SELECT at_ms - n / 3 * 1000, n, {others} FROM copy, (SELECT * FROM sync_events WHERE device_id = ?)",
            (BUSY,),
        )
        connection.execute("UPDATE sync_events SET total_files_synced = 0 WHERE id = 1")


@pytest.fixture
def page(school: School, context: BrowserContext) -> Page:
    """A tab of an admin who has signed in with a token."""
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    sign_in(tab, school)
    return tab


def sign_in(tab: Page, school: School) -> None:
    tab.goto(school.receiver.url)
    tab.get_by_label("Token").fill(school.token)
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_role("heading", name="Today", exact=True).wait_for()


def enrolled(school: School, home: Path, url: str = "") -> AgentProcess:
    """An agent of SITE, its device named as its home."""
    agent = AgentProcess(home)
    agent.enroll(url or school.receiver.url, school.receiver.enrollment_code("--site", SITE), device_id=home.name)
    return agent


def test_today_shows_who_fails_recovers_and_falls_silent_without_reload(
    school: School, page: Page, tmp_path: Path
) -> None:
    page.evaluate("window.notReloaded = true")
    live = page.locator("#live")
    with FaultProxy("127.0.0.1", school.receiver.port) as link:
        agent = enrolled(school, tmp_path / "pibook-far", link.url)
        link.bad_gateway = {"/api/events"}
        for _ in range(3):
            agent.record()
            agent.command("sync", code=(1, 3))
        failing = live.get_by_role("link", name=SITE).first
        failing.wait_for()
        assert "failing" in live.locator("ol.need li", has_text=SITE).inner_text()
        link.heal()
        agent.command("sync")
        live.locator("ol.need li", has_text=SITE).wait_for(state="detached")

    assert live.locator("ol.need li").count() == 0
    with page.context.expect_page() as opened:
        page.evaluate("path => window.open(path)", f"/sites/{QUIET_SITE}")
    site = opened.value
    site.get_by_label("Days without contact").fill("2")
    site.get_by_role("button", name="Set", exact=True).click()
    site.get_by_text("The site's time until silence was changed.").wait_for()
    worst = live.locator("ol.need li").first
    worst.wait_for()
    assert QUIET_SITE in worst.inner_text()
    assert "silent" in worst.inner_text()
    assert "3 days" in worst.inner_text()
    assert page.evaluate("window.notReloaded")


def test_every_one_of_100_000_runs_is_paged_through_and_exported(school: School, page: Page, tmp_path: Path) -> None:
    page.goto(f"{school.receiver.url}/devices/{BUSY}")
    page.get_by_role("link", name="All sync runs").click()
    page.get_by_role("link", name="Next page").click()
    page.get_by_role("link", name="First page").wait_for()
    page.get_by_role("link", name="First page").click()
    page.get_by_role("link", name="First page").wait_for(state="detached")

    walked = page.evaluate(WALK, f"/devices/{BUSY}/runs")
    listed = [int(text.replace(",", "")) for text in walked["files"]]
    assert sorted(listed) == list(range(RUNS)), "each run once"
    page.goto(school.receiver.url + walked["last"])
    page.get_by_text("This is the last page.").wait_for()

    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    download.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [int(row["total_files_synced"]) for row in csv.DictReader(file)] == listed


def test_a_printed_code_enrolls_an_agent_that_says_when_it_is_revoked(
    school: School, page: Page, tmp_path: Path
) -> None:
    page.goto(f"{school.receiver.url}/enrollment")
    page.get_by_label("Site").fill(SITE)
    page.get_by_label("How many codes").fill("7")
    page.get_by_role("button", name="Make the codes").click()
    page.locator("img.qr").last.wait_for()
    page.pdf(path=str(tmp_path / "sheet.pdf"), prefer_css_page_size=True)
    lines = decoded(tmp_path / "sheet.pdf")
    assert len(set(lines)) == 7

    agent = AgentProcess(tmp_path / "device")
    program, *typed = shlex.split(lines[0])
    assert program == "pisync"
    agent.command(*typed)
    agent.record()
    agent.command("sync")

    page.goto(f"{school.receiver.url}/devices/{agent.status()['device_id']}")
    page.get_by_role("link", name="Revoke").click()
    page.get_by_role("button", name="Revoke its tokens").click()
    page.get_by_text("All tokens of the device were revoked.").wait_for()
    agent.record()
    refused = agent.run("sync")
    assert (refused.returncode, "refused" in refused.stdout + refused.stderr) == (4, True), refused
    assert "refused" in agent.command("status", code=4)
    assert agent.status()["waiting"] == 1, "what it recorded is kept"


def decoded(pdf: Path) -> list[str]:
    """Return the text of each QR code on a printed sheet."""
    subprocess.run([installed("pdftoppm"), "-r", "150", "-png", pdf, pdf.with_suffix("")], check=True)
    pictures = sorted(pdf.parent.glob("sheet*.png"))
    done = subprocess.run(
        [installed("zbarimg"), "--quiet", "--raw", *pictures], check=True, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if line]


def test_an_erased_learner_stays_erased_after_yesterdays_backup_is_restored(
    school: School, page: Page, tmp_path: Path
) -> None:
    agent = enrolled(school, tmp_path / "pibook-learners")
    receiver = school.receiver
    for learner in (LEARNER, CLASSMATE, LEARNER):
        agent.record("video.watched", "--learner", learner)
    agent.command("sync")
    receiver.command("backup", str(tmp_path / "yesterday.db"))
    agent.record("video.watched", "--learner", LEARNER)
    agent.command("sync")
    assert rows_of(page, school, LEARNER) == 3

    page.goto(f"{receiver.url}/privacy")
    page.get_by_label("Learner").first.fill(LEARNER)
    page.get_by_role("button", name="Show what would be deleted").first.click()
    page.get_by_text("3 events would be deleted.").wait_for()
    page.get_by_label("Type the learner’s id to confirm").fill(LEARNER)
    page.get_by_role("button", name="Erase", exact=True).click()
    page.get_by_role("heading", name="The learner is erased").wait_for()
    check_erased(page, school)

    receiver.stop()
    shutil.copy(tmp_path / "yesterday.db", receiver.database)
    receiver.start()
    page.context.clear_cookies()  # yesterday there was another session
    sign_in(page, school)
    check_erased(page, school)
    agent.record("video.watched", "--learner", CLASSMATE)
    agent.command("sync")  # the receiver asks for what the backup did not have
    check_erased(page, school)
    assert rows_of(page, school, CLASSMATE) == 2
    page.goto(f"{receiver.url}/devices/pibook-learners")
    page.get_by_text("Complete: 5 events of 5").wait_for()
    assert receiver.json("completeness", "pibook-learners")["complete"]


def rows_of(page: Page, school: School, learner: str) -> int:
    """Return how many events of a learner their page lists."""
    page.goto(f"{school.receiver.url}/learners")
    page.get_by_label("Learner").fill(learner)
    page.get_by_role("button", name="Show").click()
    page.locator("#timeline").wait_for()
    return page.locator("main tbody tr").count()


def check_erased(page: Page, school: School) -> None:
    assert rows_of(page, school, LEARNER) == 0
    assert school.api("/api/learners/events", learner_id=LEARNER).json() == []
    assert LEARNER not in school.api("/api/events", device_id="pibook-learners").text
