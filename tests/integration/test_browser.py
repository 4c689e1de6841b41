"""pisync.js in Chromium: what learners click reaches the cloud once, with the time of the click, whatever happens."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from pisync_agent.outbox.reader import OutboxReader
from pisync_common.times import parse_ms
from tests.support.processes import AgentProcess, ReceiverProcess, free_port, wait_until
from tests.support.proof import Proof
from tests.support.services import installed

SCRIPT: Final = Path(__file__).parents[2] / "agent/pisync_agent/web/pisync.js"
LEARNERS: Final = ("عائشة", "अनिता", "s-17")
PAGE: Final = """<!doctype html><meta charset="utf-8"><title>A lesson</title>
<button>play</button>
<script src="pisync.js"></script>
<script>
  const given = new URLSearchParams(location.search);
  const kept = [], refused = [], errors = [], failed = [];
  const pisync = new PiSync({
    url: given.get("url"), token: given.get("token"),
    onrefused: (event, reason) => refused.push([event, reason]),
    onerror: (error) => errors.push(String(error)),
  });
  let number = Number(given.get("first"));
  async function play(more) {
    const n = number++, before = Date.now();
    const event = { type: "video.watched", learner_id: given.get("learner"), data: { n } };
    const promise = pisync.record(Object.assign(event, more));
    const after = Date.now();
    try {
      kept.push({ n, before, after, id: await promise });
    } catch (error) {
      failed.push(String(error));
    }
  }
  document.querySelector("button").onclick = () => play();
</script>
"""
OLDER: Final = """
  delete Navigator.prototype.locks; delete Crypto.prototype.randomUUID; delete window.AbortController;
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app's files."""
    made = tmp_path_factory.mktemp("app")
    (made / "lesson.html").write_text(PAGE)
    shutil.copy(SCRIPT, made / "pisync.js")
    return made


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """The app's own server, on another origin than the agent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=installed("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's profile of its own."""
    with closing(browser.new_context()) as made:
        yield made


class Device:
    """An agent that serves HTTP to listed origins."""

    def __init__(self, home: Path, *origins: str) -> None:
        self.port = free_port()
        options = ("--http-port", str(self.port), "--http-origins", ", ".join(origins), "--sync-delay", "100ms")
        self.agent = AgentProcess(home, *options)
        self.before = 0

    def start(self) -> None:
        self.agent.start()
        wait_until((self.agent.home / "http-token").exists, "the token is there")

    def begin(self) -> None:
        """Begin a test: what was recorded before is not its own."""
        self.before = self._last_seq()

    def recorded(self) -> list[dict[str, Any]]:
        """Return every event in the outbox that the test has recorded."""
        with OutboxReader(self.agent.home) as reader:
            bodies = [reader.event(seq) for seq in range(self.before + 1, self._last_seq() + 1)]
        return [json.loads(body or "") for body in bodies]

    def open(self, context: BrowserContext, site: str, *, first: int = 0, learner: str = "s-17") -> Page:
        """Open the lesson."""
        page = context.new_page()
        url, token = f"http://127.0.0.1:{self.port}", (self.agent.home / "http-token").read_text().strip()
        page.goto(f"{site}/lesson.html?url={url}&token={token}&first={first}&learner={learner}")
        return page

    def _last_seq(self) -> int:
        with OutboxReader(self.agent.home) as reader:
            return reader.state().last_seq


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Device]:
    made = Device(tmp_path_factory.mktemp("agent") / "device", site, "null")
    with made.agent:
        made.start()
        yield made


@pytest.fixture
def device(running: Device) -> Device:
    running.begin()
    return running


def click(page: Page, times: int = 1) -> list[dict[str, Any]]:
    """Click, wait until the page keeps all its clicks, and return them."""
    for _ in range(times):
        page.get_by_role("button").click()
    page.wait_for_function("number - Number(given.get('first')) === kept.length")
    kept: list[dict[str, Any]] = page.evaluate("kept")
    return kept


def wait_for_none_pending(page: Page) -> None:
    wait_until(lambda: page.evaluate("pisync.send().then(() => pisync.pending())") == 0, "the agent has every click")


