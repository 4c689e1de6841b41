"""Every page with every kind of visitor. Pages come from the window's own table, so that none is forgotten."""

import re
import secrets
from collections.abc import Iterator
from typing import Any, Final, cast

import httpx
import pytest

from pisync_receiver import window
from pisync_receiver.domain.submissions import SessionClose, SessionOpen, SyncEvent
from pisync_receiver.http.auth import Access, token_hash
from pisync_receiver.http.routing import Route
from pisync_receiver.http.sessions import COOKIE
from tests.integration.test_route_access import prepare
from tests.support.live_receiver import DEVICE, NOW_MS, OTHER, SITE, Live, live_receiver

PAGES: Final = sorted(window.table(cast(Any, None)), key=lambda row: (row.path, row.method))
OPEN: Final = [row for row in PAGES if row.access is Access.PUBLIC]
CLOSED: Final = [row for row in PAGES if row.access is not Access.PUBLIC]
KINDS: Final = ("viewer", "site viewer", "admin", "site admin")
ALLOWED: Final = {
    Access.READER: KINDS,
    Access.ADMIN: ("admin", "site admin"),
    Access.CHIEF: ("admin",),
}
ELSEWHERE: Final = "Kisumu"
"""The other device's site."""


def named(row: Route) -> str:
    return f"{row.method} {row.path}"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("pages")) as running:
        prepare(running)
        for device in (DEVICE, OTHER):
            running.write(failure(device))
        yield running


def failure(device_id: str) -> SyncEvent:
    return SyncEvent(
        device_id=device_id,
        timestamp="2026-11-23T09:00:00Z",
        claimed_ms=NOW_MS - 3_600_000,
        total_files_synced=0,
        total_errors=3,
        internet_speed=0,
        errors={"dns": 3},
        received_ms=NOW_MS,
    )


class Visitor:
    """A browser with the session of a token."""

    def __init__(self, live: Live, kind: str) -> None:
        secret = "pss_" + secrets.token_urlsafe(32)
        parent = token_hash(live.secrets[kind])
        (self.session,) = live.write(
            SessionOpen(token_hash=token_hash(secret), at_ms=NOW_MS, parent_hash=parent),
        )
        self.client = live.client(None, Host="localhost", Cookie=f"{COOKIE}={secret}")
        found = live.run(live.receiver.services.sessions.find({b"cookie": f"{COOKIE}={secret}".encode()}, secure=False))
        self.csrf = live.receiver.services.sessions.csrf(found)

    def visit(self, row: Route, *, csrf: str | None = None, **names: str) -> httpx.Response:
        data = None if row.method == "GET" else {"x": ""} if csrf is None else {"csrf": csrf}
        return self.client.request(row.method, path_of(row, **names), data=data)


def path_of(row: Route, *, device: str = DEVICE, site: str = SITE, code: str = "1") -> str:
    names = {"device_id": device, "site": site, "code_id": code, "act": "move", "file": "app.css", "list": "devices"}
    return row.path.format_map(names)


def code_elsewhere(live: Live) -> str:
    """Make an enrollment code for the other site, and return its id."""
    made = live.client("admin").post("/api/enrollment-codes", json={"site": ELSEWHERE}).json()
    return str(made["record"]["id"])


def sends_to_sign_in(answer: httpx.Response) -> bool:
    return answer.status_code == 303 and answer.headers["Location"].startswith("/sign-in")


def is_refused(row: Route, answer: httpx.Response) -> bool:
    """Whether a visitor without a session was sent away."""
    return sends_to_sign_in(answer) if row.method == "GET" else answer.status_code == 403


@pytest.mark.parametrize("row", CLOSED, ids=named)
def test_no_page_opens_without_a_session_that_is_open(live: Live, row: Route) -> None:
    ended = Visitor(live, "admin")
    live.write(SessionClose(session_id=cast(Any, ended.session).id, at_ms=NOW_MS))
    live.receiver.services.tokens.clear()
    bearer = live.client("admin", Host="localhost")
    token = live.client(None, Host="localhost", Cookie=f"{COOKIE}={live.secrets['admin']}")
    for client in (ended.client, bearer, token, live.client(None)):
        assert is_refused(row, client.request(row.method, path_of(row)))
        form = {"csrf": ended.csrf} if row.method != "GET" else None
        assert is_refused(row, client.request(row.method, path_of(row), data=form))


@pytest.mark.parametrize("row", CLOSED, ids=named)
def test_a_page_opens_for_its_scopes_alone(live: Live, row: Route) -> None:
    for kind in KINDS:
        visitor = Visitor(live, kind)
        answer = visitor.visit(row, csrf=visitor.csrf)
        if kind in ALLOWED[row.access]:
            assert answer.status_code in (200, 303, 400, 404), answer.text
            assert not sends_to_sign_in(answer) or row.path == "/sign-out"
        else:
            assert answer.status_code == 403


@pytest.mark.parametrize("row", [row for row in CLOSED if row.method != "GET"], ids=named)
def test_no_form_is_taken_without_the_value_of_its_session(live: Live, row: Route) -> None:
    visitor, other = Visitor(live, "admin"), Visitor(live, "admin")
    for csrf in (None, "", "x", other.csrf):
        assert visitor.visit(row, csrf=csrf).status_code == 403
    sent = visitor.client.post(path_of(row), data={"csrf": visitor.csrf}, headers={"Origin": "https://evil.example"})
    assert sent.status_code == 403


@pytest.mark.parametrize("row", [row for row in CLOSED if row.method == "GET"], ids=named)
def test_a_visitor_of_a_site_sees_that_site_alone(live: Live, row: Route) -> None:
    for kind in ("site viewer", "site admin"):
        if kind not in ALLOWED[row.access]:
            continue
        visitor = Visitor(live, kind)
        shown = visitor.visit(row).text
        assert ELSEWHERE not in shown
        assert OTHER not in shown
        if re.search(r"\{(device_id|site|code_id)\}", row.path):
            assert visitor.visit(row, device=OTHER, site=ELSEWHERE, code=code_elsewhere(live)).status_code == 404


@pytest.mark.parametrize("row", [row for row in CLOSED if row.method != "GET" and "{" in row.path], ids=named)
def test_an_admin_of_a_site_acts_on_it_alone(live: Live, row: Route) -> None:
    if "site admin" in ALLOWED[row.access]:
        visitor = Visitor(live, "site admin")
        code = code_elsewhere(live)
        answer = visitor.visit(row, csrf=visitor.csrf, device=OTHER, site=ELSEWHERE, code=code)
        assert answer.status_code in (400, 404), answer.text


@pytest.mark.parametrize("row", OPEN, ids=named)
def test_public_pages_are_those_that_sign_in_needs(row: Route) -> None:
    assert row.path in ("/sign-in", "/static/{file}") or row.path.startswith("/sign-in/")
