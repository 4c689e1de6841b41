"""Every route of the table with every kind of caller. A route without a row here fails the test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pisync_receiver.api import table
from pisync_receiver.app import AppSettings
from pisync_receiver.auth import token_hash
from pisync_receiver.store import EnrollmentCreate
from tests.support.live_receiver import DEVICE, NOW_MS, Live, live_receiver

CALLERS: Final = ("none", "wrong", "revoked", "device", "other device", "viewer", "admin")

ANYONE: Final = (200, 200, 200, 200, 200, 200, 200)
READER: Final = (401, 401, 401, 403, 403, 200, 200)
OWNER: Final = (401, 401, 401, 200, 403, 200, 200)

EXPECTED: Final[dict[tuple[str, str], tuple[int, ...]]] = {
    ("POST", "/api/sync-event"): (401, 401, 401, 201, 403, 403, 403),
    ("GET", "/api/sync-event/device/{device_id}/sync-history"): OWNER,
    ("GET", "/api/sync-event/devices/repeated-failures"): READER,
    ("POST", "/api/events"): (401, 401, 401, 200, 403, 403, 403),
    ("GET", "/api/events"): READER,
    ("POST", "/api/enroll"): (201,) * 7,
    ("GET", "/api/devices"): READER,
    ("GET", "/api/devices/{device_id}"): READER,
    ("GET", "/api/devices/{device_id}/completeness"): READER,
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): READER,
    ("GET", "/openapi.json"): ANYONE,
    ("GET", "/docs"): ANYONE,
}

CODE: Final = "K7MQ-2XPD-9RTA-WW4Z"
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/api/sync-event": {
        "device_id": DEVICE,
        "timestamp": "2026-11-23T08:00:00Z",
        "total_files_synced": 1,
        "total_errors": 0,
        "internet_speed": 1,
    },
    "/api/events": {"device_id": DEVICE, "stream": "s1", "events": []},
    "/api/enroll": {"code": CODE},
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("access")) as running:
        code = token_hash(CODE.replace("-", ""))
        running.store.write(
            [EnrollmentCreate(code_hash=code, created_ms=NOW_MS, expires_ms=NOW_MS + 60_000, uses=1000)]
        )
        yield running


def call(live: Live, method: str, path: str, caller: str) -> httpx.Response:
    client = live.client(None if caller == "none" else caller)
    return client.request(method, path.format(device_id=DEVICE), json=BODIES.get(path) if method == "POST" else None)


def test_the_matrix_has_a_row_for_every_route_and_no_other() -> None:
    assert {(route.method, route.path) for route in table()} == set(EXPECTED)


@pytest.mark.parametrize(("method", "path"), sorted(EXPECTED))
def test_who_may_call(live: Live, method: str, path: str) -> None:
    found = {caller: call(live, method, path, caller).status_code for caller in CALLERS}
    assert found == dict(zip(CALLERS, EXPECTED[method, path], strict=True))


@pytest.mark.parametrize(("method", "path"), sorted(row for row in EXPECTED if EXPECTED[row][0] == 401))
def test_head_asks_for_a_token_too(live: Live, method: str, path: str) -> None:
    if method == "GET":
        assert call(live, "HEAD", path, "none").status_code == 401


@pytest.mark.parametrize("scheme", ["Basic {}", "{}", "Bearer", "bearer\t{}"])
def test_only_a_bearer_token_is_a_token(live: Live, scheme: str) -> None:
    client = live.client(None, Authorization=scheme.format(live.secrets["admin"]))
    answer = client.get("/api/devices")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_admin_cannot_read_a_device_that_does_not_exist_and_a_device_learns_nothing_of_others(live: Live) -> None:
    assert live.client("admin").get("/api/devices/nobody").status_code == 404
    assert live.client("device").get("/api/devices/nobody").status_code == 403
    assert live.client("device").get("/api/sync-event/device/nobody/sync-history").status_code == 403


def test_without_auth_everybody_may_do_everything(tmp_path: Path) -> None:
    with live_receiver(tmp_path, settings=AppSettings(auth=False)) as live:
        for method, path in EXPECTED:
            if path != "/api/enroll":
                assert call(live, method, path, "none").status_code in (200, 201), path


def test_a_token_made_or_ended_while_serving_counts_at_once(live: Live) -> None:
    from dataclasses import replace

    row = live.tokens.find(live.secrets["viewer"])
    assert row is not None
    client = live.client("viewer")
    assert client.get("/api/devices").status_code == 200
    live.tokens.put(replace(row, revoked_ms=NOW_MS))
    assert client.get("/api/devices").status_code == 401
    live.tokens.put(replace(row, revoked_ms=NOW_MS + 1))
    assert client.get("/api/devices").status_code == 200
    live.tokens.put(row)
