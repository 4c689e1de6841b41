"""Signing in with an organisation's accounts, against a real identity provider in a process of its own."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pisync_common.errors import SettingError
from pisync_common.times import now_ms
from pisync_receiver import config
from pisync_receiver.app import AppSettings
from pisync_receiver.http.oidc import CALLBACK, OidcSettings, oidc_settings
from pisync_receiver.http.sessions import COOKIE
from tests.support.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProviderProcess
from tests.support.live_receiver import Live, live_receiver

REDIRECT: Final = f"http://localhost:1{CALLBACK}"
HEAD: Final[dict[str, Any]] = {"sub": "u1", "email": "amina@example.org", "groups": ["staff", "heads"]}
AWAY: Final = f"{COOKIE}-away"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProviderProcess]:
    with IdentityProviderProcess(REDIRECT) as running:
        yield running


def settings(provider: IdentityProviderProcess, **changes: Any) -> AppSettings:
    given: dict[str, Any] = {
        "issuer": provider.issuer,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "redirect_uri": REDIRECT,
        "scope": "openid email",
        "claim": "groups",
        "admin": ("heads",),
        "viewer": ("staff", "amina@example.org"),
    }
    return AppSettings(cache_ttl_s=0, oidc=OidcSettings(**given | changes))


@pytest.fixture
def live(tmp_path: Path, provider: IdentityProviderProcess) -> Iterator[Live]:
    provider.person(**HEAD)
    provider.fault()
    with live_receiver(tmp_path, settings=settings(provider), now_ms=now_ms) as running:
        yield running


def leave(
    live: Live, provider: IdentityProviderProcess, following: str = "/devices"
) -> tuple[httpx.Client, httpx.Response]:
    """Go to the provider, and come back with its answer; the browser, and the address it is sent to."""
    browser = live.client(None, Host="localhost:1")
    left = browser.get("/sign-in/oidc", params={"next": following})
    assert left.status_code == 303, left.text
    browser.cookies.clear()
    browser.headers["Cookie"] = left.headers["Set-Cookie"].partition(";")[0]
    return browser, provider.browser.get(left.headers["Location"])


def come_back(live: Live, provider: IdentityProviderProcess, following: str = "/devices") -> httpx.Response:
    browser, sent = leave(live, provider, following)
    location = sent.headers["Location"]
    assert location.startswith(REDIRECT)
    return browser.get(location.removeprefix("http://localhost:1"), headers={"Sec-Fetch-Site": "cross-site"})


def cookies(answer: httpx.Response) -> dict[str, str]:
    return {line.partition("=")[0]: line for line in answer.headers.get_list("set-cookie")}


def session_of(live: Live, answer: httpx.Response) -> dict[str, Any]:
    """The newest session."""
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = live.client("admin").get("/api/tokens?sessions=true").json()[-1]
    assert found["session_until"] is not None
    return found


def refusal(live: Live, answer: httpx.Response) -> str:
    """Why a sign-in was refused; no session is open."""
    assert answer.status_code == 403, answer.text
    assert COOKIE not in cookies(answer)
    assert all(token["session_until"] is None for token in live.client("admin").get("/api/tokens?sessions=true").json())
    live.run(live.receiver.services.intake.ready())
    reason: str = json.loads(live.client("admin").get("/api/audit?act=session.refuse").json()[0]["detail"])["reason"]
    return reason


def test_a_person_of_the_organisation_is_signed_in(live: Live, provider: IdentityProviderProcess) -> None:
    assert "/sign-in/oidc?next=%2Fdevices" in live.client(None, Host="localhost").get("/sign-in?next=/devices").text
    answer = come_back(live, provider)
    session = session_of(live, answer)
    assert (session["scope"], session["label"], session["parent_id"]) == ("admin", "amina@example.org", None)
    assert 'content="0; url=/devices"' in answer.text
    set_cookie = cookies(answer)
    assert "SameSite=Strict" in set_cookie[COOKIE]
    assert f"{AWAY}=; Path=/; Max-Age=0" in set_cookie[AWAY]
    browser = live.client(None, Host="localhost", Cookie=set_cookie[COOKIE].partition(";")[0])
    assert browser.get("/devices").status_code == 200
    (entry,) = live.client("admin").get("/api/audit?act=session.open").json()
    assert (entry["actor"], entry["target"]) == ("amina@example.org", f"session {session['id']}")
    live.client("admin").post(f"/api/tokens/{session['id']}/revoke")
    assert browser.get("/devices").status_code == 303


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"sub": "u2", "groups": ["staff"]}, ("viewer", "u2")),
        ({"sub": "u2", "email": "b@example.org", "email_verified": False, "groups": "heads"}, ("admin", "u2")),
        ({**HEAD, "only_userinfo": ["groups"]}, ("admin", "amina@example.org")),
    ],
)
def test_claims_say_who_it_is_and_what_they_may_do(
    live: Live, provider: IdentityProviderProcess, claims: dict[str, Any], expected: tuple[str, str]
) -> None:
    provider.person(**claims)
    session = session_of(live, come_back(live, provider))
    assert (session["scope"], session["label"]) == expected


@pytest.mark.parametrize("groups", [None, [], ["others"], "heads and others", {"heads": 1}])
def test_an_account_without_a_role_is_refused(live: Live, provider: IdentityProviderProcess, groups: Any) -> None:
    provider.person(sub="u3", **({} if groups is None else {"groups": groups}))
    assert "may not sign in here" in refusal(live, come_back(live, provider))


@pytest.mark.parametrize("verified", [True, False])
def test_an_address_counts_only_if_it_is_verified(
    tmp_path: Path, provider: IdentityProviderProcess, verified: bool
) -> None:
    provider.fault()
    provider.person(sub="u4", email="amina@example.org", email_verified=verified)
    with live_receiver(tmp_path, settings=settings(provider, claim="email"), now_ms=now_ms) as live:
        answer = come_back(live, provider)
        if verified:
            assert session_of(live, answer)["scope"] == "viewer"
        else:
            assert "may not sign in here" in refusal(live, answer)


@pytest.mark.parametrize("fault", ["nonce", "audience", "issuer", "expired", "signature", "unsigned", "shared"])
def test_an_id_token_that_is_not_for_this_sign_in_is_refused(
    live: Live, provider: IdentityProviderProcess, fault: str
) -> None:
    provider.fault(fault)
    assert "is not valid" in refusal(live, come_back(live, provider))


def test_a_new_key_of_the_provider_is_asked_for(live: Live, provider: IdentityProviderProcess) -> None:
    session_of(live, come_back(live, provider))
    provider.fault("rotated")
    session_of(live, come_back(live, provider))


def test_a_person_who_declines_sees_why(live: Live, provider: IdentityProviderProcess) -> None:
    provider.fault("denied")
    assert "refused (access_denied)" in refusal(live, come_back(live, provider))


class TestComingBack:
    def test_needs_the_browser_that_left(self, live: Live, provider: IdentityProviderProcess) -> None:
        _, sent = leave(live, provider)
        other, _ = leave(live, provider)
        path = sent.headers["Location"].removeprefix("http://localhost:1")
        assert "took too long or began elsewhere" in refusal(live, other.get(path))
        assert live.client(None, Host="localhost:1").get(path).status_code == 403

    @pytest.mark.parametrize("change", ["state", "cookie", "iss", "code"])
    def test_needs_what_was_agreed(self, live: Live, provider: IdentityProviderProcess, change: str) -> None:
        browser, sent = leave(live, provider)
        path = sent.headers["Location"].removeprefix("http://localhost:1")
        match change:
            case "state":
                path = path.replace("state=", "state=x")
            case "cookie":
                browser.headers["Cookie"] = browser.headers["Cookie"].replace(".", "x.")
            case "iss":
                path += "&iss=https%3A%2F%2Fanother.example"
            case _:
                path = path.replace("code=", "code=x")
        assert refusal(live, browser.get(path))

    def test_happens_once(self, live: Live, provider: IdentityProviderProcess) -> None:
        browser, sent = leave(live, provider)
        path = sent.headers["Location"].removeprefix("http://localhost:1")
        assert browser.get(path + "&session_state=x").status_code == 200
        assert browser.get(path).status_code == 403

    @pytest.mark.parametrize("following", ["//evil.example", "https://evil.example", "/" + "x" * 3000])
    def test_leads_to_a_page_of_this_receiver(
        self, live: Live, provider: IdentityProviderProcess, following: str
    ) -> None:
        assert 'content="0; url=/"' in come_back(live, provider, following).text


def test_a_provider_that_is_away_is_said_and_tokens_work(tmp_path: Path) -> None:
    with IdentityProviderProcess(REDIRECT) as provider:
        gone = settings(provider)
    with live_receiver(tmp_path, settings=gone, now_ms=now_ms) as live:
        browser = live.client(None, Host="localhost:1")
        answer = browser.get("/sign-in/oidc")
        assert answer.status_code == 503
        assert "does not answer as it should" in answer.text
        assert browser.post("/sign-in", data={"token": live.secrets["admin"]}).status_code == 303


def test_a_provider_that_names_another_issuer_is_refused(tmp_path: Path, provider: IdentityProviderProcess) -> None:
    other = settings(provider, issuer=provider.issuer.replace("127.0.0.1", "localhost"))
    with live_receiver(tmp_path, settings=other, now_ms=now_ms) as live:
        assert live.client(None, Host="localhost:1").get("/sign-in/oidc").status_code == 503


def test_without_a_provider_there_is_no_such_page(tmp_path: Path) -> None:
    with live_receiver(tmp_path) as live:
        for path in ("/sign-in/oidc", f"{CALLBACK}?code=x"):
            assert live.client(None, Host="localhost").get(path).status_code == 404
        assert "/sign-in/oidc" not in live.client(None, Host="localhost").get("/sign-in").text


SECRET_FILE: Final = "PISYNC_RECEIVER_OIDC_CLIENT_SECRET_FILE"
ALL: Final = {
    "PISYNC_RECEIVER_OIDC_ISSUER": "https://id.example/",
    "PISYNC_RECEIVER_PUBLIC_URL": "https://pisync.example",
    "PISYNC_RECEIVER_OIDC_CLIENT_ID": "x",
    SECRET_FILE: "secret",
    "PISYNC_RECEIVER_OIDC_ADMIN": "heads, Head teachers",
}


def agreed(folder: Path, missing: str = "") -> OidcSettings | None:
    environ = ALL | {SECRET_FILE: str(folder / "secret")}
    environ.pop(missing, None)
    chosen = config.settings_from(argparse.Namespace(), environ)
    return oidc_settings(chosen, chosen[config.PUBLIC_URL])


def test_the_settings_say_what_is_agreed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" s\n")
    found = agreed(tmp_path)
    assert found is not None
    assert (found.issuer, found.client_secret) == ("https://id.example/", "s")
    assert found.redirect_uri == f"https://pisync.example{CALLBACK}"
    assert found.admin == ("heads", "Head teachers")
    assert "'s'" not in repr(found)
    assert agreed(tmp_path, "PISYNC_RECEIVER_OIDC_ISSUER") is None


@pytest.mark.parametrize("missing", [name for name in ALL if "ISSUER" not in name])
def test_what_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "secret").write_text("s")
    with pytest.raises(SettingError, match=missing.removeprefix("PISYNC_RECEIVER_").lower()):
        agreed(tmp_path, missing)


@pytest.mark.parametrize("content", [None, b"", b"\xff"])
def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SettingError, match="oidc_client_secret_file"):
        agreed(tmp_path)


def test_a_missing_extra_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "authlib").mkdir()
    (tmp_path / "authlib/__init__.py").write_text("raise ModuleNotFoundError('none', name='authlib')")
    environ = {"HOME": str(tmp_path), "PISYNC_RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/r.db"}
    done = subprocess.run(
        [sys.executable, "-m", "pisync_receiver", "serve", "--port", "0"],
        env=environ | ALL | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "pisync-receiver: authlib is not installed, so this cannot run; nothing was changed; install PiSync's wheel "
        "with its extra 'oidc'"
    )
