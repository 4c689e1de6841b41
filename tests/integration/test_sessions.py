"""Signing in and out: sessions, their ends, forms of other sites, limited tries."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_receiver.app import AppSettings
from pisync_receiver.domain.sessions import IDLE_MS, LASTS_MS, MOVE_MS
from pisync_receiver.http.auth import Access, token_hash
from pisync_receiver.http.forwarded import networks
from pisync_receiver.http.pages import page_answer
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import Route, route
from pisync_receiver.http.sessions import COOKIE, SECURE_COOKIE, TRIES_OF_ADDRESS
from tests.support.live_receiver import NOW_MS, SITE, Live, live_receiver

GATEWAY = AppSettings(cache_ttl_s=0, trusted_proxies=networks("127.0.0.1"))
HTTPS = {"X-Forwarded-Proto": "https", "Host": "pisync.example"}
REFUSED = "this token is unknown or has ended"


@route("GET", "/try", Access.READER, media=("text/html",), page=True)
async def show(request: Request) -> Answer:
    """Show who is signed in, and the form's field."""
    caller = request.caller
    return page_answer(f"{caller.scope}|{caller.token_id}|{caller.label}|{caller.sites}|{request.csrf}")


@route("POST", "/try", Access.ADMIN, media=("text/html",), page=True)
async def act(request: Request) -> Answer:
    """Do something."""
    return page_answer((await request.form())["what"])


ROUTES: Sequence[Route] = (show, act)


class Clock:
    """The wall clock, moved by the test."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(tmp_path: Path, clock: Clock) -> Iterator[Live]:
    with live_receiver(tmp_path, extra_routes=ROUTES, now_ms=clock, settings=GATEWAY) as running:
        yield running


def sign_in(live: Live, token: str, *, via: str = "10.0.0.1", **data: str) -> httpx.Response:
    """Try to sign in from an address, through a gateway."""
    headers = {"X-Forwarded-For": via}
    return live.client(None).post("/sign-in", data={"token": token, **data}, headers=headers)


def browser(live: Live, kind: str = "admin", **how: Any) -> httpx.Client:
    """A browser that has signed in."""
    answer = sign_in(live, live.secrets[kind], **how)
    assert answer.status_code == 303, answer.text
    client = live.client(None)
    client.cookies.set(COOKIE, answer.cookies[COOKIE])
    return client


def csrf(client: httpx.Client) -> str:
    return client.get("/try").text.rpartition("|")[2]


def forget(live: Live) -> None:
    """Have the next call look its session up, as it would 2 seconds later."""
    live.receiver.services.tokens.clear()


def use(live: Live, client: httpx.Client) -> int:
    """Read a page, and wait until the session's idle end is stored."""
    status = client.get("/try").status_code
    live.run(live.receiver.services.intake.ready())
    return status


def row(live: Live, client: httpx.Client) -> Any:
    (found,) = live.run(live.store.tokens_by_hash([token_hash(client.cookies[COOKIE])]))
    return found


def test_a_session_is_who_signed_in(live: Live) -> None:
    assert browser(live, "site viewer").get("/try").text.startswith("viewer|8|None|('Nakuru',)|")
    assert browser(live).get("/try").text.startswith("admin|4|None|None|")


def test_the_cookie_is_for_this_receiver_and_no_script(live: Live) -> None:
    answer = sign_in(live, live.secrets["admin"], next="/devices?site=Nakuru Primary")
    assert answer.headers["Location"] == "/devices?site=Nakuru%20Primary"
    assert live.secrets["admin"] not in answer.headers["Set-Cookie"]
    assert answer.headers["Set-Cookie"].endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict")
    secure = live.client(None, **HTTPS).post("/sign-in", data={"token": live.secrets["admin"]})
    assert secure.headers["Set-Cookie"].startswith(f"{SECURE_COOKIE}=pss_")
    assert secure.headers["Set-Cookie"].endswith("; SameSite=Strict; Secure")
    named = {"Cookie": secure.headers["Set-Cookie"].partition(";")[0]}
    assert live.client(None, **HTTPS, **named).get("/try").status_code == 200
    assert live.client(None, **named).get("/try").status_code == 303


def test_plain_http_to_another_machine_signs_no_one_in(live: Live) -> None:
    for headers in ({"Host": "192.168.1.5:8080"}, {"Host": "pisync.example"}):
        client = live.client(None, **headers)
        answer = client.post("/sign-in", data={"token": live.secrets["admin"]})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        assert "needs HTTPS" in answer.text
        assert "needs HTTPS" in client.get("/sign-in").text


def test_a_public_address_of_https_makes_a_secure_cookie(tmp_path: Path) -> None:
    settings = AppSettings(cache_ttl_s=0, public_url="https://pisync.example")
    with live_receiver(tmp_path, settings=settings) as live:
        for host, name in (("pisync.example", SECURE_COOKIE), ("localhost:8080", COOKIE)):
            answer = live.client(None, Host=host).post("/sign-in", data={"token": live.secrets["admin"]})
            assert answer.headers["Set-Cookie"].startswith(f"{name}=")


