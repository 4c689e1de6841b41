"""One visit of a page: what was asked, calls of the API, and the page or redirection that answers."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.edge import Router
from pisync_receiver.http.pages import HTML, PAGE_HEADERS, wants_page
from pisync_receiver.http.params import NO_QUERY, Param, Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, Headers, Reply, as_problem, problem_answer
from pisync_receiver.http.routing import Response, Route
from pisync_receiver.http.sessions import cookie_of
from pisync_receiver.window.calls import Result, ask, call
from pisync_receiver.window.filters import NOW_MS
from pisync_receiver.window.i18n import CURRENT, LANGUAGES, choose_language
from pisync_receiver.window.navigation import Entry, entries
from pisync_receiver.window.rendering import Templates

LANGUAGE_COOKIE: Final = "pisync-language"
PAGE_ROWS_MAX: Final = 1000
FIELD_CHARS: Final = 4096
_YEAR_S: Final = 365 * 86_400
_LIVE: Final = "live"
_OWN: Final = (
    params.options("lang", "The language of the pages", list(LANGUAGES)),
    params.text("done", "The act that led here", longest=40),
)
"""Parameters that every page takes."""
_OF_PAGES: Final = frozenset({"lang", "done", "cursor"})


class View:
    """One visit of a page."""

    def __init__(self, request: Request, api: Router, templates: Templates, *, live: bool) -> None:
        """`live` says that only the part of the page is wanted that changes."""
        self.request = request
        self.query = request.query
        self.path = request.path
        self.language = CURRENT.get()
        self.live = live
        self._api = api
        self._templates = templates

    @property
    def navigation(self) -> Sequence[Entry]:
        """The pages that the person may open; none before signing in."""
        required = self.request.services.sessions.required
        return () if required and not self.signed_in else entries(self.request.caller)

    @property
    def here(self) -> str:
        """This page's address, without what is asked only once."""
        return self.link(cursor=self.query.get("cursor"))

    @property
    def filter(self) -> dict[str, str]:
        """The parameters that say which rows this page lists, as they were given."""
        given = parse_qsl(self.request.scope["query_string"].decode())
        return {name: value for name, value in given if name not in _OF_PAGES}

    def is_at(self, path: str) -> bool:
        """Whether this page is `path` or below it."""
        here: str = self.request.scope["path"]
        return here == path or (path != "/" and here.startswith(path + "/"))

    @property
    def answers_form(self) -> bool:
        """Whether this page answers a form: its address alone leads elsewhere, or nowhere."""
        return bool(self.request.scope["method"] == "POST")

    @property
    def signed_in(self) -> bool:
        """Whether there is a session to end."""
        return self.request.session is not None

    @property
    def person(self) -> str | None:
        """The label of the token that opened the session."""
        return self.request.caller.label

    @property
    def may_act(self) -> bool:
        """Whether the person is an admin, so that forms are of use."""
        return self.request.caller.scope in ("admin", None)

    @property
    def is_chief(self) -> bool:
        """Whether the person is an admin of all sites."""
        return self.may_act and self.request.caller.sites is None

    async def get(self, path: str, **query: Any) -> Result:
        """Ask the API. Parameters that are None are left out. Raises Problem."""
        return await call(self._api, self.request, "GET", path, query)

    async def get_all(self, path: str, *, most: int, **query: Any) -> list[Any]:
        """Ask the API for the rows of all pages, `most` or a few more."""
        rows: list[Any] = []
        cursor = None
        while True:
            found = await self.get(path, **query, limit=PAGE_ROWS_MAX, cursor=cursor)
            rows += found.value
            if (cursor := found.next) is None or len(rows) >= most:
                return rows

    async def download(self, path: str, **query: Any) -> Reply:
        """Return a list of the API as a file: `format` says of which kind. Raises Problem."""
        return await ask(self._api, self.request, "GET", path, query)

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        """Have the API do something, and return its answer. Raises Problem."""
        return (await call(self._api, self.request, method, path, body={} if body is None else body)).value

    async def form(self) -> dict[str, str]:
        """Return the fields of the form that was sent; the last of equal names. Raises Problem."""
        return await self.request.form()

    def link(self, **changes: Any) -> str:
        """Return this page's address with changed parameters; None takes one out. It begins with the first page."""
        query = {name: value for name, value in (self.filter | changes).items() if value is not None}
        path: str = self.request.scope["raw_path"].decode("latin-1")
        return f"{path}?{urlencode(query)}" if query else path

    def render(self, template: str, *, status: int = 200, more: Headers = (), **values: Any) -> Answer:
        """Return a page made of a template, with `more` headers."""
        values |= {
            "csrf": self.request.csrf,
            "done": self.query.get("done"),
            "language": self.language,
            "languages": LANGUAGES.values(),
            "view": self,
        }
        headers = PAGE_HEADERS
        if self.query.get("lang"):
            cookie = f"{LANGUAGE_COOKIE}={self.language.code}; Path=/; Max-Age={_YEAR_S}; SameSite=Strict; HttpOnly"
            headers = (*headers, (b"set-cookie", cookie.encode()))
        if self.live:
            body = self._templates.render_block(template, _LIVE, values)
        else:
            body = self._templates.render(template, values)
        return Answer(status=status, body=body, content_type=HTML, headers=(*headers, *more))

    def redirect(self, address: str, *, done: str | None = None) -> Answer:
        """Return to a page of the window after an act; `done` names the words that it shows."""
        if done is not None:
            address += ("&" if "?" in address else "?") + urlencode({"done": done})
        location = (b"location", address.encode())
        return Answer(status=HTTPStatus.SEE_OTHER, content_type=HTML, headers=(*PAGE_HEADERS, location))

    def problem(self, error: Exception) -> Answer:
        """Return the page that says what went wrong."""
        problem = as_problem(error)
        more = tuple((name.encode(), value.encode()) for name, value in problem.headers.items())
        return self.render(
            "problem.html", status=problem.status, more=more, problem=problem, request_id=self.request.id
        )


