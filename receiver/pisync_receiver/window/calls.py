"""Calls of the API that pages make: the same routes, access checks and parameters, without a connection in between."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import msgspec
from starlette.types import Message

from pisync_receiver.http.edge import Router
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import JSON, Answer, Reply, encode

_NEXT: Final = re.compile(r'<([^>]*)>; rel="next"')


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a call answered."""

    value: Any
    """Its JSON, decoded."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def next(self) -> str | None:
        """The cursor of the next page."""
        link = _NEXT.search(self.headers.get("link", ""))
        return parse_qs(urlsplit(link[1]).query)["cursor"][0] if link else None


async def call(
    api: Router, page: Request, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
) -> Result:
    """Make a call of the API for the caller of `page`. Parameters that are None are left out. Raises Problem, and
    whatever the handler raises."""
    reply = await answer(api, page, method, path, query, body)
    assert isinstance(reply, Answer), "only an export streams"
    return Result(
        value=msgspec.json.decode(reply.body) if reply.body else None,
        headers={name.decode(): value.decode("latin-1") for name, value in reply.headers},
    )


async def answer(
    api: Router, page: Request, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
) -> Reply:
    """Return what the API answers to a call, an export perhaps, which must then be sent. Raises as `call` does."""
    given = {name: _text(value) for name, value in (query or {}).items() if value is not None}
    content = b"" if body is None else encode(body)
    headers = [] if body is None else [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(content))]
    scope = {
        **page.scope,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(given).encode(),
        "headers": headers,
    }
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}
        await page.gone()
        return {"type": "http.disconnect"}

    request = Request(scope, receive, page.id, page.services)
    request.caller = page.caller
    return await api.answer_call(request)


def path_of(template: str, *parameters: object) -> str:
    """Return a path whose `{}` are filled with percent-encoded parameters."""
    return template.format(*(quote(str(parameter), safe="") for parameter in parameters))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