@pytest.mark.parametrize(
    ("wanted", "location"),
    [
        ("//evil.example", "/"), ("/\\evil.example", "/"), ("https://evil.example", "/"), ("", "/"),
        ("/a\r\nb: c", "/"),
        ("/sites/%D9%85?x=1", "/sites/%D9%85?x=1"), ("/sites/مدرسة", "/sites/%D9%85%D8%AF%D8%B1%D8%B3%D8%A9"),
    ],
)  # fmt: skip
def test_sign_in_leads_to_a_page_of_this_receiver(live: Live, wanted: str, location: str) -> None:
    assert sign_in(live, live.secrets["admin"], next=wanted).headers["Location"] == location


@pytest.mark.parametrize("kind", ["wrong", "revoked", "session", "empty", "é"])
def test_a_wrong_token_is_refused_in_the_same_words(live: Live, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    secret = browser(live).cookies[COOKIE] if kind == "session" else live.secrets.get(kind, kind if kind == "é" else "")
    answer = sign_in(live, secret)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert REFUSED in answer.text
    assert secret == "" or secret not in answer.text + str(capfd.readouterr())


@pytest.mark.parametrize("kind", ["device", "metrics"])
def test_tokens_of_programs_are_refused_in_words(live: Live, kind: str) -> None:
    answer = sign_in(live, live.secrets[kind])
    assert answer.status_code == 403
    assert f"this is a {kind} token; sign in with an admin" in answer.text


def test_tries_are_limited_for_each_address(live: Live) -> None:
    found = [sign_in(live, "psa_wrong").status_code for _ in range(TRIES_OF_ADDRESS + 2)]
    assert found == [403] * TRIES_OF_ADDRESS + [429] * 2
    assert sign_in(live, live.secrets["admin"]).status_code == 429
    assert sign_in(live, live.secrets["admin"], via="10.0.0.2").status_code == 303


class TestEnds:
    def test_a_session_that_is_not_used_ends(self, live: Live, clock: Clock) -> None:
        client = browser(live)
        for _ in range(2):
            clock.now_ms += IDLE_MS - 1
            assert use(live, client) == 200
        clock.now_ms += IDLE_MS
        answer = client.get("/try?a=1&b=x y")
        assert answer.status_code == 303
        assert answer.headers["Location"] == "/sign-in?next=%2Ftry%3Fa%3D1%26b%3Dx%2520y"

    def test_a_busy_session_ends_too(self, live: Live, clock: Clock) -> None:
        client = browser(live)
        for _ in range(2 * LASTS_MS // IDLE_MS - 1):
            clock.now_ms += IDLE_MS // 2
            assert use(live, client) == 200
        clock.now_ms += IDLE_MS // 2
        assert client.get("/try").status_code == 303

    def test_use_moves_the_end_at_most_once_a_minute(self, live: Live, clock: Clock) -> None:
        client = browser(live)
        for step, moved in ((MOVE_MS - 1, 0), (1, MOVE_MS), (1, MOVE_MS)):
            clock.now_ms += step
            use(live, client)
            assert row(live, client).expires_ms == NOW_MS + IDLE_MS + moved

    @pytest.mark.parametrize("path", ["/api/tokens/4/revoke", "/api/tokens/4/rotate"])
    def test_it_ends_with_its_token(self, live: Live, path: str) -> None:
        client, other = browser(live), browser(live, "viewer")
        done = live.client("admin").post(path, json={"overlap_s": 0} if "rotate" in path else None)
        assert done.status_code in (200, 201)
        assert client.get("/try").status_code == 303
        assert other.get("/try").status_code == 200
        ends = row(live, client).revoked_ms, row(live, client).session_until_ms
        assert NOW_MS in ends

    def test_it_ends_no_later_than_its_token(self, live: Live, clock: Clock) -> None:
        made = live.client("admin").post("/api/tokens", json={"scope": "viewer", "expires_in_s": 60}).json()
        client = live.client(None)
        client.cookies.set(COOKIE, sign_in(live, made["token"]).cookies[COOKIE])
        clock.now_ms += 59_999
        assert client.get("/try").status_code == 200
        clock.now_ms += 1
        assert client.get("/try").status_code == 303

    def test_signing_out_ends_it(self, live: Live) -> None:
        client = browser(live)
        assert client.post("/sign-out", data={"csrf": "no"}).status_code == 403
        kept = client.cookies[COOKIE]
        answer = client.post("/sign-out", data={"csrf": csrf(client)})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in")
        assert f"{COOKIE}=; Path=/; Max-Age=0" in answer.headers["Set-Cookie"]
        assert live.client(None, Cookie=f"{COOKIE}={kept}").get("/try").status_code == 303


class TestForms:
    def test_a_form_needs_the_session_and_its_value(self, live: Live) -> None:
        client, other = browser(live), browser(live)
        value = csrf(client)

        def send(client: httpx.Client, **headers: str) -> int:
            return client.post("/try", data={"what": "x", "csrf": value}, headers=headers).status_code

        assert send(client) == 200
        assert send(other) == 403
        assert send(live.client(None)) == 403
        assert client.post("/try", data={"what": "x"}).status_code == 403
        assert client.post("/try", data={"what": "x", "csrf": "é"}).status_code == 403
        assert client.post("/try", json={"what": "x", "csrf": value}).status_code == 415

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Origin": "http://localhost:1"}, 200),
            ({"Origin": "http://localhost"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Origin": "http://evil.example"}, 403),
        ],
    )
    def test_a_form_of_another_site_is_refused(self, live: Live, headers: dict[str, str], status: int) -> None:
        client = browser(live)
        value = csrf(client)
        headers = {"Host": "localhost:1", **headers}
        sent = client.post("/try", data={"what": "x", "csrf": value}, headers=headers)
        assert sent.status_code == status
        signed_in = client.post("/sign-in", data={"token": live.secrets["admin"]}, headers=headers)
        assert signed_in.status_code == (303 if status == 200 else 403)

    def test_a_viewer_may_read_and_not_act(self, live: Live) -> None:
        client = browser(live, "viewer")
        assert client.post("/try", data={"what": "x", "csrf": csrf(client)}).status_code == 403


class TestDoors:
    """Pages take sessions alone, calls take tokens alone."""

    def test_a_token_opens_no_page(self, live: Live) -> None:
        assert live.client("admin").get("/try").status_code == 303
        assert live.client(None, Cookie=f"{COOKIE}={live.secrets['admin']}").get("/try").status_code == 303

    def test_a_session_makes_no_call(self, live: Live) -> None:
        client = browser(live)
        assert client.get("/api/devices").status_code == 401
        bearer = live.client(None, Authorization=f"Bearer {client.cookies[COOKIE]}")
        assert bearer.get("/api/devices").status_code == 401

    def test_a_part_of_a_page_has_the_whole_page_sign_in(self, live: Live) -> None:
        shown = {"HX-Request": "true", "HX-Current-URL": "http://localhost/devices?site=Nakuru"}
        answer = live.client(None).get("/try", headers=shown)
        assert answer.headers["HX-Redirect"] == "/sign-in?next=%2Fdevices%3Fsite%3DNakuru"
        answer = live.client(None).get("/try", headers=shown | {"HX-Current-URL": "http://["})
        assert answer.headers["HX-Redirect"] == "/sign-in?next="

    def test_a_link_elsewhere_leads_to_the_page(self, live: Live) -> None:
        answer = live.client(None).get('/try?a="<b', headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200
        assert '<meta http-equiv="refresh" content="0; url=/try?a=%22%3Cb">' in answer.text

    def test_token_lists_leave_sessions_out(self, live: Live) -> None:
        browser(live, "site viewer")
        admin = live.client("admin")
        assert all(token["session_until"] is None for token in admin.get("/api/tokens").json())
        (session,) = [each for each in admin.get("/api/tokens?sessions=true").json() if each["session_until"]]
        assert (session["scope"], session["sites"], session["parent_id"]) == ("viewer", [SITE], 8)

    @pytest.mark.parametrize("act", ["revoke", "rotate"])
    def test_a_session_can_be_revoked_and_not_rotated(self, live: Live, act: str) -> None:
        client, admin = browser(live), live.client("admin")
        number = admin.get("/api/tokens?sessions=true").json()[-1]["id"]
        answer = admin.post(f"/api/tokens/{number}/{act}", json={} if act == "rotate" else None)
        assert answer.status_code == (200 if act == "revoke" else 404)
        assert client.get("/try").status_code == (303 if act == "revoke" else 200)

    def test_without_auth_pages_need_no_session_and_forms_are_still_ours(self, tmp_path: Path) -> None:
        settings = AppSettings(auth=False, cache_ttl_s=0)
        with live_receiver(tmp_path, settings=settings, extra_routes=ROUTES) as live:
            client = live.client(None)
            assert client.get("/try").text.startswith("None|")
            assert client.get("/sign-in").headers["Location"] == "/"
            assert client.post("/try", data={"what": "x"}).status_code == 403
            assert client.post("/try", data={"what": "x", "csrf": csrf(client)}).text == "x"


def test_a_form_is_bounded(live: Live) -> None:
    client = live.client(None)
    for data in ("a=1&" * 2000, "token=%ff"):
        answer = client.post(
            "/sign-in", content=data, headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        )
        assert answer.status_code == 400
