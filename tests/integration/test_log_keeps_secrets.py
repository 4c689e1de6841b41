"""Tokens, learner ids and event data never reach the log, whatever goes wrong."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_receiver.http.auth import Access
from pisync_receiver.http.edge import FLUSH_LINES
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import Route
from pisync_receiver.logs import JsonLines
from tests.support.live_receiver import DEVICE, Live, live_receiver
from tests.support.processes import wait_until

LEARNER, OBJECT, DATA, CODE = "learner-planted", "object-planted", "data-planted", "code-planted"
PLANTED = (LEARNER, OBJECT, DATA, CODE, "psd_", "psa_", "psv_")


async def choking(request: Request) -> Answer:
    raise ValueError(f"{LEARNER} {DATA} {request.headers!r} {await request.body()!r}")


CHOKES = Route(method="POST", path="/chokes", access=Access.DEVICE, handler=choking, summary="Fails.", responses={})


class Lines(JsonLines):
    """Everything that is logged."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(self.text)

    def __iter__(self) -> Iterator[str]:
        self.flush()
        return iter(self.text.getvalue().splitlines())


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    lines.addFilter(lambda record: not record.name.startswith(("httpx", "httpcore")))  # the caller's own lines
    root = logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)
    yield lines
    root.setLevel(level)
    root.removeHandler(lines)


def test_no_secret_reaches_the_log(tmp_path: Path, lines: Lines) -> None:
    with live_receiver(tmp_path, extra_routes=(CHOKES,), access_log=lines) as live:
        statuses = attack(live)
        counted = live.client("viewer").get("/metrics").text
    assert {200, 400, 401, 403, 404, 500} <= statuses
    text = "\n".join(lines)
    assert [planted for planted in PLANTED if planted in text] == []
    assert [planted for planted in (*PLANTED, DEVICE) if planted in counted] == []
    assert [secret for secret in live.secrets.values() if secret[4:] in text] == []
    assert all(json.loads(line)["message"] for line in lines)


def attack(live: Live) -> set[int]:
    """Send the planted texts everywhere a caller can put them."""
    event = {"type": "a.b", "occurred_at": "2026-11-23T08:00:00Z", "learner_id": LEARNER, "object_id": OBJECT}
    good = event | {"seq": 1, "data": {"note": DATA}}
    bad = event | {"seq": 2, "data": [DATA], "learner_id": f"{LEARNER} {LEARNER}"}
    other = event | {"seq": 1, "data": {"note": DATA + "2"}}
    device, admin = live.client("device"), live.client("admin")
    answers = [
        device.post("/api/events", json={"device_id": DEVICE, "stream": "s", "events": [good, bad]}),
        device.post("/api/events", json={"device_id": DEVICE, "stream": "s", "events": [other]}),
        device.post("/api/events", json={"device_id": "x", "stream": "s", "events": [good]}),
        device.post("/api/events", content=DATA, headers={"Content-Type": "application/json"}),
        device.post("/api/sync-event", json={"device_id": DEVICE, "timestamp": DATA}),
        device.post("/api/enroll", json={"code": CODE, "device_id": LEARNER}),
        device.post("/chokes", json={"learner_id": LEARNER}),
        admin.get(f"/api/events?learner_id={LEARNER}&object_id={OBJECT}&limit={DATA}"),
        admin.get(f"/api/events?learner_id={LEARNER}", headers={"Accept": "text/csv"}),
        admin.get(f"/api/learners/events?learner_id={LEARNER}"),
        admin.post("/api/learners/erase", json={"learner_id": LEARNER}),
        admin.post("/api/learners/erase", json={"learner_id": f"{LEARNER}-2", "learner_home": LEARNER}),
        admin.get(f"/{LEARNER}/{DATA}"),
        admin.get(f"/api/devices/{LEARNER}"),
        admin.get("/healthz", headers={"traceparent": f"00-{DATA}-{LEARNER}-01", "X-Forwarded-For": LEARNER}),
        admin.get("/healthz", headers={"X-Request-Id": f"{LEARNER} {DATA}", "User-Agent": DATA, "Referer": f"/{CODE}"}),
        *(live.client(kind).get("/api/devices") for kind in live.secrets),
    ]
    return {answer.status_code for answer in answers}


def test_each_request_has_one_line_with_its_id_route_status_and_device(tmp_path: Path, lines: Lines) -> None:
    with live_receiver(tmp_path, access_log=lines) as live:
        live.client("device").get(f"/api/sync-event/device/{DEVICE}/sync-history?limit=5")
    (line,) = [found for text in lines if (found := json.loads(text))["logger"] == "pisync_receiver.access"]
    assert line["route"] == "/api/sync-event/device/{device_id}/sync-history"
    assert (line["status"], line["method"], line["device_id"]) == (200, "GET", DEVICE)
    assert line["request_id"] == "made-1"


def test_a_callers_trace_stands_on_the_lines_of_its_request(tmp_path: Path, lines: Lines) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with live_receiver(tmp_path, access_log=lines) as live:
        live.client("device").get("/healthz", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        live.client("device").get("/healthz")
    first, second = [found for text in lines if (found := json.loads(text))["logger"] == "pisync_receiver.access"]
    assert first["trace_id"] == trace
    assert first["client"] == "127.0.0.1"
    assert "trace_id" not in second


def test_access_lines_are_written_within_a_second_or_256_at_once(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(lines, "flush", lambda: flushed.append(len(lines.pending)))
    with live_receiver(tmp_path, access_log=lines) as live:
        client = live.client(None)
        client.get("/healthz")
        wait_until(lambda: 1 in flushed, "the line is flushed a second later")
        for _ in range(FLUSH_LINES - 1):
            client.get("/healthz")
    assert max(flushed) >= FLUSH_LINES
