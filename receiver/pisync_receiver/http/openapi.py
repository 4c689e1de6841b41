"""The OpenAPI 3.1 document, made from the table of routes and the wire's types."""

import re
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from pisync_common import __version__
from pisync_common.limits import SEQ_MAX, SITE_CHARS
from pisync_common.problems import CONTENT_TYPE
from pisync_common.rules import ID_PATTERN
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Param, text_schema
from pisync_receiver.http.reference import make_page
from pisync_receiver.http.responses import JSON, Answer, ProblemBody
from pisync_receiver.http.routing import Response, Route

_REF: Final = "#/components/schemas/{name}"
_NUMBER: Final = {"type": "integer", "minimum": 1, "maximum": SEQ_MAX}
_IN_PATH: Final[dict[str, dict[str, object]]] = {
    "device_id": {"type": "string", "pattern": ID_PATTERN},
    "site": {"type": "string", **text_schema(SITE_CHARS)},
}
_PATH_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_TITLE: Final = "PiSync receiver"
_ABOUT: Final = (
    "Stores what devices recorded offline before it answers, and answers questions about it. "
    "Every error is application/problem+json (RFC 9457). Unknown fields in bodies are ignored, unknown query "
    "parameters are refused. Bodies may be gzip (Content-Encoding)."
)
_PUBLISHER: Final = {
    "contact": {"name": "The PiSync maintainers"},
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_LINK: Final = {
    "description": 'The next page, if there is one: `<...>; rel="next"`.',
    "schema": {"type": "string"},
}


_TOTAL: Final = {"description": "How many rows all pages have.", "schema": {"type": "integer", "minimum": 0}}
_ETAG: Final = {"description": "Name it in If-None-Match the next time.", "schema": {"type": "string"}}
_IF_NONE_MATCH: Final = Param(
    name="If-None-Match",
    summary="The ETag of an earlier answer; if it still holds, 304 is answered without a body.",
    read=lambda text, _: text,
    schema={"type": "string"},
)


def make_documents(routes: Sequence[Route], *, auth: bool) -> tuple[Answer, Answer]:
    """Return the document, and the page that shows it. `auth` says whether tokens are asked for."""
    document = make_document(routes, auth=auth)
    return Answer(body=msgspec.json.encode(document)), make_page(document, auth=auth)


def make_document(routes: Sequence[Route], *, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for `routes`, without pages."""
    routes = [route for route in routes if not route.page]
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, auth=auth)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": __version__, "description": _ABOUT, **_PUBLISHER},
        "servers": [{"url": "/", "description": "The receiver that serves this document."}],
        "tags": [{"name": name, "description": about} for name, about in dict(map(_tag, routes)).items()],
        "paths": paths,
        "components": {"schemas": components},
    }
    if auth:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    _close_tuples(document)
    return document


def _close_tuples(schema: Any) -> None:
    """Write a pair as an array of two of its kind: many tools refuse `items: false`, which says the same."""
    if isinstance(schema, dict):
        if schema.get("items") is False:
            schema["items"] = schema["prefixItems"][0]
        for part in schema.values():
            _close_tuples(part)
    elif isinstance(schema, list):
        for part in schema:
            _close_tuples(part)


def _tag(route: Route) -> tuple[str, str]:
    """Return a route's resource, which is the module its handler is in, and what that says of itself."""
    module = route.handler.__module__
    about, _, _ = (sys.modules[module].__doc__ or "").partition("\n")
    return module.rpartition(".")[2].replace("_", "-"), about


def _types(routes: Sequence[Route]) -> list[Any]:
    types: dict[str, Any] = {_key(ProblemBody): ProblemBody}
    for route in routes:
        for kind in (
            route.request_body,
            *route.extra_schemas,
            *(documented.body for documented in route.responses.values()),
        ):
            if kind is not None:
                types[_key(kind)] = kind
    return list(types.values())


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(route: Route, schema_of: Mapping[str, Any], *, auth: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "tags": [_tag(route)[0]],
        "summary": route.summary,
        "description": f"For: {route.access.value}.",
        "parameters": _parameters(route),
        "responses": {str(status): _response(documented, schema_of) for status, documented in route.responses.items()},
    }
    if route.method == "GET" and 200 in route.responses:
        operation["responses"]["200"].setdefault("headers", {})["ETag"] = _ETAG
        operation["responses"]["304"] = {"description": "The answer that If-None-Match names still holds."}
    if route.request_body is not None:
        content = {JSON: {"schema": schema_of[_key(route.request_body)]}}
        if route.example is not None:
            content[JSON]["example"] = route.example
        operation["requestBody"] = {"required": True, "content": content}
    operation["security"] = [{"token": []}] if auth and route.access is not Access.PUBLIC else []
    for status in _problem_statuses(route, auth=auth):
        operation["responses"].setdefault(str(status), _problem(status, schema_of))
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _IN_PATH.get(name, _NUMBER)}
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    headers = (*route.headers, _IF_NONE_MATCH) if route.method == "GET" else route.headers
    return (
        in_path
        + [_parameter(param, "query") for param in route.query.params]
        + [_parameter(param, "header") for param in headers]
    )


def _parameter(param: Param, place: str) -> dict[str, Any]:
    documented = {"name": param.name, "in": place, "description": param.summary, "schema": dict(param.schema)}
    return documented | {"required": True} if param.required else documented


def _response(documented: Response, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    schema = {} if documented.body is None else {"schema": schema_of[_key(documented.body)]}
    content = {media: schema if media == JSON else {} for media in documented.media}
    response: dict[str, Any] = {"description": documented.summary, "content": content}
    if documented.pages:
        response["headers"] = {"Link": _LINK}
        if documented.total:
            response["headers"]["PiSync-Total"] = _TOTAL
    return response


def _problem_statuses(route: Route, *, auth: bool) -> list[int]:
    """Every problem that follows from the row; 500 stands for a fault of the receiver itself."""
    statuses = {400, 500, *route.problems}  # 400: every route refuses query parameters that it does not know
    if auth and route.access is not Access.PUBLIC:
        statuses |= {401, 403, 503}
    if auth and route.access in (Access.DEVICE, Access.OWNER):
        statuses |= {429}
    if route.request_body is not None:
        statuses |= {408, 413, 415, 429, 503}
    return sorted(statuses)


def _problem(status: int, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {CONTENT_TYPE: {"schema": schema_of[_key(ProblemBody)]}},
    }
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response
