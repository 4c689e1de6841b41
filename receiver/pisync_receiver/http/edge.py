"""The way of a request: its id, its route and caller, its answer or problem, metrics and the access line."""

import asyncio
import itertools
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from msgspec.structs import replace
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from pisync_common.times import format_ms
from pisync_common.wire import NONCE_HEADER
from pisync_receiver.errors import Overloaded, Problem
from pisync_receiver.http import exporting
from pisync_receiver.http.auth import Gate
from pisync_receiver.http.pages import admit_page
from pisync_receiver.http.request import Request, Services
from pisync_receiver.http.responses import Answer, Disconnected, Headers, Reply, Stream, problem_answer, with_etag
from pisync_receiver.http.routing import Route
from pisync_receiver.logs import REQUEST, JsonLines, encode, trace_of

NONCE: Final = NONCE_HEADER.lower().encode()
BUSY_SECONDS: Final = 30
"""The shortest Retry-After of a connection too many; up to as long again comes on top."""
FLUSH_SECONDS: Final = 1.0
"""How long an access line waits for others: a write for each takes 14% of a small request."""
FLUSH_LINES: Final = 256
"""About 64 KiB."""
_GIVEN: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_NONCE: Final = re.compile(rb"([A-Za-z0-9._-]{1,64})(?:, *\1)?")  # a gateway may double it in one line
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REFUSALS: Final = range(400, 503)
"""Statuses that take a turn in the intake; 503 does not, because the intake or the store could not serve it."""
_NO_ROUTE: Final = "unknown"
_GONE: Final = 499
"""The status in the log for a caller that went away; it is never sent."""

Handle = Callable[[Request], Awaitable[Reply]]


async def refuse_busy(request: Request) -> Reply:
    """Refuse a connection too many."""
    after = BUSY_SECONDS + random.randrange(BUSY_SECONDS)  # noqa: S311 - it spreads callers, it keeps no secret
    raise Overloaded("too many connections; nothing was stored; try again later", retry_after=after)


class _Resource:
    """All methods of one path."""

    def __init__(self, path: str) -> None:
        self.pattern: re.Pattern[str] = compile_path(path)[0]
        self.fixed = "{" not in path
        self.by_method: dict[str, Route] = {}

    def add(self, route: Route) -> None:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            if method in self.by_method:
                raise ValueError(f"{method} {route.path} stands in the table twice")
            self.by_method[method] = route

    def route(self, method: str) -> Route:
        if (route := self.by_method.get(method)) is not None:
            return route
        allowed = ", ".join(sorted(self.by_method))
        raise Problem(405, "method_not_allowed", f"method not allowed; allowed: {allowed}", headers={"Allow": allowed})


class Router:
    """Finds a request's route, lets its caller in, and has its handler answer."""

    def __init__(self, routes: Sequence[Route], gate: Gate) -> None:
        by_path: dict[str, _Resource] = {}
        for route in routes:
            by_path.setdefault(route.path, _Resource(route.path)).add(route)
        # Nearly all calls are POSTs to fixed paths: a look-up in a dict spares them a regular expression a route.
        self._fixed = {path.encode(): resource for path, resource in by_path.items() if resource.fixed}
        self._patterns = [resource for resource in by_path.values() if not resource.fixed]
        self._gate = gate

    async def answer(self, request: Request) -> Reply:
        """Answer a request. Raises Problem, and whatever the handler raises."""
        route = self._find(request)
        if not route.page:
            request.caller = await self._gate.admit(
                route.access, request.headers, request.path, local=request.local, address=request.address
            )
            reply = await self._handle(route, request)
        else:
            reply = await self._answer_page(route, request)
        if route.method == "GET" and reply.status == 200 and isinstance(reply, Answer):
            return with_etag(reply, request.headers.get(b"if-none-match"))
        return reply

    async def answer_call(self, request: Request) -> Reply:
        """Answer a call of the API that a page makes for its caller, who is known. Raises as `answer` does."""
        route = self._find(request)
        self._gate.check(route.access, request.caller, request.path)
        return await self._handle(route, request)

    async def _answer_page(self, route: Route, request: Request) -> Reply:
        try:
            if (instead := await admit_page(request, route)) is not None:
                return instead
            return await self._handle(route, request)
        except Disconnected:
            raise
        except Exception as error:
            if route.on_problem is None:
                raise
            return route.on_problem(request, error)

    def _find(self, request: Request) -> Route:
        method: str = request.scope["method"]
        resource = self._fixed.get(request.scope["raw_path"]) or self._matching(request)
        route = resource.by_method.get(method) or resource.route(method)
        request.route = route.path
        request.takes_body = route.request_body is not None
        return route

    async def _handle(self, route: Route, request: Request) -> Reply:
        request.query = route.query.read(request.scope["query_string"], request.services.now_ms())
        if route.rows is None:
            return await route.handler(request)
        if (form := exporting.wanted(request)) is not None:
            return await exporting.export(request, route.handler, route.rows, form)
        page = await route.handler(request)
        return replace(page, headers=(*page.headers, (b"vary", b"accept"))) if isinstance(page, Answer) else page

    def _matching(self, request: Request) -> _Resource:
        """Match the path as it was sent: a path has one spelling, so a gateway that denies it denies it whole. Only a
        parameter may be percent-encoded."""
        path = request.scope["raw_path"].decode("latin-1")
        for resource in self._patterns:
            if match := resource.pattern.match(path):
                with suppress(UnicodeDecodeError):
                    request.path = {name: unquote(text, errors="strict") for name, text in match.groupdict().items()}
                    return resource
        raise Problem(404, "not_found", "no such endpoint; see /docs")


