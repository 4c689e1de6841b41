"""The table of routes: what a row says, and how a call is carried out by it.

A row names its path, method, who may call it, its handler, and what it takes and answers; authorization, reading of
parameters and the OpenAPI document all come from the row. A row without `who` cannot be written.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from pisync_receiver.answers import Reply
from pisync_receiver.auth import NOBODY, Caller, Gate, Who
from pisync_receiver.errors import Problem
from pisync_receiver.marks import Mark
from pisync_receiver.params import Param, Query

if TYPE_CHECKING:
    from pisync_receiver.services import Services

Handler = Callable[["Request"], Awaitable[Reply]]


@dataclass(frozen=True, kw_only=True)
class Gives:
    """One documented answer: its type (None for no fixed type) in each media type."""

    about: str
    body: Any = None
    media: Sequence[str] = ("application/json",)
    pages: bool = False
    """Whether the next page stands in a Link header."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One row of the table."""

    method: str
    path: str
    who: Who
    handler: Handler
    about: str
    gives: Mapping[int, Gives]
    takes: type | None = None
    mentions: Sequence[type] = ()
    """Further types that the schema of `takes` refers to by name."""
    query: Query = field(default=Query())
    headers: Sequence[Param] = ()
    """Request headers the document names."""
    depends: Callable[[Mapping[str, Any]], Mark | None] | None = None
    """For GET: what the answer depends on, by the query's values; None for nothing that a commit changes. A row
    without it answers of the moment and gives no ETag."""
    problems: Sequence[int] = ()
    """Problem statuses beyond those that follow from `who`, `takes` and `query`."""


class Exchange:
    """What the outermost layer and the route tell each other about one request."""

    __slots__ = ("caller", "extra", "headers", "route", "started", "status")

    def __init__(self, headers: dict[bytes, bytes], extra: tuple[tuple[bytes, bytes], ...]) -> None:
        self.headers = headers
        self.extra = extra
        """Headers that go with the answer, whatever it is."""
        self.caller: Caller = NOBODY
        self.route: Route | None = None
        self.status = 0
        self.started = False


class Request:
    """What a handler gets."""

    __slots__ = ("_receive", "caller", "headers", "path", "route", "scope", "services")

    def __init__(
        self, services: "Services", route: Route, caller: Caller, exchange: Exchange, scope: Scope, receive: Receive
    ) -> None:
        self.services = services
        self.route = route
        self.caller = caller
        self.headers = exchange.headers
        self.path: dict[str, str] = scope["path_params"]
        self.scope = scope
        self._receive = receive

    async def body(self) -> bytes:
        """The decoded JSON body. Raises Problem 400, 408, 413, 415 or 429, or Overloaded."""
        return await self.services.bodies.json(self.headers, self._receive, self.caller.device_id)

    async def gone(self) -> None:
        """Returns when the caller has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def query(self) -> dict[str, Any]:
        """The route's query parameters by name. Raises Problem 400."""
        return self.route.query.read(self.scope["query_string"], self.services.now_ms())


class Resource:
    """All methods of one path, as an ASGI app."""

    def __init__(self, path: str, routes: Sequence[Route], services: "Services", gate: Gate) -> None:
        self.path = path
        self._by_method = {route.method: route for route in routes}
        if "GET" in self._by_method:
            self._by_method["HEAD"] = self._by_method["GET"]
        self._allow = ", ".join(sorted(self._by_method))
        self._services = services
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["pisync"]
        method = scope["method"]
        route = self._by_method.get(method)
        if route is None:
            detail = f"this page takes {self._allow} only"
            raise Problem(405, "method_not_allowed", detail, headers={"Allow": self._allow})
        exchange.route = route
        exchange.caller = caller = await self._gate.admit(route.who, exchange.headers, scope["path_params"])
        answer = await self._services.answers.give(Request(self._services, route, caller, exchange, scope, receive))
        exchange.status = answer.status
        exchange.started = True
        await answer.send(send, exchange.extra, with_body=method != "HEAD")


def mount(routes: Sequence[Route], services: "Services", gate: Gate) -> list[StarletteRoute]:
    """The table as Starlette's routes, one a path, in the table's order: the busiest stand first."""
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        rows = by_path.setdefault(route.path, [])
        if any(row.method == route.method for row in rows):
            raise ValueError(f"{route.method} {route.path} stands in the table twice")
        rows.append(route)
    return [StarletteRoute(path, Resource(path, rows, services, gate)) for path, rows in by_path.items()]
