"""The OpenAPI 3.1 document, made from the table of routes and the wire's types, and the page that shows it."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from typing import Any, Final

import msgspec

from pisync_common import __version__
from pisync_common.problems import CONTENT_TYPE
from pisync_common.rules import ID_PATTERN
from pisync_receiver.auth import Who
from pisync_receiver.params import Param
from pisync_receiver.problems import ProblemBody
from pisync_receiver.routing import Gives, Route

_REF: Final = "#/components/schemas/{name}"
_PATH_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_TITLE: Final = "PiSync receiver"
_ABOUT: Final = (
    "Takes what devices recorded offline, stores it before it answers, and answers about it. "
    "Every error is application/problem+json (RFC 9457). Unknown fields and query parameters are ignored. "
    "Bodies may be gzip (Content-Encoding)."
)
_LINK: Final = {
    "description": 'The next page, if there is one: `<...>; rel="next"`.',
    "schema": {"type": "string"},
}


_ETAG: Final = {"description": "What If-None-Match may name the next time.", "schema": {"type": "string"}}
_IF_NONE_MATCH: Final = Param(
    name="If-None-Match",
    about="The ETag of an answer at hand; if it still holds, 304 comes instead of it.",
    read=lambda text, _: text,
    schema={"type": "string"},
)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The document as JSON and as a page; `policy` is the page's Content-Security-Policy."""

    openapi: bytes
    page: bytes
    policy: str


def make_documents(routes: Sequence[Route], *, auth: bool) -> Documents:
    """Everything there is to read about `routes`. `auth` says whether tokens are asked for."""
    document = make_document(routes, auth=auth)
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return Documents(
        openapi=msgspec.json.encode(document),
        page=_page(document).encode(),
        policy=f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'",
    )


def make_document(routes: Sequence[Route], *, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for `routes`."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, auth=auth)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": components},
    }
    if auth:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _types(routes: Sequence[Route]) -> list[Any]:
    types: dict[str, Any] = {_key(ProblemBody): ProblemBody}
    for route in routes:
        for kind in (route.takes, *route.mentions, *(gives.body for gives in route.gives.values())):
            if kind is not None:
                types[_key(kind)] = kind
    return list(types.values())


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(route: Route, schema_of: Mapping[str, Any], *, auth: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.about,
        "description": f"For: {route.who.value}.",
        "parameters": _parameters(route),
        "responses": {str(status): _response(gives, schema_of) for status, gives in route.gives.items()},
    }
    if route.depends is not None:
        operation["responses"]["200"].setdefault("headers", {})["ETag"] = _ETAG
        operation["responses"]["304"] = {"description": "The answer that If-None-Match names still holds."}
    if route.takes is not None:
        content = {"application/json": {"schema": schema_of[_key(route.takes)]}}
        operation["requestBody"] = {"required": True, "content": content}
    if auth and route.who is not Who.ANYONE:
        operation["security"] = [{"token": []}]
    for status in _problem_statuses(route, auth=auth):
        operation["responses"].setdefault(str(status), _problem(status, schema_of))
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": ID_PATTERN}}
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    headers = route.headers if route.depends is None else (*route.headers, _IF_NONE_MATCH)
    return (
        in_path
        + [_parameter(param, "query") for param in route.query.params]
        + [_parameter(param, "header") for param in headers]
    )


def _parameter(param: Param, place: str) -> dict[str, Any]:
    return {"name": param.name, "in": place, "description": param.about, "schema": dict(param.schema)}


def _response(gives: Gives, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    schema = {} if gives.body is None else {"schema": schema_of[_key(gives.body)]}
    content = {media: schema if media == "application/json" else {} for media in gives.media}
    response: dict[str, Any] = {"description": gives.about, "content": content}
    if gives.pages:
        response["headers"] = {"Link": _LINK}
    return response


def _problem_statuses(route: Route, *, auth: bool) -> list[int]:
    """Every problem that follows from the row; 500 stands for a fault of the receiver itself."""
    statuses = {500, *route.problems}
    if auth and route.who is not Who.ANYONE:
        statuses |= {401, 403, 503}
    if auth and route.who in (Who.DEVICE, Who.OWNER):
        statuses |= {429}
    if route.query.params:
        statuses |= {400}
    if route.takes is not None:
        statuses |= {400, 408, 413, 415, 429, 503}
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


_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#f4f4f4;padding:1rem;overflow:auto}"
    "section{border-top:1px solid #ccc;padding:.5rem 0}table{border-collapse:collapse}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}"
)


def _page(document: Mapping[str, Any]) -> str:
    info = document["info"]
    calls = [
        _call(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<main><h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>\n<h2>Calls</h2>\n{"".join(calls)}'
        f"<h2>Types</h2>\n{''.join(schemas)}</main></body></html>\n"
    )


def _call(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<tr><th scope=row><code>{escape(row['name'])}</code></th><td>{escape(row['in'])}</td>"
        f"<td>{escape(row.get('description', ''))}</td></tr>\n"
        for row in operation["parameters"]
    )
    answers = "".join(
        f"<tr><th scope=row>{status}</th><td>{escape(response['description'])}</td>"
        f"<td>{escape(', '.join(response.get('content', ())))} {_links(response.get('content', {}))}</td></tr>\n"
        for status, response in sorted(operation["responses"].items())
    )
    body = operation.get("requestBody", {}).get("content", {})
    return (
        f"<section><h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation['summary'])} "
        f"{escape(operation['description'])}</p>"
        + (f"<p>Body: {_links(body)}</p>" if body else "")
        + (f"<table><caption>Parameters</caption>{parameters}</table>" if parameters else "")
        + f"<table><caption>Answers</caption>{answers}</table></section>\n"
    )


def _schema(name: str, schema: object) -> str:
    text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3><pre>{escape(text)}</pre></section>\n'


def _links(content: Mapping[str, Any]) -> str:
    names = sorted(set(re.findall(r"#/components/schemas/(\w+)", str(content))))
    return ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)
