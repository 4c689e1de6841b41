"""The receiver with one more route: a JSON POST by a device that is decoded and answered, and nothing else.

It passes through the same server, middleware, routing, authorization and body reading as every other call, so what is
between it and `POST /api/sync-event` is the work of storing. Takes the arguments of `pisync-receiver`; with `UNMETERED`
in the environment it counts nothing that /metrics shows.
"""

import functools
import os
import sys
from typing import Any

import msgspec

from pisync_receiver import cli, server
from pisync_receiver.answers import Answer
from pisync_receiver.app import create_app
from pisync_receiver.auth import Who
from pisync_receiver.metrics import Metrics
from pisync_receiver.routing import Gives, Request, Route

PATH = "/api/noop"
UNMETERED = "PISYNC_BENCH_UNMETERED"


async def noop(request: Request) -> Answer:
    msgspec.json.decode(await request.body())
    return Answer(status=201, body=b"{}")


def route() -> Route:
    gives = {201: Gives(about="Nothing.", body=dict[str, Any])}
    return Route(method="POST", path=PATH, who=Who.DEVICE, handler=noop, about="Nothing.", takes=dict, gives=gives)


class Nothing:
    """What nobody counts."""

    def inc(self) -> None: ...


class Unmetered(Metrics):
    """Hears of everything and counts none of it."""

    def __init__(self, *registry: Any) -> None:
        super().__init__(*registry)
        self.sync_events = Nothing()  # type: ignore[assignment]

    def request(self, route: str, method: str, status: int) -> None: ...

    def receipt(self, stored: int, duplicates: int, rejected: int) -> None: ...

    def group(self, size: int, waited: float, writing: float) -> None: ...

    def answer(self, found: str) -> None: ...

    def refused(self, reason: str) -> None: ...


if __name__ == "__main__":
    if UNMETERED in os.environ:
        server.Metrics = Unmetered  # type: ignore[assignment,attr-defined]
    server.create_app = functools.partial(create_app, extra_routes=[route()])  # type: ignore[attr-defined]
    sys.exit(cli.main())
