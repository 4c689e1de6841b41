"""ETags: who has an answer is told that it still holds, without a query; and is never told so after a commit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_receiver.store import Store
from tests.support.live_receiver import DEVICE, NOW_MS, OTHER, Live, live_receiver

QUESTIONS = (
    "/api/devices",
    f"/api/devices/{DEVICE}",
    f"/api/devices/{DEVICE}/completeness",
    f"/api/sync-event/device/{DEVICE}/sync-history",
    "/api/sync-event/devices/repeated-failures?min_failures=1",
    "/api/sync-event/devices/repeated-failures?mode=total&min_failures=1",
    "/api/events",
)
QUERIES = frozenset({"device", "devices", "completeness", "history", "failures", "events"})


class Counted:
    """A store that counts the queries made of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.queries = 0

    def __getattr__(self, name: str) -> Any:
        self.queries += name in QUERIES
        return getattr(self.store, name)


class Clock:
    now_ms = NOW_MS


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(tmp_path: Path, clock: Clock) -> Iterator[Live]:
    with live_receiver(tmp_path, wrap=Counted, now_ms=lambda: clock.now_ms) as live:
        report(live, errors=1)
        yield live


def queries(live: Live) -> int:
    assert isinstance(live.store, Counted)
    return live.store.queries


def report(live: Live, *, device: str = "device", errors: int = 0, at: str = "2026-11-23T09:00:00Z") -> None:
    device_id = OTHER if device == "other device" else DEVICE
    body = {"device_id": device_id, "timestamp": at, "total_files_synced": 1, "total_errors": errors}
    assert live.client(device).post("/api/sync-event", json={**body, "internet_speed": 1}).status_code == 201


def deliver(live: Live) -> None:
    events = [{"seq": 1, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00Z", "learner_id": "s-1"}]
    body = {"device_id": DEVICE, "stream": "one", "sent": {"at": "2026-11-23T10:00:00Z"}, "events": events}
    assert live.client("device").post("/api/events", json=body).status_code == 200


def ask(live: Live, path: str, etag: str | None = None, **headers: str) -> httpx.Response:
    return live.client("viewer", **headers, **({} if etag is None else {"If-None-Match": etag})).get(path)


@pytest.mark.parametrize("path", QUESTIONS)
def test_an_answer_that_still_holds_costs_no_query(live: Live, path: str) -> None:
    first = ask(live, path)
    before = queries(live)

    again = ask(live, path, first.headers["ETag"])

    assert (first.status_code, again.status_code) == (200, 304)
    assert queries(live) == before
    assert again.content == b""
    assert again.headers["ETag"] == first.headers["ETag"]
    assert "Content-Type" not in again.headers
    assert "no-cache" in first.headers["Cache-Control"]


@pytest.mark.parametrize("path", QUESTIONS)
def test_after_a_commit_the_answer_is_looked_up_again(live: Live, path: str) -> None:
    first = ask(live, path)
    report(live, errors=1, at="2026-11-23T09:30:00Z")
    deliver(live)

    again = ask(live, path, first.headers["ETag"])

    assert again.status_code == 200
    assert again.json() != first.json()


def test_an_answer_that_a_commit_left_as_it_was_is_304_after_a_query(live: Live) -> None:
    path = "/api/events"
    first = ask(live, path)
    report(live)
    before = queries(live)

    assert ask(live, path, first.headers["ETag"]).status_code == 304
    assert queries(live) > before


def test_reports_of_well_devices_leave_the_failing_ones_known(live: Live) -> None:
    path = "/api/sync-event/devices/repeated-failures?min_failures=1"
    etag = ask(live, path).headers["ETag"]
    report(live, device="other device")
    before = queries(live)
    assert ask(live, path, etag).status_code == 304
    assert queries(live) == before

    report(live, at="2026-11-23T09:45:00Z")  # the one that failed is well again

    assert ask(live, path, etag).json() == []


def test_how_long_ago_is_asked_again_though_nothing_was_stored(live: Live, clock: Clock) -> None:
    paths = ("/api/devices?silent_for=1h", f"/api/sync-event/device/{DEVICE}/sync-history?since=2h")
    first = {path: ask(live, path) for path in paths}
    assert [len(answer.json()) for answer in first.values()] == [1, 1]

    clock.now_ms += 2 * 3_600_000

    for path, answer in first.items():
        later = ask(live, path, answer.headers["ETag"])
        assert later.status_code == 200
        assert later.json() != answer.json()


@pytest.mark.parametrize(
    ("given", "status"),
    [("{etag}", 304), ("W/{etag}", 304), ('"other", {etag}', 304), ("*", 304), ('"other"', 200), ("", 200), (",", 200)],
)
def test_what_a_caller_may_say_it_has(live: Live, given: str, status: int) -> None:
    etag = ask(live, "/api/devices").headers["ETag"]
    assert ask(live, "/api/devices", given.format(etag=etag)).status_code == status


def test_the_query_and_the_form_are_part_of_the_question(live: Live) -> None:
    deliver(live)
    page = ask(live, "/api/events?limit=1")
    assert ask(live, "/api/events?type=note.taken", page.headers["ETag"]).status_code == 200
    export = ask(live, "/api/events?limit=1", page.headers["ETag"], Accept="application/x-ndjson")
    assert export.status_code == 200
    assert export.headers["Content-Type"] == "application/x-ndjson"
    assert "ETag" not in export.headers


def test_a_page_keeps_its_link(live: Live) -> None:
    first = ask(live, "/api/devices?limit=1")
    again = ask(live, "/api/devices?limit=1", first.headers["ETag"])
    assert again.headers["Link"] == first.headers["Link"]


@pytest.mark.parametrize("kind", [None, "wrong", "revoked", "device"])
def test_an_etag_opens_nothing(live: Live, kind: str | None) -> None:
    etag = ask(live, "/api/devices").headers["ETag"]
    headers: Mapping[str, str] = {"If-None-Match": etag}
    assert live.client(kind, **headers).get("/api/devices").status_code in (401, 403)


def test_a_head_tells_the_etag_of_its_get(live: Live) -> None:
    path = "/api/devices"
    head = live.client("viewer").head(path)
    assert (head.status_code, head.headers["ETag"]) == (200, ask(live, path).headers["ETag"])
    assert live.client("viewer", **{"If-None-Match": head.headers["ETag"]}).head(path).status_code == 304


def test_pages_of_the_program_itself_have_one(live: Live) -> None:
    for path in ("/openapi.json", "/docs"):
        etag = live.client(None).get(path).headers["ETag"]
        assert live.client(None, **{"If-None-Match": etag}).get(path).status_code == 304
    assert "ETag" not in live.client(None).get("/healthz").headers


def test_what_is_missing_is_looked_for_again(live: Live) -> None:
    path = "/api/devices/pibook-new/completeness"
    assert [ask(live, path, "*").status_code for _ in range(2)] == [404, 404]