class Edge:
    """The receiver as an ASGI app around `handle`, which answers a request or raises."""

    def __init__(
        self,
        handle: Handle,
        services: Services,
        *,
        access_log: JsonLines | None,
        request_prefix: str | None = None,
        extra: Headers = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Request ids begin with `request_prefix`. `extra` headers go with every answer. `clock` measures seconds."""
        self._handle = handle
        self._services = services
        self._access_log = access_log
        # Unique over all processes; asking the system for random bytes each time takes 3% of a small request.
        self._request_prefix = request_prefix or secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._extra = extra
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the receiver is started and stopped by its composition root"
        started = self._clock()
        request = Request(scope, receive, f"{self._request_prefix}-{next(self._numbers):x}", self._services)
        headers = request.headers
        if (given := headers.get(b"x-request-id")) is not None and _GIVEN.fullmatch(given):
            request.id = given.decode()
        extra = self._extra
        if (nonce := headers.get(NONCE)) is not None and (match := _NONCE.fullmatch(nonce)):
            extra = (*extra, (NONCE, match[1]))
        if b"traceparent" in headers:
            request.trace = trace_of(headers[b"traceparent"])
        REQUEST.set((request.id, request.trace))  # uvicorn gives each request a context of its own
        status = _GONE
        try:
            try:
                reply = await self._handle(request)
            except Disconnected:
                return
            except Exception as error:
                reply = problem_answer(error, request.id)
            status = reply.status
            if request.takes_body and status in _REFUSALS:
                await self._services.intake.turn()
            if isinstance(reply, Stream):
                await reply.send(send, extra, with_body=scope["method"] != "HEAD")
            else:
                head = [*extra, *reply.headers]
                if status != HTTPStatus.NOT_MODIFIED:
                    head.append((b"content-type", reply.content_type.encode()))
                    head.append((b"content-length", b"%d" % len(reply.body)))
                await send({"type": "http.response.start", "status": status, "headers": head})
                await send({"type": "http.response.body", "body": reply.body if scope["method"] != "HEAD" else b""})
        except Disconnected:
            status = _GONE
        finally:
            self._record(request, status, self._clock() - started)

    def _record(self, request: Request, status: int, seconds: float) -> None:
        # The template and never the path: a caller can type anything into a path.
        route = request.route or _NO_ROUTE
        method = request.scope["method"]
        if method not in _METHODS:
            method = "other"
        self._services.metrics.request(route, method, status)
        if self._access_log is None:
            return
        line: dict[str, object] = {
            "time": format_ms(int(time.time() * 1000)),
            "level": "INFO",
            "logger": "pisync_receiver.access",
            "message": "request",
            "request_id": request.id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
        }
        if request.trace is not None:
            line["trace_id"] = request.trace
        if request.address is not None:
            line["client"] = request.address
        if request.caller.device_id is not None:
            line["device_id"] = request.caller.device_id
        elif request.caller.token_id is not None:
            line["token_id"] = request.caller.token_id
        pending, flush = self._access_log.pending, self._access_log.flush
        pending.append(encode(line).decode())
        if len(pending) >= FLUSH_LINES:
            flush()
        elif len(pending) == 1:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, flush)
