"""Who may see a page or send its form: sessions, redirects to sign-in, and defences against other sites' forms."""

import hmac
from html import escape
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access, Caller, caller_of, check_allowed
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import JSON, Answer, Headers, choose
from pisync_receiver.http.routing import Route
from pisync_receiver.http.sessions import COOKIE, SECURE_COOKIE, cookie_of

SIGN_IN: Final = "/sign-in"
HTML: Final = "text/html; charset=utf-8"
CSRF_FIELD: Final = "csrf"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS: Final[Headers] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"vary", b"accept, accept-language, cookie, hx-request"),
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: with that, browsers send `Origin: null` with forms.
    (b"referrer-policy", b"same-origin"),
)
_SAFE: Final = ("GET", "HEAD")


def page_answer(text: str, *, status: int = 200, headers: Headers = ()) -> Answer:
    """Return a page, with the headers that every page has."""
    return Answer(status=status, body=text.encode(), content_type=HTML, headers=(*PAGE_HEADERS, *headers))


def see_other(location: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Send a browser to another page with GET."""
    return Answer(status=303, content_type=HTML, headers=((b"location", location.encode()), *headers))


async def admit_page(request: Request, route: Route) -> Answer | None:
    """Set the request's session, CSRF value and caller; return an answer instead where it needs a session first.

    Raises Problem 404 for a program that wants JSON, and 403 for a session of another scope, or a form without a
    session, from another site or without its CSRF value.
    """
    if not wants_page(request):
        raise Problem(404, "not_found", "no such endpoint; see /docs")
    sessions = request.services.sessions
    sends = request.scope["method"] not in _SAFE
    if sends:
        _check_origin(request)
    if route.access is not Access.PUBLIC and sessions.required:
        request.session = await sessions.find(request.headers, secure=request.secure)
        if request.session is None:
            return _sign_in_first(request)
        request.caller = caller_of(request.session.token, request.address)
        check_allowed(route.access, request.caller, request.path)
    else:
        request.caller = Caller(scope=None, address=request.address)
    request.csrf = sessions.csrf(request.session)
    if sends and route.access is not Access.PUBLIC:
        given = (await request.form()).get(CSRF_FIELD, "")
        if not hmac.compare_digest(given.encode(), request.csrf.encode()):
            raise Problem(403, "csrf", "this form is out of date; nothing was changed; load the page and send it again")
    return None


def wants_page(request: Request) -> bool:
    """Whether the caller prefers a page to JSON, as browsers do."""
    try:
        return choose(request.headers.get(b"accept"), ("text/html", JSON)) != JSON
    except Problem:
        return True


def local_path(wanted: str | None) -> str:
    """Return a path of this receiver to go to; / for anything that a browser could take for another site."""
    if wanted is None or not wanted.startswith("/") or wanted.startswith(("//", "/\\")) or not wanted.isprintable():
        return "/"
    return wanted if wanted.isascii() and " " not in wanted else quote(wanted, safe="/?&=%+-_.~:@!$'()*,;")


def lead_on(path: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Return a page that leads to `path` at once.

    Browsers send no strict cookie where another site leads here, a link in a mail or an identity provider. They do
    where a page of ours leads on.
    """
    return page_answer(
        f'<!DOCTYPE html><html lang="en"><title>PiSync</title>'
        f'<meta http-equiv="refresh" content="0; url={escape(path)}"><a href="{escape(path)}">PiSync</a></html>',
        headers=headers,
    )


def _sign_in_first(request: Request) -> Answer:
    headers = request.headers
    if request.scope["method"] not in _SAFE:
        raise Problem(403, "no_session", "the session has ended; nothing was changed; sign in and send it again")
    path = request.scope["raw_path"].decode("latin-1")
    if query := request.scope["query_string"].decode("latin-1"):
        path = f"{path}?{query}"
    if headers.get(b"hx-request") == b"true":  # a part of a page: the whole page has to go
        shown = _parts_of(headers.get(b"hx-current-url", b"/"))
        where = shown.path + (f"?{shown.query}" if shown.query else "")
        location = f"{SIGN_IN}?next={quote(where, safe='')}"
        return Answer(status=200, content_type=HTML, headers=((b"hx-redirect", location.encode()),))
    name = SECURE_COOKIE if request.secure else COOKIE
    if headers.get(b"sec-fetch-site") == b"cross-site" and cookie_of(headers, name) is None:
        return lead_on(path)
    return see_other(SIGN_IN if path == "/" else f"{SIGN_IN}?next={quote(path, safe='')}")


def _parts_of(address: bytes) -> SplitResult:
    """Return the parts of an address that a header names; they are empty where it is none."""
    try:
        return urlsplit(address.decode("latin-1"))
    except ValueError:
        return urlsplit("")


def _check_origin(request: Request) -> None:
    """Refuse a form that another site sent. Programs that are no browsers send neither header."""
    headers = request.headers
    if (site := headers.get(b"sec-fetch-site")) is not None:
        ours = site in (b"same-origin", b"none")  # none: a person sends it again, after a restart of the browser say
    elif (origin := headers.get(b"origin")) is not None:
        public = request.services.public_url
        hosts = {request.host, urlsplit(public).netloc if public is not None else request.host}
        ours = _parts_of(origin).netloc in hosts - {""}
    else:
        ours = True
    if not ours:
        raise Problem(403, "other_site", "this form was sent from another site; nothing was changed")
