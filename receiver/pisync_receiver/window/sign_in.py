"""Sign in with an admin's or viewer's token, and sign out."""

from typing import Final
from urllib.parse import quote

from pisync_receiver.errors import Problem, SignInRefused
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.forwarded import is_loopback_host
from pisync_receiver.http.oidc import CALLBACK, IdentityProvider
from pisync_receiver.http.pages import SIGN_IN, lead_on, local_path, see_other
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, Headers
from pisync_receiver.http.sessions import away_cookie, away_cookie_header, cookie_header
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, page

OIDC: Final = "/sign-in/oidc"
NEXT_CHARS: Final = 1000
"""Of a page's address that is remembered meanwhile, in a cookie of at most 4 KiB."""
AWAY_S: Final = 600
"""How long a person may take at the identity provider."""
_CALLBACK: Final = Query(
    params=(
        params.text("code", "What the identity provider exchanges for an ID token", longest=4000),
        params.text("state", "What it was given to send back", longest=400),
        params.text("error", "Why it refuses", longest=400),
        params.text("iss", "Which provider it is", longest=1000),
    ),
    others=True,
)
_NEXT: Final = Query(params=(params.text("next", "The page to go to after signing in", longest=4000),))


@page("GET", SIGN_IN, Access.PUBLIC, query=_NEXT)
async def show_sign_in(view: View) -> Answer:
    """Ask for a token."""
    if not view.request.services.sessions.required:
        return see_other("/")
    problem = None if _is_private(view.request) else _needs_https()
    return _asked(view, local_path(view.query["next"]), problem, status=200)


@page("POST", SIGN_IN, Access.PUBLIC)
async def sign_in(view: View) -> Answer:
    """Exchange a token for a session."""
    request, form = view.request, await view.form()
    following = local_path(form.get("next"))
    if not _is_private(request):
        return _asked(view, following, _needs_https(), status=403)
    try:
        session = await request.services.sessions.sign_in(form.get("token", ""), request.address)
    except SignInRefused as error:
        return _asked(view, following, str(error), status=403)
    return see_other(following, cookie_header(session.secret, secure=request.secure))


@page("POST", "/sign-out", Access.READER)
async def sign_out(view: View) -> Answer:
    """End the session."""
    request = view.request
    if request.session is None:
        return see_other("/")
    await request.services.sessions.close(request.session, request.caller)
    forget = (b"clear-site-data", b'"cache"')  # or the back button shows what was signed out of
    return see_other(SIGN_IN, cookie_header("", secure=request.secure), forget)


def _asked(view: View, following: str, problem: str | None, *, status: int, more: Headers = ()) -> Answer:
    provider = None if view.request.services.identity_provider is None else f"{OIDC}?next={quote(following, safe='')}"
    values = {"following": following, "problem": problem, "provider": provider}
    return view.render("sign-in.html", status=status, more=more, **values)


def _needs_https() -> str:
    return _(
        "Signing in needs HTTPS. Reach the receiver through a gateway with TLS and set public_url to its https:// "
        "address, or open it on its own machine as http://localhost."
    )


def _is_private(request: Request) -> bool:
    """Whether a cookie is safe on the way: by HTTPS, or without leaving the machine."""
    return request.secure or is_loopback_host(request.host)


@page("GET", OIDC, Access.PUBLIC, query=_NEXT)
async def begin(view: View) -> Answer:
    """Go to the identity provider."""
    request, provider = view.request, _provider(view.request)
    wanted = view.query["next"]
    following = local_path(wanted if wanted is not None and len(wanted) <= NEXT_CHARS else None)
    if not _is_private(request):
        return _asked(view, following, _needs_https(), status=403)
    if not provider.is_known:
        request.services.sessions.count_try(request.address)
    try:
        address, away = await provider.begin(following)
    except SignInRefused as error:
        return _asked(view, following, str(error), status=503)
    return see_other(address, away_cookie_header(away, AWAY_S, secure=request.secure))


@page("GET", CALLBACK, Access.PUBLIC, query=_CALLBACK)
async def come_back(view: View) -> Answer:
    """Open a session for whom the identity provider vouches."""
    request, sessions, provider = view.request, view.request.services.sessions, _provider(view.request)
    sessions.count_try(request.address)
    done = away_cookie_header("", 0, secure=request.secure)
    try:
        person = await provider.finish(away_cookie(request.headers, secure=request.secure), view.query)
        session = await sessions.sign_in_as(person.name, person.scope, request.address)
    except SignInRefused as error:
        sessions.note_refusal(request.address, str(error))
        return _asked(view, "/", str(error), status=403, more=(done,))
    return lead_on(local_path(person.following), done, cookie_header(session.secret, secure=request.secure))


def _provider(request: Request) -> IdentityProvider:
    if (provider := request.services.identity_provider) is None:
        raise Problem(404, "not_found", "this receiver has no identity provider (oidc_issuer); sign in with a token")
    return provider


PAGES: Final = (show_sign_in, sign_in, sign_out, begin, come_back)
