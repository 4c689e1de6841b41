"""Signing in and out in a browser: what its own rules make of our cookies, forms and headers."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote, unquote

import pytest
from playwright.sync_api import BrowserContext, Page

from pisync_common.times import now_ms
from pisync_receiver.app import AppSettings
from pisync_receiver.http.oidc import CALLBACK, OidcSettings
from tests.support.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProviderProcess
from tests.support.live_receiver import Live, live_receiver


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("signing-in"), now_ms=now_ms) as running:
        yield running


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Another site, whose page is what its query says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = unquote(self.path.partition("?")[2]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def home(live: Live) -> str:
    """The receiver's address as a site of its own: 127.0.0.1 is another to a browser."""
    return live.url.replace("127.0.0.1", "localhost")


def sign_in(live: Live, page: Page) -> None:
    page.goto(home(live) + "/devices")
    assert "/sign-in?next=%2Fdevices" in page.url
    page.get_by_label("Token").fill(live.secrets["admin"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(home(live) + "/devices")


def test_a_link_elsewhere_leads_to_the_page_of_a_person_who_is_signed_in(
    live: Live, page: Page, elsewhere: str
) -> None:
    sign_in(live, page)
    page.goto(elsewhere + "?" + quote(f'<a href="{home(live)}/devices?state=well">see</a>'))
    page.get_by_text("see").click()
    page.wait_for_url(home(live) + "/devices?state=well")
    page.get_by_role("heading", level=1).wait_for()


def test_a_form_elsewhere_does_nothing(live: Live, page: Page, elsewhere: str) -> None:
    sign_in(live, page)
    form = f'<form method="post" action="{home(live)}/sign-out"><button>win</button></form>'
    page.goto(elsewhere + "?" + quote(form))
    page.get_by_role("button").click()
    page.wait_for_url(home(live) + "/sign-out")
    page.goto(home(live) + "/devices")
    assert page.url == home(live) + "/devices"


def test_no_script_sees_the_session_and_signing_out_ends_it(live: Live, page: Page) -> None:
    sign_in(live, page)
    assert "pss_" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(home(live) + "/sign-in*")
    page.goto(home(live) + "/devices")
    assert "/sign-in" in page.url


def test_an_organisations_account_signs_in(context: BrowserContext, tmp_path: Path) -> None:
    """The provider is another site than the receiver, and leads back to it."""
    page = context.new_page()
    with IdentityProviderProcess("http://localhost/callback") as provider:
        provider.person(sub="u1", email="amina@example.org", groups=["heads"])
        agreed = OidcSettings(
            issuer=provider.issuer,
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            redirect_uri="http://localhost/callback",
            scope="openid",
            claim="groups",
            admin=("heads",),
            viewer=(),
        )
        with live_receiver(tmp_path, settings=AppSettings(oidc=agreed), now_ms=now_ms) as live:
            page.route("http://localhost/callback*", lambda route: route.fulfill(status=302, headers={
                "location": home(live) + CALLBACK + "?" + route.request.url.partition("?")[2]
            }))  # fmt: skip
            page.goto(home(live) + "/sign-in?next=/devices")
            page.get_by_role("link", name="Sign in with your organisation's account").click()
            page.wait_for_url(home(live) + "/devices")
            assert "amina@example.org" in page.content()


def test_an_open_page_leads_to_sign_in_when_its_token_is_revoked(live: Live, page: Page) -> None:
    made = live.client("admin").post("/api/tokens", json={"scope": "viewer"}).json()
    page.goto(home(live) + "/")
    page.get_by_label("Token").fill(made["token"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(home(live) + "/")
    live.client("admin").post(f"/api/tokens/{made['record']['id']}/revoke")
    page.wait_for_url(home(live) + "/sign-in*")
