"""Every route of the table with every kind of caller. A route without a row here fails the test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pisync_common.times import format_ms
from pisync_receiver.api import table
from pisync_receiver.app import AppSettings
from pisync_receiver.domain.rows import EnrollmentCode
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, SyncEvent
from pisync_receiver.http.auth import Access, token_hash
from pisync_receiver.http.routing import Route
from tests.support.live_receiver import DEVICE, NOW_MS, OTHER, SITE, Live, live_receiver

CALLERS: Final = (
    "none", "wrong", "revoked", "device", "other device", "metrics", "site viewer", "viewer", "site admin", "admin",
)  # fmt: skip


def expected(status: int, *allowed: str) -> tuple[int, ...]:
    """401 for callers without a usable token, 403 for the rest, `status` for those that are allowed."""
    return tuple(401 if who in CALLERS[:3] else status if who in allowed else 403 for who in CALLERS)


READERS: Final = ("site viewer", "viewer", "site admin", "admin")
ANYONE: Final = (200,) * len(CALLERS)
READER: Final = expected(200, *READERS)
OWNER: Final = expected(200, "device", *READERS)
ADMIN: Final = ("site admin", "admin")

EXPECTED: Final[dict[tuple[str, str], tuple[int, ...]]] = {
    ("POST", "/api/sync-event"): expected(201, "device"),
    ("GET", "/api/sync-event/device/{device_id}/sync-history"): OWNER,
    ("GET", "/api/sync-event/devices/repeated-failures"): READER,
    ("POST", "/api/events"): expected(200, "device"),
    ("GET", "/api/events"): READER,
    ("POST", "/api/enroll"): (201,) * len(CALLERS),
    ("POST", "/api/enrollment-codes"): expected(201, *ADMIN),
    ("GET", "/api/enrollment-codes"): expected(200, *ADMIN),
    ("POST", "/api/enrollment-codes/{code_id}/end"): expected(200, *ADMIN),
    ("GET", "/api/devices"): READER,
    ("GET", "/api/devices/{device_id}"): READER,
    ("PATCH", "/api/devices/{device_id}"): expected(200, *ADMIN),
    ("GET", "/api/devices/{device_id}/completeness"): READER,
    ("GET", "/api/learners/events"): READER,
    ("POST", "/api/learners/erase"): expected(200, *ADMIN),
    ("POST", "/api/devices/{device_id}/sync"): expected(200, *ADMIN),
    ("POST", "/api/devices/{device_id}/revoke"): expected(200, *ADMIN),
    ("GET", "/api/devices/{device_id}/rejected"): READER,
    ("GET", "/api/devices/{device_id}/conflicts"): READER,
    ("GET", "/api/devices/{device_id}/sites"): READER,
    ("GET", "/api/devices/{device_id}/notes"): READER,
    ("POST", "/api/devices/{device_id}/notes"): expected(201, *ADMIN),
    ("GET", "/api/sites/{site}/notes"): READER,
    ("POST", "/api/sites/{site}/notes"): expected(201, *ADMIN),
    ("GET", "/api/suspicious"): READER,
    ("GET", "/api/overview"): READER,
    ("GET", "/api/sites"): READER,
    ("GET", "/api/sites/{site}"): READER,
    ("PATCH", "/api/sites/{site}"): expected(200, *ADMIN),
    ("GET", "/api/incomplete"): READER,
    ("GET", "/api/causes"): READER,
    ("GET", "/api/speeds"): READER,
    ("GET", "/api/runs"): READER,
    ("GET", "/api/activity"): READER,
    ("GET", "/api/transitions"): READER,
    ("GET", "/api/notices"): expected(200, "admin"),
    ("POST", "/api/tokens"): expected(201, "admin"),
    ("GET", "/api/tokens"): expected(200, "admin"),
    ("POST", "/api/tokens/{token_id}/revoke"): expected(200, "admin"),
    ("POST", "/api/tokens/{token_id}/rotate"): expected(201, "admin"),
    ("GET", "/api/audit"): expected(200, "admin"),
    ("POST", "/api/retention"): expected(200, "admin"),
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): expected(200, "metrics", "viewer", "admin"),
    ("GET", "/openapi.json"): ANYONE,
    ("GET", "/docs"): ANYONE,
}

SPARE: Final = "pibook-spare"
"""A device whose tokens may be revoked."""
ELSEWHERE: Final = "Kisumu"
ROWS: Final = [row for row in table() if row.access in (Access.READER, Access.OWNER, Access.ADMIN)]

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
    "/api/enrollment-codes": {"site": SITE},
    "/api/devices/{device_id}": {"label": "shelf"},
    "/api/learners/erase": {"learner_id": "s-99", "learner_home": SITE},
    "/api/devices/{device_id}/notes": {"text": "seen"},
    "/api/sites/{site}/notes": {"text": "seen"},
    "/api/sites/{site}": {"silent_after": "30d"},
    "/api/tokens": {"scope": "viewer"},
    "/api/retention": {"older_than_s": 86_400},
}

QUERIES: Final[dict[str, str]] = {"/api/learners/events": "/api/learners/events?learner_id=s-99"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("access")) as running:
        prepare(running)
        yield running


def prepare(live: Live) -> None:
    """Make a code, and devices of two sites."""
    code = token_hash(CODE.replace("-", ""))
    (made,) = live.write(CodeCreate(code_hash=code, at_ms=NOW_MS, expires_ms=NOW_MS + 60_000, uses=1000, site=SITE))
    assert isinstance(made, EnrollmentCode)
    assert made.id == 1
    for kind, device_id, site in (("device", DEVICE, SITE), ("other device", OTHER, ELSEWHERE)):
        batch = {"device_id": device_id, "stream": "s0", "events": [event(1)]}
        assert live.client(kind).post("/api/events", json=batch).status_code == 200
        live.write(DeviceChange(device_id=device_id, at_ms=NOW_MS, site=site, site_since_ms=0))

    prepare_spare(live)


def prepare_spare(live: Live) -> None:
    live.write(sync_event(SPARE, NOW_MS))
    live.write(DeviceChange(device_id=SPARE, at_ms=NOW_MS, site=SITE))


def sync_event(device_id: str, at_ms: int) -> SyncEvent:
    values: dict[str, Any] = {"total_files_synced": 1, "total_errors": 0, "internet_speed": 1, "errors": {}}
    return SyncEvent(device_id=device_id, timestamp=format_ms(at_ms), claimed_ms=at_ms, received_ms=NOW_MS, **values)


def event(seq: int) -> dict[str, Any]:
    return {"seq": seq, "type": "a.b", "occurred_at": "2026-11-23T08:00:00Z"}


def call(live: Live, method: str, path: str, caller: str) -> httpx.Response:
    client = live.client(None if caller == "none" else caller)
    # The token with the highest id is no test's own, the code is the first; to end a code again is harmless.
    device_id = SPARE if path.endswith("{device_id}/revoke") else DEVICE
    where = QUERIES.get(path, path).format(
        device_id=device_id, token_id=last_token(live) if "{token_id}" in path else 0, code_id=2, site=SITE
    )
    return client.request(method, where, json=BODIES.get(path, {}) if method in ("POST", "PATCH") else None)


def last_token(live: Live) -> int:
    made = live.client("admin").post("/api/tokens", json={"scope": "metrics"}).json()
    token_id: int = made["record"]["id"]
    return token_id


def test_the_matrix_has_a_row_for_every_route_and_no_other() -> None:
    assert {(route.method, route.path) for route in table()} == set(EXPECTED)


@pytest.mark.parametrize(("method", "path"), sorted(EXPECTED))
def test_a_route_admits_its_callers_alone(live: Live, method: str, path: str) -> None:
    live.client("admin").post("/api/enrollment-codes", json={"site": SITE})
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


def test_an_unknown_device_is_404_to_an_admin_and_403_to_a_device(live: Live) -> None:
    assert live.client("admin").get("/api/devices/unknown").status_code == 404
    assert live.client("device").get("/api/devices/unknown").status_code == 403
    assert live.client("device").get("/api/sync-event/device/unknown/sync-history").status_code == 403


def test_without_auth_every_call_is_allowed(tmp_path: Path) -> None:
    with live_receiver(tmp_path, settings=AppSettings(auth=False, cache_ttl_s=0)) as live:
        prepare_spare(live)
        live.write(DeviceChange(device_id=DEVICE, at_ms=NOW_MS, site=SITE))
        for method, path in EXPECTED:
            if path not in ("/api/enroll", "/api/enrollment-codes/{code_id}/end"):
                assert call(live, method, path, "none").status_code in (200, 201), path


class TestSites:
    """A token that is limited to sites sees those alone."""

    @pytest.mark.parametrize("kind", ["site viewer", "site admin"])
    def test_lists_are_filtered(self, live: Live, kind: str) -> None:
        client = live.client(kind)
        for path in ("/api/devices", "/api/events", "/api/sync-event/devices/repeated-failures?mode=total"):
            assert {row["site"] for row in client.get(path).json()} <= {SITE}
        assert client.get("/api/devices").json()
        exported = client.get("/api/events", headers={"Accept": "application/x-ndjson"}).text
        assert OTHER not in exported
        assert client.get("/api/devices?site=Kisumu").json() == []

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
    def test_no_answer_is_about_another_site(self, live: Live, row: Route) -> None:
        """Whatever names a device or a site elsewhere is 404; whatever lists them leaves them out."""
        for kind in ("site viewer", "site admin"):
            if row.access is Access.ADMIN and kind == "site viewer":
                continue
            client = live.client(kind)
            if "{device_id}" in row.path or "{site}" in row.path:
                body = BODIES.get(row.path, {}) if row.method != "GET" else None
                where = row.path.format(device_id=OTHER, site=ELSEWHERE, code_id=1)
                assert client.request(row.method, where, json=body).status_code == 404
            elif row.method == "GET":
                for query in ("", f"?site={ELSEWHERE}", f"?device_id={OTHER}"):
                    answer = client.get(row.path + query)
                    if answer.status_code == 400 and query:
                        continue  # it has no such filter, or needs others
                    assert answer.status_code in (200, 400, 404)
                    assert ELSEWHERE not in answer.text
                    assert OTHER not in answer.text

    def test_the_history_of_a_device_elsewhere_is_404(self, live: Live) -> None:
        path = f"/api/sync-event/device/{OTHER}/sync-history"
        assert live.client("site viewer").get(path).status_code == 404
        assert live.client("other device").get(path).status_code == 200

    def test_the_history_of_a_moved_device_begins_at_the_new_site(self, live: Live) -> None:
        live.write(sync_event("moved", NOW_MS - 5000))
        live.write(DeviceChange(device_id="moved", site="Kisumu", at_ms=NOW_MS))
        live.write(sync_event("moved", NOW_MS - 4000))
        live.write(DeviceChange(device_id="moved", site=SITE, site_since_ms=NOW_MS - 3000, at_ms=NOW_MS))
        live.write(sync_event("moved", NOW_MS - 2000))
        path = "/api/sync-event/device/moved/sync-history"
        assert [row.get("site") for row in live.client("admin").get(path).json()] == [SITE, "Kisumu", None]
        for kind in ("site viewer", "site admin"):
            assert [row.get("site") for row in live.client(kind).get(path).json()] == [SITE]

    def test_an_admin_of_sites_acts_on_them_alone(self, live: Live) -> None:
        client = live.client("site admin")
        assert client.patch(f"/api/devices/{OTHER}", json={"label": "x"}).status_code == 404
        assert client.patch(f"/api/devices/{DEVICE}", json={"site": "Kisumu"}).status_code == 403
        assert client.post("/api/enrollment-codes", json={}).status_code == 403
        assert client.post("/api/enrollment-codes", json={"site": "Kisumu"}).status_code == 403
        foreign = live.client("admin").post("/api/enrollment-codes", json={"site": "Kisumu"}).json()["record"]["id"]
        assert client.post(f"/api/enrollment-codes/{foreign}/end").status_code == 404
        assert foreign not in [code["id"] for code in client.get("/api/enrollment-codes").json()]
