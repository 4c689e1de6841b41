"""Sign in with an admin's or viewer's token, and sign out."""

from html import escape
from typing import Final

from pisync_receiver.errors import SignInRefused
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.forwarded import is_loopback_host
from pisync_receiver.http.pages import SIGN_IN, local_path, page_answer, see_other
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import route
from pisync_receiver.http.sessions import cookie_header

_NEXT: Final = Query(params=(params.text("next", "The page to go to after signing in", longest=4000),))
_MEDIA: Final = ("text/html",)
NEEDS_HTTPS: Final = (
    "Signing in needs HTTPS. Reach the receiver through a gateway with TLS and set public_url to its https:// address, "
    "or open it on its own machine as http://localhost."
)


@route("GET", SIGN_IN, Access.PUBLIC, media=_MEDIA, query=_NEXT, page=True)
async def show_sign_in(request: Request) -> Answer:
    """Ask for a token."""
    if not request.services.sessions.required:
        return see_other("/")
    return _form(local_path(request.query["next"]), None if _is_private(request) else NEEDS_HTTPS)


@route("POST", SIGN_IN, Access.PUBLIC, media=_MEDIA, page=True)
async def sign_in(request: Request) -> Answer:
    """Exchange a token for a session."""
    form = await request.form()
    following = local_path(form.get("next"))
    if not _is_private(request):
        return _form(following, NEEDS_HTTPS, status=403)
    try:
        session = await request.services.sessions.sign_in(form.get("token", ""), request.address)
    except SignInRefused as error:
        return _form(following, str(error), status=403)
    return see_other(following, cookie_header(session.secret, secure=request.secure))


@route("POST", "/sign-out", Access.READER, media=_MEDIA, page=True)
async def sign_out(request: Request) -> Answer:
    """End the session."""
    if request.session is None:
        return see_other("/")
    await request.services.sessions.close(request.session, request.caller)
    return see_other(SIGN_IN, cookie_header("", secure=request.secure))


def _is_private(request: Request) -> bool:
    """Whether a cookie is safe on the way: by HTTPS, or without leaving the machine."""
    return request.secure or is_loopback_host(request.host)


def _form(following: str, problem: str | None, *, status: int = 200) -> Answer:
    said = "" if problem is None else f'<p role="alert">{escape(problem)}</p>'
    return page_answer(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Sign in - PiSync</title>'
        '<meta name="viewport" content="width=device-width"></head><body><main><h1>Sign in</h1>'
        f'{said}<form method="post" action="{SIGN_IN}"><input type="hidden" name="next" value="{escape(following)}">'
        '<label>Token <input type="password" name="token" required autocomplete="current-password"></label>'
        "<button>Sign in</button></form></main></body></html>",
        status=status,
    )


ROUTES: Final = (show_sign_in, sign_in, sign_out)
