"""Every route has one spelling and takes no query parameter that it does not know."""

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from pisync_receiver.api import table
from pisync_receiver.app import AppSettings
from pisync_receiver.http.routing import Route
from tests.support.live_receiver import Live, live_receiver

HARD = "box:lab@hill+1"
ROUTES = table()
IDS = [f"{route.method} {route.path}" for route in ROUTES]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A receiver that lets anyone in, so that a path is refused for its spelling alone."""
    with live_receiver(tmp_path_factory.mktemp("paths"), settings=AppSettings(auth=False, cache_ttl_s=0)) as running:
        for device_id in (HARD, "pibook-0042"):
            batch = {"device_id": device_id, "stream": "s1", "events": []}
            assert running.client(None).post("/api/events", json=batch).status_code == 200
        yield running


def ask(live: Live, method: str, target: str) -> int:
    """Send a target byte for byte, which no HTTP client does; return the status."""
    host, port = urlsplit(live.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        if method != "GET":
            head += "Content-Type: application/json\r\nContent-Length: 2\r\n"
        connection.sendall(head.encode("latin-1") + b"\r\n" + (b"{}" if method != "GET" else b""))
        return int(connection.recv(65536).split(b" ")[1])


def spellings(path: str) -> list[str]:
    """Return the ways of writing a path that some gateways take for the same."""
    letter = f"%{ord(path[1]):02x}"
    return [
        f"/{letter}{path[2:]}",
        f"/{letter.upper()}{path[2:]}",
        f"/%25{letter[1:]}{path[2:]}",
        f"/{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"/%2e{path}",
        f"/x/%2e%2e{path}",
        f"/%2f{path[1:]}",
        f"{path}/",
        f"{path}//",
        f"{path}/.",
        f"{path}%2f",
        f"{path}%00",
        f"{path}%20",
        f"{path}%0a",
        f"{path};x=1",
        f"/;x=1{path}",
        f"{path}%3f",
        f"{path}%23",
        f"{path}%",
        f"{path}%zz",
        f"{path}%c0%af",
        f"/{path[1].upper()}{path[2:]}",
        f"/\\{path[1:]}",
    ]


def test_every_route_has_one_spelling(live: Live) -> None:
    accepted = []
    for route in ROUTES:
        path = route.path.replace("{device_id}", "pibook-0042").replace("{code_id}", "1").replace("{token_id}", "1")
        assert ask(live, route.method, path) not in (404, 405) or "{" in route.path, route.path
        accepted += [
            (route.method, target) for target in spellings(path) if ask(live, route.method, target) not in (400, 404)
        ]
    assert accepted == []


@pytest.mark.parametrize(
    "written",
    [HARD, "box%3Alab%40hill%2B1", "box%3alab%40hill%2b1", "%62ox:lab@hill+1", "".join(f"%{ord(c):02X}" for c in HARD)],
)
def test_a_parameter_may_be_percent_encoded(live: Live, written: str) -> None:
    for path in (f"/api/devices/{written}", f"/api/devices/{written}/completeness"):
        assert ask(live, "GET", path) == 200
    assert ask(live, "GET", f"/api/sync-event/device/{written}/sync-history") == 200


@pytest.mark.parametrize(
    "written",
    [".", "..", "%2e", "%2E%2e", "@everyone%00", "-", "--", "x%2fy", "x%5cy", "%ff", "%c0%ae", "%", "%4", "é"],
)
def test_what_is_no_id_names_no_device(live: Live, written: str) -> None:
    for path in (f"/api/devices/{written}", f"/api/sync-event/device/{written}/sync-history"):
        assert ask(live, "GET", path) in (400, 404)


@pytest.mark.parametrize("route", ROUTES, ids=IDS)
def test_an_unknown_query_parameter_is_refused_on_every_route(live: Live, route: Route) -> None:
    path = re.sub(r"\{\w+\}", "1", route.path.replace("{device_id}", "pibook-0042"))
    answer = live.client(None).request(route.method, f"{path}?xyzzy=1", json={} if route.method != "GET" else None)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:pisync:problem:unknown_parameter")
    names = [param.name for param in route.query.params]
    assert (f"known: {', '.join(names)}" if names else "takes none") in answer.json()["detail"]
    for name in names:
        for typed in (name[:-1] if len(name) > 3 else f"{name}x", name.upper()):
            answer = live.client(None).get(f"{path}?{typed}=1")
            assert answer.status_code == 400
            assert "did you mean" in answer.json()["detail"]
        needed = "".join(f"&{each.name}=1" for each in route.query.params if each.required and each.name != name)
        twice = live.client(None).get(f"{path}?{name}=1&{name}=1{needed}")
        assert (twice.status_code, "once" in twice.json()["detail"]) == (400, True)