def field(name: str, summary: str) -> Param:
    """A field of a form that may be left empty; None then. The API checks what is in it."""

    def read(text: str, _: int) -> str | None:
        if len(text) > FIELD_CHARS or "\0" in text:
            raise ValueError(f"must have at most {FIELD_CHARS} characters, and none of them NUL")
        return text or None

    return Param(name=name, summary=summary, read=read, schema={"type": "string", "maxLength": FIELD_CHARS})


PageHandler = Callable[[View], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """One page: a row of the table before it has the templates and the API."""

    method: str
    path: str
    access: Access
    handler: PageHandler
    query: Query = NO_QUERY
    live: bool = False
    """Whether it has a part that is asked for again and again."""


def page(
    method: str, path: str, access: Access, *, query: Query = NO_QUERY, live: bool = False
) -> Callable[[PageHandler], PageRow]:
    """Make a function a page."""

    def row(handler: PageHandler) -> PageRow:
        return PageRow(method=method, path=path, access=access, handler=handler, query=query, live=live)

    return row


def make_route(row: PageRow, api: Router, templates: Templates) -> Route:
    """Return the row of the table of routes."""

    async def handle(request: Request) -> Reply:
        _set_language(request)
        live = row.live and b"hx-request" in request.headers

        async def make(request: Request) -> Answer:
            reply = await row.handler(View(request, api, templates, live=live))
            assert isinstance(reply, Answer)
            return reply

        if live:
            return await request.cached(make, _LIVE, CURRENT.get().code, str(request.caller.scope))
        return await row.handler(View(request, api, templates, live=False))

    def on_problem(request: Request, error: Exception) -> Answer:
        if not wants_page(request):
            return problem_answer(error, request.id)
        _set_language(request)
        return View(request, api, templates, live=False).problem(error)

    return Route(
        method=row.method,
        path=row.path,
        access=row.access,
        handler=handle,
        page=True,
        on_problem=on_problem,
        summary=" ".join((row.handler.__doc__ or "").split()),
        responses={200: Response(summary="OK", media=(HTML,))},
        query=replace(row.query, params=(*row.query.params, *_OWN)),
    )


def _set_language(request: Request) -> None:
    language = choose_language(
        asked=request.query.get("lang"),
        remembered=cookie_of(request.headers, LANGUAGE_COOKIE),
        accepted=request.headers.get(b"accept-language", b"").decode("latin-1"),
    )
    CURRENT.set(language)
    NOW_MS.set(request.services.now_ms())
