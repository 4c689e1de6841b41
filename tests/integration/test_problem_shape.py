"""Everything that goes wrong has one shape, and names what to do."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_receiver.app import AppSettings
from pisync_receiver.http.auth import Access
from pisync_receiver.http.request import BodyLimits, Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import Route
from pisync_receiver.intake import IntakeLimits
from tests.support.live_receiver import DEVICE, Live, live_receiver

REPORT = {
    "device_id": DEVICE,
    "timestamp": "2026-11-23T08:00:00Z",
    "total_files_synced": 1,
    "total_errors": 0,
    "internet_speed": 1,
}
BATCH = {"device_id": DEVICE, "stream": "s1", "events": []}
JSON = {"Content-Type": "application/json"}


async def failing(request: Request) -> Answer:
    raise ValueError("learner s-17")


BROKEN = Route(method="GET", path="/broken", access=Access.PUBLIC, handler=failing, summary="Fails.", responses={})


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("problems"), extra_routes=(BROKEN,)) as running:
        yield running


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    assert body["type"] == f"urn:pisync:problem:{code}"
    assert body["status"] == status
    assert len(body["detail"]) > 10
    return body


GETS = [
    ("/nowhere", "admin", 404, "not_found"),
    ("/nothing", "admin", 404, "not_found"),
    ("/api/events/", "admin", 404, "not_found"),
    ("/api/devices/a%2Fb", "admin", 404, "unknown_device"),
    ("/api/devices/a%00b/completeness", "admin", 404, "unknown_device"),
    ("/api/sync-event/device/%F0%9F%8E%92/sync-history", "admin", 404, "unknown_device"),
    ("/api/devices/unknown", "admin", 404, "unknown_device"),
    ("/api/devices/unknown/completeness", "admin", 404, "unknown_device"),
    ("/api/devices/%00", "admin", 404, "unknown_device"),
    ("/api/devices", None, 401, "unauthorized"),
    ("/api/devices", "wrong", 401, "unauthorized"),
    ("/api/devices", "revoked", 401, "token_revoked"),
    ("/api/devices", "device", 403, "forbidden"),
    ("/api/sync-event", "admin", 405, "method_not_allowed"),
    ("/api/enroll", None, 405, "method_not_allowed"),
    ("/api/devices?sillent_for=3d", "admin", 400, "unknown_parameter"),
    ("/api/devices?limit=0", "admin", 400, "invalid_parameter"),
    ("/api/devices?silent_for=long", "admin", 400, "invalid_parameter"),
    ("/api/devices?cursor=rubbish!", "admin", 400, "invalid_parameter"),
    ("/api/events?cursor=rubbish!", "admin", 400, "invalid_parameter"),
    (f"/api/sync-event/device/{DEVICE}/sync-history?cursor=rubbish!", "admin", 400, "invalid_parameter"),
    ("/api/sync-event/devices/repeated-failures?cursor=rubbish!", "admin", 400, "invalid_parameter"),
    ("/api/sync-event/devices/repeated-failures?mode=sometimes", "admin", 400, "invalid_parameter"),
    ("/broken", None, 500, "internal_error"),
]


@pytest.mark.parametrize(("path", "kind", "status", "code"), GETS)
def test_a_get_that_goes_wrong(live: Live, path: str, kind: str | None, status: int, code: str) -> None:
    check_problem(live.client(kind).get(path), status, code)


POSTS = [
    ("/api/sync-event", b"{}", JSON, 400, "invalid_sync_event"),
    ("/api/sync-event", b"", JSON, 400, "invalid_sync_event"),
    ("/api/sync-event", b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ("/api/sync-event", b"{}", {}, 415, "unsupported_media_type"),
    ("/api/sync-event", b"{}", JSON | {"Content-Encoding": "br"}, 415, "unsupported_encoding"),
    ("/api/sync-event", json.dumps(REPORT | {"device_id": "x"}).encode(), JSON, 403, "forbidden"),
    ("/api/sync-event", json.dumps(REPORT).encode(), JSON | {"Idempotency-Key": "a b"}, 400, "invalid_parameter"),
    ("/api/events", b"[]", JSON, 400, "invalid_batch"),
    ("/api/events", json.dumps(BATCH | {"device_id": "x"}).encode(), JSON, 403, "forbidden"),
    ("/api/events", b"x" * (1 << 20) + b"x", JSON, 413, "body_too_large"),
    (
        "/api/events",
        gzip.compress(b"x" * (9 << 20), mtime=0),
        JSON | {"Content-Encoding": "gzip"},
        413,
        "body_too_large",
    ),
    ("/api/events", gzip.compress(b"{}", mtime=0)[:-4], JSON | {"Content-Encoding": "gzip"}, 400, "bad_encoding"),
    ("/api/events", b"rubbish", JSON | {"Content-Encoding": "gzip"}, 400, "bad_encoding"),
    (
        "/api/events",
        json.dumps(BATCH | {"events": [{"seq": n + 1} for n in range(1001)]}).encode(),
        JSON,
        413,
        "batch_too_large",
    ),
    ("/api/enroll", b'{"code":"never made"}', JSON, 403, "enrollment_code"),
    ("/api/enroll", b'{"code":""}', JSON, 400, "invalid_enrollment"),
    ("/healthz", b"{}", JSON, 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("path", "body", "headers", "status", "code"), POSTS)
def test_a_post_that_goes_wrong(
    live: Live, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    check_problem(live.client("device").post(path, content=body, headers=headers), status, code)


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/api/events"), ("PUT", "/healthz"), ("TRACE", "/docs")])
def test_405_says_what_is_allowed(live: Live, method: str, path: str) -> None:
    answer = live.client("admin").request(method, path)
    check_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == ("GET, HEAD, POST" if path == "/api/events" else "GET, HEAD")


def test_an_unexpected_error_tells_the_caller_nothing_of_its_inside(live: Live) -> None:
    assert "s-17" not in live.client(None).get("/broken").text


def test_a_gateways_request_id_is_kept_if_it_is_well_formed(live: Live) -> None:
    client = live.client(None)
    assert (
        check_problem(client.get("/x", headers={"X-Request-ID": "mine:1"}), 404, "not_found")["request_id"] == "mine:1"
    )
    for bad in ("a b", "x" * 65, '"', ""):
        answer = client.get("/x", headers={"X-Request-ID": bad})
        assert check_problem(answer, 404, "not_found")["request_id"].startswith("made-")


@pytest.mark.parametrize("path", ["/healthz", "/x", "/broken", "/api/devices", "/docs"])
def test_a_nonce_comes_back_on_every_answer(live: Live, path: str) -> None:
    client = live.client(None)
    assert client.get(path, headers={"PiSync-Nonce": "a.B_9-x"}).headers["PiSync-Nonce"] == "a.B_9-x"
    for bad in ("a b", "x" * 65, "a:b", ""):
        assert "PiSync-Nonce" not in client.get(path, headers={"PiSync-Nonce": bad}).headers


def test_a_body_that_never_ends_is_408(tmp_path: Path) -> None:
    def dribble() -> Iterator[bytes]:
        yield b"{"
        live_done.wait(30)

    import threading

    live_done = threading.Event()
    settings = AppSettings(body=BodyLimits(seconds=0.01))
    with live_receiver(tmp_path, settings=settings) as live:
        import socket

        host, _, port = live.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as peer:
            head = (
                "POST /api/sync-event HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
                f"Authorization: Bearer {live.secrets['device']}\r\n\r\n{{"
            )
            peer.sendall(head.encode())
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:pisync:problem:body_too_slow" in answer


def test_a_full_intake_is_503_with_a_retry_after(tmp_path: Path) -> None:
    with live_receiver(tmp_path, settings=AppSettings(intake=IntakeLimits(waiting=0))) as live:
        for path, body in (("/api/sync-event", REPORT), ("/api/events", BATCH)):
            answer = live.client("device").post(path, json=body)
            check_problem(answer, 503, "overloaded")
            assert int(answer.headers["Retry-After"]) >= 1
