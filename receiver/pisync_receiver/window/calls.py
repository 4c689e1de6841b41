"""Calls of the API that pages make: the same routes, access checks and parameters, without a connection in between."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import msgspec
from starlette.types import Message

from pisync_receiver.errors import Problem
from pisync_receiver.http.edge import Router
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import JSON, Answer, Reply, encode

_OF_THE_CONNECTION: Final = (b"host", b"x-forwarded-for", b"x-forwarded-proto")
"""What a call needs to know of how the page was reached."""
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
    reply = await ask(api, page, method, path, query, body)
    if not isinstance(reply, Answer) or reply.content_type != JSON:
        raise Problem(406, "not_acceptable", "this call answers with something else than JSON")
    return Result(
        value=msgspec.json.decode(reply.body) if reply.body else None,
        headers={name.decode(): value.decode("latin-1") for name, value in reply.headers},
    )


async def ask(
    api: Router, page: Request, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
) -> Reply:
    """Return the answer of a call as it is, a file say. See `call`."""
    given = {name: _text(value) for name, value in (query or {}).items() if value is not None}
    content = b"" if body is None else encode(body)
    headers = [(name, value) for name, value in page.scope["headers"] if name in _OF_THE_CONNECTION]
    if body is not None:
        headers += [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(content))]
    scope = {
        **page.scope,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(given).encode(),
        "headers": headers,
    }

    sent = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive() -> Message:
        if (message := next(sent, None)) is None:  # an export waits for its reader to go away
            await page.gone()
            return {"type": "http.disconnect"}
        return message

    request = Request(scope, receive, page.id, page.services)
    request.caller = page.caller
    return await api.answer_call(request)


def path_of(template: str, *parameters: object) -> str:
    """Return a path whose `{}` are filled with percent-encoded parameters."""
    return template.format(*(quote(str(parameter), safe="") for parameter in parameters))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
