"""The window's pages: how soon they come for a large fleet beside a small one, and what open windows cost intake."""

import http.client
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlencode

from benchmark import load
from benchmark.intake import CONNECTIONS, MOST_A_SECOND, NAMES, sync_events
from benchmark.intake import SYNC_EVENT as POST_SYNC_EVENT
from benchmark.processes import database, receiver
from benchmark.report import Bench, Result, at_least, at_most, percentile, progress
from benchmark.schools import device_name, fill
from pisync_common.times import now_ms

PAGES: Final = {
    "Today": "/",
    "sites": "/sites",
    "one site": "/sites/School%20{site}",
    "devices": "/devices",
    "devices, searched": "/devices?search=seat+1{site}",
    "devices, longest silent first": "/devices?sort=last_contact",
    "one device": "/devices/{device}",
    "learning": "/learning",
    "enrollment": "/enrollment",
    "audit": "/audit",
}
MOST_MS: Final = 100.0
"""What a page may take at the 95th percentile."""
SMALL: Final = 1_000
WINDOWS: Final = 50
POLL_S: Final = 5.0
"""How often an open window asks for its live part."""


class Window:
    """A browser's connection, signed in with a token."""

    def __init__(self, port: int, token: str, cookie: str = "") -> None:
        """`cookie` is that of a session that is open."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._cookie = cookie
        if cookie:
            return
        form = urlencode({"token": token})
        status, headers, _ = self._ask("POST", "/sign-in", form)
        if status != 303 or not (cookie := headers.get("Set-Cookie", "").partition(";")[0]):
            raise RuntimeError(f"POST /sign-in: {status}")
        self._cookie = cookie

    def another(self) -> "Window":
        """Open a window of the same session: only ten sign-ins a minute are taken."""
        return Window(self._connection.port, "", self._cookie)

    def page(self, path: str) -> bytes:
        """Raises RuntimeError unless it is a page."""
        status, _, body = self._ask("GET", path)
        if status != 200 or b"<html" not in body[:300]:
            raise RuntimeError(f"GET {path}: {status} {body[:200]!r}")
        return body

    def get(self, path: str) -> int:
        return self._ask("GET", path, headers={"HX-Request": "true"})[0]

    def close(self) -> None:
        self._connection.close()

    def _ask(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        sent = {"Cookie": self._cookie, "Origin": f"http://127.0.0.1:{self._connection.port}", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        self._connection.request(method, path, body, sent)
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()


def pages(bench: Bench, engine: str) -> Iterator[Result]:
    """p95 of each page beside a limit and, on PostgreSQL, beside a fleet of 1,000 devices."""
    large = bench.pick(100_000, 10_000) if engine == "postgres" else 2_000
    sizes = (SMALL, large) if engine == "postgres" else (large,)
    folder = bench.place(f"pages-{engine}")
    with ExitStack() as stack:
        windows: dict[int, Window] = {}
        for devices in sizes:
            place = folder / str(devices)
            place.mkdir()
            url = stack.enter_context(database(engine, place))
            token = _prepared(url, place, devices)
            cloud = stack.enter_context(receiver(place, url))
            windows[devices] = Window(cloud.port, token)
        for name, path in PAGES.items():
            progress(f"pages, {NAMES[engine]}: {name}")
            took = _turn_by_turn(windows, path, times=bench.pick(200, 40))
            p95 = {devices: percentile(seconds, 95) * 1000 for devices, seconds in took.items()}
            slowest = max(took[large]) * 1000
            yield at_most(
                f"{NAMES[engine]}, {large:,} devices: {name} p95 | limit", f"{p95[large]:.1f} (worst {slowest:.0f}) ms",
                f"{MOST_MS:g} ms", p95[large] / MOST_MS, 1.0,
            )  # fmt: skip
            if engine == "postgres":
                yield at_most(
                    f"{NAMES[engine]}: {name} p95, {large:,} devices | {SMALL:,}", f"{p95[large]:.1f} ms",
                    f"{p95[SMALL]:.1f} ms", p95[large] / p95[SMALL], 2.0,
                )  # fmt: skip


def _prepared(url: str, folder: Path, devices: int) -> str:
    with receiver(folder, url) as cloud:
        token = cloud.command("token", "create", "--scope", "admin")
    progress(f"pages: storing a fleet of {devices:,} devices")
    fill(url, devices, now_ms=now_ms())
    return token


def _turn_by_turn(windows: Mapping[int, Window], path: str, *, times: int) -> dict[int, list[float]]:
    """Return the seconds of each answer, the fleets alternately."""
    chance = random.Random(7)
    took: dict[int, list[float]] = {devices: [] for devices in windows}
    for _ in range(times):
        for devices, window in windows.items():
            target = path.format(device=device_name(chance.randrange(devices)), site=chance.randrange(devices // 33))
            start = time.perf_counter()
            window.page(target)
            took[devices].append(time.perf_counter() - start)
    return took


def open_windows(bench: Bench) -> Iterator[Result]:
    """Sync events taken in while 50 windows are open beside the same without a window."""
    folder = bench.place("open-windows")
    with database("sqlite", folder) as url:
        token = _prepared(url, folder, 2_000)
        with receiver(folder, url) as cloud:
            ((device, device_token),) = cloud.enroll(["pibook-live"]).items()
            window = Window(cloud.port, token)
            live = live_part(window)
            rates: dict[bool, list[float]] = {False: [], True: []}
            seconds = bench.pick(10, 5)
            for number in range(bench.pick(7, 3)):
                for opened in rates:
                    progress(f"open windows: round {number + 1}, {WINDOWS if opened else 'none'}")
                    first_s = (2 * number + opened) * seconds * MOST_A_SECOND
                    requests = sync_events(
                        POST_SYNC_EVENT, device, device_token, seconds * MOST_A_SECOND, first_s=first_s
                    )
                    with ExitStack() as stack:
                        if opened:
                            stack.enter_context(_Watching(window, live))
                        seen = load.repeat(folder, [cloud.port], requests, connections=CONNECTIONS, seconds=seconds)
                    rates[opened].append(seen.rate)
    with_windows, without = median(rates[True]), median(rates[False])
    yield at_least(
        f"SQLite: POST /api/sync-event with {WINDOWS} windows open | none", f"{with_windows:,.0f}/s",
        f"{without:,.0f}/s", with_windows / without, 0.95,
    )  # fmt: skip


def live_part(window: Window) -> str:
    """Return the path that Today's live part is asked from."""
    found = re.search(rb'hx-get="([^"]+)"', window.page("/"))
    if found is None:
        raise RuntimeError("Today has no live part")
    return found[1].decode().replace("&amp;", "&")


class _Watching:
    """Windows that ask for the live part as browsers do, inside the block."""

    def __init__(self, window: Window, path: str) -> None:
        self._windows = [window.another() for _ in range(WINDOWS)]
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for window in self._windows:
            window.close()

    def _ask(self) -> None:
        while True:
            for window in self._windows:
                if self._stop.wait(POLL_S / WINDOWS):
                    return
                if window.get(self._path) not in (200, 304):
                    raise RuntimeError(f"GET {self._path} failed")
