"""The receiver with one more route: a JSON POST by a device that is decoded and answered, and nothing else.

It passes through the same server, middleware, routing, authorization and body reading as every other call, so what is
between it and `POST /api/sync-event` is the work of storing. Takes the arguments of `pisync-receiver`.
"""

import functools
import sys
from typing import Any

import msgspec

from pisync_receiver import cli, server
from pisync_receiver.answers import Answer
from pisync_receiver.app import create_app
from pisync_receiver.auth import Who
from pisync_receiver.routing import Gives, Request, Route

PATH = "/api/noop"


async def noop(request: Request) -> Answer:
    msgspec.json.decode(await request.body())
    return Answer(status=201, body=b"{}")


def route() -> Route:
    gives = {201: Gives(about="Nothing.", body=dict[str, Any])}
    return Route(method="POST", path=PATH, who=Who.DEVICE, handler=noop, about="Nothing.", takes=dict, gives=gives)


if __name__ == "__main__":
    server.create_app = functools.partial(create_app, extra_routes=[route()])  # type: ignore[attr-defined]
    sys.exit(cli.main())
