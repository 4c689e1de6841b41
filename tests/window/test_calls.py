"""Calls of the API by pages: refused as a token's call is refused, and told apart from exports and pages."""

import asyncio
from typing import Any, cast

import pytest
from starlette.types import Message

from pisync_receiver.api import table
from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access, Caller, Gate
from pisync_receiver.http.edge import Router
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import json_answer
from pisync_receiver.http.routing import Route, route
from pisync_receiver.window.calls import call

SITE_ADMIN = Caller(scope="admin", sites=("Nakuru",))


@route("GET", "/api/echo/{name}", Access.READER, answer=dict)
async def echo(request: Request) -> Any:
    """Answer with what arrived."""
    headers = ((b"link", b'</api/echo/x?limit=2&cursor=a%2Fb%3D>; rel="next"'),)
    return json_answer({"name": request.path["name"], "caller": request.caller.scope}, headers=headers)


def router(*routes: Route, required: bool = True) -> Router:
    gate = Gate(cast(Any, None), required=required, now_ms=lambda: 0, on_ended=cast(Any, None))
    return Router(routes or table(), gate)


def page_of(caller: Caller) -> Request:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    class Services:
        now_ms = staticmethod(lambda: 0)

    scope = {"type": "http", "headers": [(b"authorization", b"Bearer psa_x")], "client": None}
    page = Request(scope, receive, "made", cast(Any, Services()))
    page.caller = caller
    return page


@pytest.mark.parametrize("path", sorted({row.path for row in table() if row.access in (Access.ADMIN, Access.CHIEF)}))
def test_a_viewer_gets_no_further_than_its_scope(path: str) -> None:
    for row in table():
        if row.path == path and row.access in (Access.ADMIN, Access.CHIEF):
            caller = SITE_ADMIN if row.access is Access.CHIEF else Caller(scope="viewer")
            with pytest.raises(Problem) as refused:
                asyncio.run(call(router(), page_of(caller), row.method, path.replace("{", "").replace("}", "")))
            assert refused.value.status == 403


@pytest.mark.parametrize("scope", ["device", "metrics"])
def test_scopes_that_open_no_session_get_nothing(scope: Any) -> None:
    with pytest.raises(Problem, match="this call is for: admin, viewer"):
        asyncio.run(call(router(echo), page_of(Caller(scope=scope)), "GET", "/api/echo/x"))


def test_a_call_has_the_caller_of_its_page_and_the_cursor_of_the_next() -> None:
    found = asyncio.run(call(router(echo), page_of(Caller(scope="viewer")), "GET", "/api/echo/a%2Fb"))
    assert found.value == {"name": "a/b", "caller": "viewer"}
    assert found.next == "a/b="


@pytest.mark.parametrize(("query", "code"), [({"nothing": 1}, "unknown_parameter"), ({}, "not_found")])
def test_what_the_api_refuses_is_refused(query: dict[str, Any], code: str) -> None:
    path = "/api/echo/x" if query else "/api/nothing"
    with pytest.raises(Problem) as refused:
        asyncio.run(call(router(echo), page_of(Caller(scope="viewer")), "GET", path, query))
    assert refused.value.problem_code == code
