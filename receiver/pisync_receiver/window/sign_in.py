"""Sign in with an admin's or viewer's token, and sign out."""

from typing import Final

from pisync_receiver.errors import SignInRefused
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.forwarded import is_loopback_host
from pisync_receiver.http.pages import SIGN_IN, local_path, see_other
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.sessions import cookie_header
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, page

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
    return see_other(SIGN_IN, cookie_header("", secure=request.secure))


def _asked(view: View, following: str, problem: str | None, *, status: int) -> Answer:
    return view.render("sign-in.html", status=status, following=following, problem=problem)


def _needs_https() -> str:
    return _(
        "Signing in needs HTTPS. Reach the receiver through a gateway with TLS and set public_url to its https:// "
        "address, or open it on its own machine as http://localhost."
    )


def _is_private(request: Request) -> bool:
    """Whether a cookie is safe on the way: by HTTPS, or without leaving the machine."""
    return request.secure or is_loopback_host(request.host)


PAGES: Final = (show_sign_in, sign_in, sign_out)
