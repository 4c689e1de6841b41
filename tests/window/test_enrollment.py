"""Enrollment: a batch of codes becomes a sheet whose every QR code, once printed, lets a device in."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page

import pisync_agent.commands.cli as agent_cli
import pisync_agent.identity as identities
from pisync_receiver.app import AppSettings
from tests.support.live_receiver import Live, live_receiver
from tests.support.services import installed

CODES = 13
"""Two sheets of paper, and a card on a third."""
SITE = "مدرسة <script>alert(1)</script>"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("enrollment"), settings=AppSettings(auth=False, cache_ttl_s=0)) as made:
        yield made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def test_a_printed_sheet_enrolls_devices(live: Live, page: Page, tmp_path: Path) -> None:
    page.goto(f"{live.url}/enrollment")
    page.get_by_label("Site").fill(SITE)
    page.get_by_label("How many codes").fill(str(CODES))
    page.get_by_role("button", name="Make the codes").click()
    codes = ["".join(text.split()) for text in page.locator(".code").all_inner_texts()]
    page.pdf(path=str(tmp_path / "sheet.pdf"), prefer_css_page_size=True)

    pictures = printed(tmp_path / "sheet.pdf")
    lines = [line for picture in pictures for line in decoded(picture)]
    assert len(pictures) == 3
    assert len(set(codes)) == CODES
    assert sorted(shlex.split(line)[-1] for line in lines) == sorted(codes)
    for line in lines:
        program, *typed = shlex.split(line)
        arguments = agent_cli.parse(typed)
        assert program == "pisync"
        assert identities.checked_url(arguments.url, insecure_http=False) == live.url
        assert identities.checked_code(arguments.code) in codes
    enrolled = httpx.post(f"{live.url}/api/enroll", json={"code": codes[-1], "device_id": "pibook-1"}, trust_env=False)
    assert enrolled.status_code == 201
    page.goto(f"{live.url}/enrollment")
    assert page.get_by_role("link", name="pibook-1").count() == 1
    assert page.get_by_text(SITE).count() == CODES


def test_a_code_is_ended_after_a_question(live: Live, page: Page) -> None:
    code = live.client(None).post("/api/enrollment-codes", json={"label": "to end"}).json()
    page.goto(f"{live.url}/enrollment")
    page.get_by_role("row", name="to end").get_by_role("link", name="End").click()
    page.get_by_role("button", name="End the code").click()

    assert page.get_by_role("status").get_by_text("The enrollment code was ended.").is_visible()
    refused = live.client(None).post("/api/enroll", json={"code": code["code"]})
    assert refused.status_code == 403


def printed(pdf: Path) -> list[Path]:
    """Return a picture of each page, as a printer resolves it coarsely."""
    subprocess.run([installed("pdftoppm"), "-r", "150", "-png", pdf, pdf.with_suffix("")], check=True)
    return sorted(pdf.parent.glob("*.png"))


def decoded(picture: Path) -> list[str]:
    """Return the text of each QR code in a picture."""
    done = subprocess.run(
        [installed("zbarimg"), "--quiet", "--raw", picture], check=True, capture_output=True, text=True
    )
    return re.findall(r"^.+$", done.stdout, re.MULTILINE)
