"""A receiver with a fleet whose truth is known, people who have signed in, and a browser."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from pisync_receiver.app import AppSettings
from tests.support.fleet_of_schools import fill
from tests.support.live_receiver import NOW_MS, Live, live_receiver
from tests.support.services import installed


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A receiver of 2,000 devices in 60 schools; tests only read it."""
    with live_receiver(tmp_path_factory.mktemp("fleet"), settings=AppSettings()) as running:
        running.run(fill(running.store, now_ms=NOW_MS))
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each file: while it lives, no other test of this process can run an event loop."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=installed("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's profile of its own."""
    with closing(browser.new_context()) as made:
        yield made
