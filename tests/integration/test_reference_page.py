"""The page /docs shows lines of curl and of Python that run as they stand."""

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from pisync_receiver.http.reference import CLIENT
from tests.support.live_receiver import DEVICE, Live, live_receiver

ACTS: Final = (
    *("change_device", "ask_for_sync", "add_note_to_device", "add_note_to_site", "change_site"),
    *("create_code", "create_token", "retain"),
)
BY_THE_DEVICE: Final = ("post_events", "post_sync_event")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("reference")) as running:
        answer = running.client("admin").patch(f"/api/devices/{DEVICE}", json={"site": "Hill School"})
        assert answer.status_code == 200
        yield running


def lines(live: Live, language: str) -> dict[str, str]:
    """Return what the page shows, by the id of the call."""
    page = live.client(None).get("/docs").text
    found = re.findall(
        rf'<article id="(\w+)">(?:(?!</article>).)*<code class="{language}">(.*?)</code>', page, re.DOTALL
    )
    return {name: html.unescape(line) for name, line in found}


def runnable(live: Live, language: str) -> Iterator[tuple[str, str]]:
    """Yield each line that reads or acts on what is there, and the kind of token for it."""
    shown = lines(live, language)
    for name, line in shown.items():
        if name in BY_THE_DEVICE:
            yield line, "device"
        elif name in ACTS or (
            "-X" not in line and "--json" not in line if language == "curl" else "client.get(" in line
        ):
            yield line, "admin"


def test_lines_of_curl_run_as_they_stand(live: Live) -> None:
    for kind, least in (("admin", 30), ("device", 2)):
        shown = [line for line, token in runnable(live, "curl") if token == kind]
        assert len(shown) >= least
        run(["bash", "-xec", "\n".join(shown)], live, kind)


def test_lines_of_python_run_as_they_stand(live: Live) -> None:
    for kind, least in (("admin", 30), ("device", 2)):
        shown = [line for line, token in runnable(live, "python") if token == kind]
        assert len(shown) >= least
        run([sys.executable, "-c", "\n".join([CLIENT, *shown])], live, kind)


def run(command: list[str], live: Live, kind: str) -> None:
    environment = os.environ | {"PISYNC": live.url, "TOKEN": live.secrets[kind]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
