"""The table of routes: what a row says.

A row names its path, method, access, handler, and what it takes and answers; authorization, reading of parameters and
the OpenAPI document all come from the row. A row without `access` cannot be written.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, get_args, get_origin

from pisync_receiver.http import exporting
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import NO_QUERY, Param, Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import JSON, Answer, Reply

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class Response:
    """A documented answer: its type (None for no fixed type) in each media type."""

    summary: str
    body: Any = None
    media: Sequence[str] = (JSON,)
    pages: bool = False
    """Whether a Link header leads to the next page."""
    total: bool = False
    """Whether a header says how many rows all pages have."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One row of the table."""

    method: str
    path: str
    access: Access
    handler: Handler
    summary: str
    responses: Mapping[int, Response]
    request_body: type | None = None
    extra_schemas: Sequence[type] = ()
    """Further types that the schema of `request_body` refers to by name."""
    example: Mapping[str, Any] | None = None
    """A body, for the document."""
    query: Query = field(default=NO_QUERY)
    rows: type | None = None
    """Of a list: what its rows are; it can be exported (see `exporting`)."""
    headers: Sequence[Param] = ()
    """Request headers the document names."""
    page: bool = False
    """A page for people: it takes a session and no token (see `pages`), and is left out of the OpenAPI document."""
    on_problem: Callable[[Request, Exception], Answer] | None = None
    """Of a page: makes the page that says what went wrong."""
    problems: Sequence[int] = ()
    """Problem statuses beyond those that follow from `access`, `request_body` and `query`."""


def route(
    method: str,
    path: str,
    access: Access,
    *,
    answer: Any = None,
    status: int = 200,
    media: Sequence[str] = (JSON,),
    pages: bool = False,
    total: bool = False,
    **fields: Any,
) -> Callable[[Handler], Route]:
    """Make a handler a row; its docstring is the summary. `answer` is the type of its only answer, with `status`. A
    list can be exported: `exporting` does it, from the pages that the handler makes."""

    rows = get_args(answer)[0] if method == "GET" and get_origin(answer) is list else None
    if rows is not None:
        fields["query"] = Query(params=(*fields.get("query", NO_QUERY).params, *exporting.PARAMS))
        fields["problems"] = (*fields.get("problems", ()), 406, 501)
        media = exporting.MEDIA

    def row(handler: Handler) -> Route:
        documented = Response(summary=HTTPStatus(status).phrase, body=answer, media=media, pages=pages, total=total)
        summary = " ".join((handler.__doc__ or "").split())
        return Route(
            method=method,
            path=path,
            access=access,
            handler=handler,
            summary=summary,
            responses={status: documented},
            rows=rows,
            **fields,
        )

    return row
