"""The page that shows the OpenAPI document to people: each call with its parameters, and with a line of curl and of
Python that can be run as it stands. It needs no script and no other host."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pisync_common.rules import ID_PATTERN
from pisync_receiver.http.params import DURATION_PATTERN
from pisync_receiver.http.responses import JSON, Answer

_TEMPLATE: Final = Path(__file__).with_name("reference.html")
_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem;background:Canvas;color:CanvasText}
h1,h2,h3{line-height:1.25;overflow-wrap:anywhere}
h2{border-top:2px solid;padding-top:1rem;margin-top:2.5rem}
h3{margin:2rem 0 .25rem}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;padding:0}
nav a{display:inline-block;padding:.25rem 0}
code,pre{font:14px/1.4 ui-monospace,monospace}
p code,th code{overflow-wrap:anywhere}
pre{overflow:auto;border:1px solid GrayText;border-radius:4px;padding:.5rem;margin:.5rem 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;min-width:30rem;width:100%}
th,td{border-bottom:1px solid GrayText;padding:.25rem .5rem .25rem 0;text-align:start;vertical-align:top}
tbody th{font-weight:normal}
em,.for{font-size:.875rem}
"""
CLIENT: Final = (
    "import httpx, os\n"
    'authorization = {"Authorization": f"Bearer {os.environ[\'TOKEN\']}"}\n'
    'client = httpx.Client(base_url=os.environ["PISYNC"], headers=authorization)'
)
"""What the lines of Python need before them."""
_IN_PATH: Final = {"device_id": "pibook-0042", "site": "Hill%20School"}
_GIVEN: Final = {"limit": 2, "learner_id": "s-17"}
"""Values of parameters in examples: of `limit`, and of those that are required."""
_PATTERNS: Final = {
    DURATION_PATTERN: "a length of time such as 30m, 12h, 3d",
    ID_PATTERN: "up to 128 of A-Z a-z 0-9 . _ : @ + -",
}


def make_page(document: Mapping[str, Any], *, auth: bool) -> Answer:
    """Return the page of a document."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    calls = [
        _call(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        info=document["info"],
        auth=auth,
        client=CLIENT,
        style=Markup(_STYLE),  # noqa: S704 - our own, and the policy names its hash
        tags=[{**tag, "calls": [call for call in calls if call["tag"] == tag["name"]]} for tag in document["tags"]],
        types=[_type(name, schema) for name, schema in document["components"]["schemas"].items()],
    )
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'"
    return Answer(
        body=html.encode(),
        content_type="text/html; charset=utf-8",
        headers=((b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff")),
    )


def _call(path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    status = next(iter(operation["responses"]))
    content: Mapping[str, Any] = operation["responses"][status].get("content", {})
    answer = content.get(JSON, {}).get("schema", {})
    body: Mapping[str, Any] = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
    return {
        "id": operation["operationId"],
        "tag": operation["tags"][0],
        "method": method.upper(),
        "path": path,
        "summary": operation["summary"],
        "access": operation["description"],
        "fields": [_field(each["name"], each["schema"], each) for each in operation["parameters"]],
        "body": next(iter(_links(body.get("schema", {}))), None),
        "status": status,
        "answer": next(iter(_links(answer)), None),
        "is_list": answer.get("type") == "array",
        "media": ", ".join(media for media in content if media != JSON),
        "problems": ", ".join(status for status in operation["responses"] if status >= "400"),
        **_examples(path, method, operation, body.get("example")),
    }


def _examples(path: str, method: str, operation: Mapping[str, Any], body: object) -> dict[str, str]:
    """Return a call as a line for a shell and as a line of Python."""
    where = re.sub(r"\{(\w+)\}", lambda name: _IN_PATH.get(name[1], "1"), path)
    query = {
        each["name"]: _GIVEN[each["name"]]
        for each in operation["parameters"]
        if each["in"] == "query" and (each["name"] == "limit" or each.get("required"))
    }
    address = f"$PISYNC{where}" + (f"?{urlencode(query)}" if query else "")
    curl = ["curl", "--fail-with-body"]
    python = [json.dumps(where)] + ([f"params={query!r}"] if query else [])
    if operation["security"]:
        curl.append('-H "Authorization: Bearer $TOKEN"')
    if body is not None:
        curl.append(f"--json {shlex.quote(json.dumps(body))}")  # its method is POST
        python.append(f"json={body!r}")
    if method != ("get" if body is None else "post"):
        curl.append(f"-X {method.upper()}")
    read = ".json()" if method != "get" or JSON in next(iter(operation["responses"].values()))["content"] else ".text"
    return {
        "curl": " ".join([*curl, f'"{address}"']),
        "python": f"client.{method}({', '.join(python)}).raise_for_status(){read}",
    }


def _type(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    fields = [
        _field(field, described, {"required": field in required})
        for field, described in schema.get("properties", {}).items()
    ]
    return {"name": name, "description": schema.get("description", ""), "fields": fields}


def _field(name: str, schema: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    default = schema.get("default")
    return {
        "name": name,
        "required": about.get("required", False),
        "default": "" if default is None else json.dumps(default).strip('"'),
        "allowed": _allowed(schema),
        "links": _links(schema),
        "what": about.get("description", ""),
    }


def _allowed(schema: Mapping[str, Any]) -> str:
    """Return a schema's type and limits in words; a pattern only where it says more than its length does."""
    parts: list[str] = []
    if "enum" in schema:
        parts.append(", ".join(map(str, schema["enum"])))
    elif isinstance(kind := schema.get("type"), str) and kind != "object":
        parts.append(
            {"string": "text", "integer": "whole number", "array": "list", "boolean": "true, false"}.get(kind, kind)
        )
    if (form := schema.get("format")) is not None:
        parts.append(form)
    if "minimum" in schema or "maximum" in schema:
        parts.append(
            f"{schema.get('minimum', ''):,} to {schema.get('maximum', ''):,}"
            if "maximum" in schema
            else f"from {schema['minimum']:,}"
        )
    if "maxLength" in schema:
        parts.append(f"up to {schema['maxLength']:,} characters")
    elif (pattern := schema.get("pattern")) in _PATTERNS:
        parts.append(_PATTERNS[pattern])
    if "maxItems" in schema:
        parts.append(f"up to {schema['maxItems']:,}")
    if inner := _allowed(schema["items"]) if isinstance(schema.get("items"), Mapping) else "":
        parts.append(f"of {inner}")
    parts += [inner for each in schema.get("anyOf", ()) if (inner := _allowed(each))]
    return "; ".join(dict.fromkeys(parts))


def _links(schema: Mapping[str, Any]) -> list[str]:
    """Return the types that a schema refers to."""
    found = re.findall(r"#/components/schemas/(\w+)", json.dumps(schema))
    return list(dict.fromkeys(found))