def check_each_click_once(clicks: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    """Every click is there once, under its id, with the time of the click."""
    found = {event["id"]: event for event in events}
    assert len(found) == len(events) == len(clicks)
    for each in clicks:
        event = found[each["id"]]
        assert event["data"] == {"n": each["n"]}
        assert each["before"] <= parse_ms(event["occurred_at"]) <= each["after"]


def test_clicks_reach_the_cloud_once_with_the_agent_stopped_and_the_tab_closed(
    device: Device, context: BrowserContext, site: str, tmp_path: Path
) -> None:
    with ReceiverProcess(tmp_path / "receiver") as receiver, closing(Proof(receiver)) as proof:
        device.agent.enroll(receiver.url, receiver.enrollment_code(), "--insecure-http", device_id="pibook-1")
        page = device.open(context, site, learner=LEARNERS[0])
        clicks = click(page, 3)
        wait_until(lambda: len(device.recorded()) == 3, "the agent has the first clicks")
        device.agent.stop()
        clicks = click(page, 3)
        assert page.evaluate("pisync.pending()") == 3
        page.close()

        page = device.open(context, site, first=6, learner=LEARNERS[1])
        clicks += click(page, 3)
        assert page.evaluate("pisync.pending()") == 6, "the clicks of the closed tab, too"
        device.agent.start()
        wait_for_none_pending(page)
        check_each_click_once(clicks, device.recorded())
        assert [event["data"]["n"] for event in device.recorded()] == list(range(9)), "in the order of the clicks"
        device.agent.command("sync")

        stored = proof.events("pibook-1")
        check_each_click_once(clicks, [event | {"id": event["event_id"]} for event in stored])
        assert [event["learner_id"] for event in stored] == [LEARNERS[0]] * 6 + [LEARNERS[1]] * 3
        assert proof.completeness("pibook-1")["complete"]


def test_a_page_from_a_file_records(device: Device, context: BrowserContext, folder: Path) -> None:
    page = device.open(context, f"file://{folder}", learner=LEARNERS[2])
    clicks = click(page, 2)
    wait_for_none_pending(page)

    assert page.evaluate("origin") == "null"
    check_each_click_once(clicks, device.recorded())


@pytest.mark.parametrize("missing", ["", OLDER], ids=["current", "older"])
def test_tabs_and_lost_answers_double_nothing(device: Device, context: BrowserContext, site: str, missing: str) -> None:
    """The agent's first answers are lost on the way: it has the events, and the page sends them again."""
    context.add_init_script(missing)
    lost: list[int] = []

    def lose(route: Route) -> None:
        answer = route.fetch()
        if route.request.method == "POST" and len(lost) < 2:
            lost.append(answer.status)
            route.abort()
        else:
            route.fulfill(response=answer)

    pages = [device.open(context, site, first=100 * n) for n in range(2)]
    pages[0].route("**/v1/events", lose)
    clicks = [each for page in pages for each in click(page, 5)]
    for page in pages:
        wait_for_none_pending(page)

    assert lost == [200, 200]
    check_each_click_once(clicks, device.recorded())


def test_a_refused_event_is_put_aside_with_its_reason(device: Device, context: BrowserContext, site: str) -> None:
    page = device.open(context, site)
    click(page)
    page.evaluate("play({ type: 'Watched', id: 'wrong' })")
    page.evaluate("play({ data: { text: 'x'.repeat(70000) }, id: 'large' })")
    page.evaluate("play({ data: { text: 'x'.repeat(2000000) }, id: 'larger' })")
    clicks = click(page)
    wait_for_none_pending(page)
    aside = page.evaluate("pisync.refused()")

    check_each_click_once([each for each in clicks if each["n"] in (0, 4)], device.recorded())
    assert [row["event"]["id"] for row in aside] == ["wrong", "large", "larger"]
    for row, reason in zip(aside, ("noun.verb", "65,536", "1,048,576"), strict=True):
        assert reason in row["reason"]
    assert page.evaluate("refused") == [[row["event"], row["reason"]] for row in aside]
    page.evaluate("pisync.dismiss('large')")
    page.reload()
    assert [row["event"]["id"] for row in page.evaluate("pisync.refused()")] == ["wrong", "larger"]
    page.evaluate("play({ learner: 's-17' })")
    page.wait_for_function("failed.length === 1")
    assert "unknown field learner" in page.evaluate("failed[0]")
    page.goto(site)
    assert page.evaluate("import('/pisync.js').then(() => typeof window.PiSync)") == "function", "as a module, too"


def test_a_browser_that_keeps_nothing_says_so_and_records_what_the_agent_has(
    device: Device, context: BrowserContext, site: str
) -> None:
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    warnings: list[str] = []
    context.on("console", lambda message: warnings.append(message.text))
    page = device.open(context, site)
    assert page.evaluate("pisync.ready") is False
    clicks = click(page, 2)

    check_each_click_once(clicks, device.recorded())
    assert any("keeps nothing" in text for text in warnings)


def test_a_page_that_is_not_listed_keeps_its_clicks(device: Device, context: BrowserContext, site: str) -> None:
    page = device.open(context, site.replace("127.0.0.1", "localhost"))
    click(page, 2)
    page.wait_for_function("errors.length > 0")

    assert page.evaluate("pisync.pending()") == 2
    assert device.recorded() == []


def test_the_script_is_one_file_of_the_language_of_2017() -> None:
    text = SCRIPT.read_text()
    later: list[Callable[[str], bool]] = [
        lambda line: "?." in line, lambda line: "??" in line, lambda line: "{ ..." in line,
        lambda line: "catch {" in line, lambda line: "for await" in line, lambda line: ".flat" in line,
        lambda line: line.startswith(("import ", "export ")),
    ]  # fmt: skip

    assert [line for line in text.splitlines() for uses in later if uses(line)] == []
