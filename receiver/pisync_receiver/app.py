"""The app: the table of routes, behind one layer that gives a request its id, its log line and its problem."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from pisync_receiver.api import table
from pisync_receiver.auth import Gate, TokenSource
from pisync_receiver.body import BodyLimits, BodyReader, Disconnected
from pisync_receiver.caching import Cache
from pisync_receiver.census import Census
from pisync_receiver.conditional import Answers
from pisync_receiver.errors import Problem
from pisync_receiver.export import AT_ONCE
from pisync_receiver.forwarded import Networks, client_address
from pisync_receiver.intake import Intake
from pisync_receiver.limits import Limits, spending
from pisync_receiver.logs import REQUEST_ID, TRACE, told
from pisync_receiver.metrics import Metrics
from pisync_receiver.openapi import make_documents
from pisync_receiver.problems import answer_to
from pisync_receiver.readiness import Readiness
from pisync_receiver.refusals import Refusals
from pisync_receiver.routing import Exchange, Route, mount
from pisync_receiver.services import Services
from pisync_receiver.store import Store
from pisync_receiver.tracing import trace_of

log = logging.getLogger(__name__)
access_log = logging.getLogger("pisync_receiver.access")

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NO_ROUTE: Final = "no such page"
_GONE: Final = 499
"""The status that stands in the log for a caller that went away; nobody receives it."""


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """What a deployment may choose."""

    auth: bool = True
    """False lets anyone do anything; the caller has made sure that only loopback can reach the app."""
    body: BodyLimits = field(default_factory=BodyLimits)
    trusted_proxies: Networks = ()
    """Gateways that may say who is calling."""


def create_app(
    *,
    store: Store,
    intake: Intake,
    tokens: TokenSource,
    metrics: Metrics,
    now_ms: Callable[[], int],
    new_request_id: Callable[[], str],
    settings: AppSettings,
    readiness: Readiness | None = None,
    cache: Cache | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.perf_counter,
    extra_routes: Sequence[Route] = (),
    on_start: Callable[[], Awaitable[None]] | None = None,
    on_stop: Callable[[], Awaitable[None]] | None = None,
) -> ASGIApp:
    """Put the receiver together. The app starts and closes `intake` in its lifespan.

    `cache` hears of commits from whoever made `intake`; without one every GET is a query. `limits` are those of
    devices; None lets each come as often as it likes. `extra_routes` come before the table's own (a benchmark's
    yardstick, say). `on_start` runs after the intake has started, `on_stop` before it closes. `clock` measures seconds
    for the log.
    """
    routes = [*extra_routes, *table()]
    services = Services(
        answers=Answers(cache, metrics),
        store=store,
        intake=intake,
        tokens=tokens,
        bodies=BodyReader(settings.body),
        metrics=metrics,
        readiness=readiness or Readiness(intake),
        census=Census(store, metrics, clock=clock),
        exports=asyncio.Semaphore(AT_ONCE),
        documents=make_documents(routes, auth=settings.auth),
        now_ms=now_ms,
    )
    gate = Gate(
        tokens,
        required=settings.auth,
        now_ms=now_ms,
        refused=Refusals(intake).note,
        spend=spending(limits),
    )

    router = Router(
        [*mount(routes, services, gate), StarletteRoute("/{path:path}", _Nowhere())],
        redirect_slashes=False,
        lifespan=_lifespan(intake, on_start, on_stop),
    )
    return Edge(
        router, metrics=metrics, clock=clock, new_request_id=new_request_id, trusted_proxies=settings.trusted_proxies
    )


def _lifespan(
    intake: Intake, on_start: Callable[[], Awaitable[None]] | None, on_stop: Callable[[], Awaitable[None]] | None
) -> Callable[[ASGIApp], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: ASGIApp) -> AsyncIterator[None]:
        intake.start()
        try:
            if on_start is not None:
                await on_start()
            yield
        finally:
            if on_stop is not None:
                await on_stop()
            await intake.close()

    return lifespan


class Edge:
    """The outermost layer: request id, problems, metrics and the access line."""

    def __init__(
        self,
        inner: ASGIApp,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
        new_request_id: Callable[[], str],
        trusted_proxies: Networks = (),
    ) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock
        self._new_request_id = new_request_id
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._id_of(headers)
        trace = TRACE.set(trace_of(headers.get(b"traceparent")) or "")
        exchange = scope["pisync"] = Exchange(headers, ((b"x-request-id", request_id.encode()),))
        previous = REQUEST_ID.set(request_id)
        started = self._clock()
        try:
            await self._inner(scope, receive, send)
        except Disconnected:
            exchange.status = _GONE
        except Exception as error:
            if exchange.started:
                raise  # half an answer is on its way; the server breaks the connection, and the caller sees it
            await self._send_problem(error, exchange, scope, send)
        finally:
            self._record(exchange, scope, self._clock() - started)
            REQUEST_ID.reset(previous)
            TRACE.reset(trace)

    def _id_of(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return self._new_request_id()

    async def _send_problem(self, error: Exception, exchange: Exchange, scope: Scope, send: Send) -> None:
        answer = answer_to(error)
        exchange.status = answer.status
        exchange.started = True
        await answer.send(send, exchange.extra, with_body=scope["method"] != "HEAD")

    def _record(self, exchange: Exchange, scope: Scope, seconds: float) -> None:
        # The template and never the path: a path is whatever a caller typed.
        route = _NO_ROUTE if exchange.route is None else exchange.route.path
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.request(route, method, exchange.status)
        if access_log.isEnabledFor(logging.INFO):
            caller = exchange.caller
            line: dict[str, object] = {"method": method, "route": route, "status": exchange.status}
            line["ms"] = round(seconds * 1000, 2)
            if (client := client_address(scope, exchange.headers, self._trusted_proxies)) is not None:
                line["client"] = client
            if caller.device_id is not None:
                line["device_id"] = caller.device_id
            told(access_log, "request", line)


class _Nowhere:
    """Every path that no row names."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise Problem(404, "not_found", "there is no such page; /docs lists every call")
