"""The API's answers without a network: a call carried out in this process, on the database opened read-only.

So a command's rows, filters, limits and refusals are those of the API, and cannot drift from it. It works while the
receiver serves, and while it does not.
"""

import argparse
import asyncio
import random
import re
import time
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import quote, unquote, urlencode

import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Scope

from pisync_common.times import now_ms
from pisync_receiver.api import table
from pisync_receiver.app import AppSettings, create_app
from pisync_receiver.auth import Tokens
from pisync_receiver.errors import Problem
from pisync_receiver.intake import Intake, IntakeLimits
from pisync_receiver.metrics import Metrics
from pisync_receiver.params import Param
from pisync_receiver.store import Reader, Store

DEVICES: Final = "/api/devices"
HISTORY: Final = "/api/sync-event/device/{device_id}/sync-history"
FAILURES: Final = "/api/sync-event/devices/repeated-failures"

_NEXT_CURSOR = re.compile(r"<[^>]*[?&]cursor=([^&>]+)[^>]*>; *rel=\"?next")


@dataclass(frozen=True, kw_only=True)
class Page:
    """An array of rows; `cursor` is where the next page begins, None after the last one."""

    rows: list[dict[str, Any]]
    cursor: str | None


def params_of(path: str) -> list[Param]:
    """The query parameters of the API's route `path`."""
    return next(list(route.query.params) for route in table() if route.path == path and route.method == "GET")


def add_flags(parser: argparse.ArgumentParser, path: str) -> None:
    """Give `parser` a flag for each query parameter of `path`."""
    for param in params_of(path):
        default = "" if param.default is None else f" (default: {param.default})"
        parser.add_argument(
            "--" + param.name.replace("_", "-"),
            dest=param.name,
            metavar=_metavar(param),
            help=(param.about + default).replace("%", "%%"),
        )


def query_of(arguments: argparse.Namespace, path: str) -> dict[str, str]:
    """The query that the command line asked for."""
    given = {param.name: getattr(arguments, param.name) for param in params_of(path)}
    return {name: value for name, value in given.items() if value is not None}


def read_page(reader: Reader, path: str, query: dict[str, str], **in_path: str) -> Page:
    """One page of `path`'s answer. Raises Problem, as the API answers it."""
    status, headers, body = asyncio.run(_get(_app(cast(Store, reader)), path.format(**in_path), urlencode(query)))
    if status != 200:
        problem = msgspec.json.decode(body)
        raise Problem(status, problem["type"].rpartition(":")[2], problem["detail"])
    link = _NEXT_CURSOR.search(headers.get(b"link", b"").decode())
    return Page(rows=msgspec.json.decode(body), cursor=unquote(link[1]) if link else None)


def _metavar(param: Param) -> str:
    options = param.schema.get("enum")
    if isinstance(options, list):
        return "|".join(str(option) for option in options)
    return {"integer": "N", "boolean": "true|false"}.get(str(param.schema.get("type")), param.name.upper())


def _app(store: Store) -> ASGIApp:
    """The receiver's own app without its gate, its intake never started: it can only read."""
    metrics = Metrics(CollectorRegistry())
    return create_app(
        store=store,
        intake=Intake(store, limits=IntakeLimits(), clock=time.monotonic, random=random.random),
        tokens=Tokens(),
        metrics=metrics,
        now_ms=now_ms,
        new_request_id=lambda: "command",
        settings=AppSettings(auth=False),
    )


async def _get(app: ASGIApp, path: str, query: str) -> tuple[int, dict[bytes, bytes], bytes]:
    head: dict[str, Any] = {}
    body = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            body.extend(message.get("body", b""))

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return head["status"], dict(head["headers"]), bytes(body)
