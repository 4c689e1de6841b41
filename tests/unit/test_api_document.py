"""The table of routes and what is made of it: the document, and a page without scripts or other hosts."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pisync_receiver import errors
from pisync_receiver.api import table
from pisync_receiver.api.decoding import decode_body
from pisync_receiver.http.auth import Access
from pisync_receiver.http.edge import Router
from pisync_receiver.http.openapi import make_document, make_documents
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, as_problem, json_answer
from pisync_receiver.http.routing import Response, Route

ROOT = Path(__file__).parents[2]
RECEIVER = ROOT / "receiver/pisync_receiver"


async def handler(request: Request) -> Answer:
    return json_answer(None)


def test_a_route_without_access_cannot_be_made() -> None:
    fields: dict[str, Any] = {"method": "GET", "path": "/x", "handler": handler, "summary": "x", "responses": {}}
    Route(access=Access.PUBLIC, **fields)
    with pytest.raises(TypeError, match="access"):
        Route(**fields)


def test_a_route_cannot_stand_in_the_table_twice() -> None:
    row = Route(access=Access.PUBLIC, method="GET", path="/x", handler=handler, summary="x", responses={})
    nothing: Any = None
    with pytest.raises(ValueError, match="GET /x"):
        Router([row, row], nothing)


def test_the_document_has_every_route_and_every_problem_that_follows_from_it() -> None:
    document = make_document(table(), auth=True)
    assert document["openapi"] == "3.1.0"
    for route in table():
        operation = document["paths"][route.path][route.method.lower()]
        statuses = set(operation["responses"])
        assert {str(status) for status in route.responses} <= statuses
        assert operation["security"] == ([] if route.access is Access.PUBLIC else [{"token": []}])
        if route.access is not Access.PUBLIC:
            assert {"401", "403"} <= statuses
        assert "400" in statuses
        if route.request_body is not None:
            assert {"400", "408", "413", "415", "503"} <= statuses
        assert "application/problem+json" in operation["responses"]["500"]["content"]


def test_the_document_without_auth_asks_for_no_token() -> None:
    document = make_document(table(), auth=False)
    assert "securitySchemes" not in document["components"]
    assert all("401" not in op["responses"] for methods in document["paths"].values() for op in methods.values())


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = make_document(table(), auth=True)
    references = set(re.findall(r"#/components/schemas/(\w+)", msgspec.json.encode(document).decode()))
    assert references <= set(document["components"]["schemas"])
    names = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(names) == len(set(names))


def every_schema(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of the document."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from every_schema(inner)


@pytest.mark.parametrize("auth", [True, False])
def test_the_document_keeps_the_rules_of_common_linters(auth: bool) -> None:
    """What spectral and redocly found, so that it stays mended without them (scripts/lint-api runs them)."""
    document = make_document(table(), auth=auth)
    info = document["info"]
    assert info["contact"]["name"]
    assert info["license"]["identifier"] == "Apache-2.0"
    assert document["servers"] == [{"url": "/", "description": "The receiver that serves this document."}]
    tags = [tag["name"] for tag in document["tags"]]
    assert all(tag["description"] for tag in document["tags"])
    assert tags == [
        *("sync-events", "events", "learners", "enrollment", "fleet", "devices", "device-acts", "notes", "notices"),
        "sums",
        "tokens",
        "audit",
        "operations",
    ]
    for path, methods in document["paths"].items():
        assert not path.endswith("/")
        for operation in methods.values():
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation["operationId"])
            assert [tag in tags for tag in operation["tags"]] == [True]
            assert isinstance(operation["security"], list)
            assert any(status.startswith("4") for status in operation["responses"])
            assert operation["summary"]
            assert operation["description"]
    for schema in every_schema(document):
        assert not isinstance(schema.get("items"), bool)
        assert schema.get("type") != "array" or "items" in schema
        if "prefixItems" in schema:
            assert schema["minItems"] == schema["maxItems"] == len(schema["prefixItems"])


def test_the_page_needs_no_script_no_other_host_and_only_the_style_its_policy_names() -> None:
    answer = make_documents(table(), auth=True)[1]
    page, policy = answer.body.decode(), dict(answer.headers)[b"content-security-policy"].decode()
    assert "<script" not in page
    links = re.findall(r"(?:\ssrc=|\shref=|\saction=|url\()\s*[\"']?([^\"'\s>]*)", page)
    assert {link for link in links if not link.startswith("#")} == {"/openapi.json"}
    assert set(re.findall(r"https?://[a-z.]+", page)) == {"https://pisync.example.org"}
    assert " style=" not in page
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy


def test_the_page_names_every_route_and_every_type() -> None:
    page = make_documents(table(), auth=True)[1].body.decode()
    for route in table():
        assert f"{route.method} {route.path}" in page
    for name in make_document(table(), auth=True)["components"]["schemas"]:
        assert f'id="{name}"' in page


def test_every_body_has_an_example_that_is_accepted() -> None:
    for route in table():
        if route.request_body is not None:
            assert route.example is not None, route.path
            decode_body(route.request_body, msgspec.json.encode(route.example))


OPERATIONS = [
    "post_sync_event",
    "sync_history",
    "repeated_failures",
    "post_events",
    "get_events",
    "get_timeline",
    "erase_learner",
    "enroll",
    "create_code",
    "list_codes",
    "end_code",
    "get_overview",
    "list_sites",
    "get_site",
    "change_site",
    "list_incomplete",
    "list_devices",
    "get_device",
    "change_device",
    "get_completeness",
    "ask_for_sync",
    "revoke_device",
    "list_rejected",
    "list_conflicts",
    "list_sites_of_device",
    "list_suspicious",
    "list_notes_of_device",
    "add_note_to_device",
    "list_notes_of_site",
    "add_note_to_site",
    "list_transitions",
    "list_notices",
    "list_causes",
    "list_runs",
    "list_speeds",
    "list_activity",
    "create_token",
    "list_tokens",
    "revoke_token",
    "rotate_token",
    "get_audit",
    "healthz",
    "readyz",
    "get_metrics",
    "retain",
    "openapi",
    "docs",
]
"""Generated clients name their functions after these."""


def test_operations_keep_their_ids() -> None:
    document = make_document(table(), auth=True)
    names = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    assert set(OPERATIONS) - names == set()


def test_what_the_page_shows_is_escaped() -> None:
    planted = Route(
        access=Access.PUBLIC,
        method="GET",
        path="/x",
        handler=handler,
        summary="<script>alert(1)</script>",
        responses={200: Response(summary="<b>")},
    )
    page = make_documents([planted], auth=True)[1].body.decode()
    assert "<script" not in page
    assert "<b>" not in page


def test_the_table_of_problems_has_each_code_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    table = {(code, int(status)) for code, status in rows}
    assert len(table) == len(rows)
    assert table == written_problems() | raised_problems() | {("token_revoked", 401), ("token_expired", 401)}


def written_problems() -> set[tuple[str, int]]:
    """Return what the sources of the API say."""
    sources = [*(RECEIVER / "api").glob("*.py"), *(RECEIVER / "http").glob("*.py")]
    text = "".join(source.read_text() for source in sources if source.name != "pages.py")  # pages are for people
    return {(code, int(status)) for status, code in re.findall(r'Problem\(\s*(\d+),\s*"(\w+)"', text)}


def raised_problems() -> set[tuple[str, int]]:
    """Return what the receiver's own errors become."""
    found = set()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ReceiverError) and kind is not errors.Problem:
            error = kind.__new__(kind)
            error.retry_after = 1  # type: ignore[attr-defined]
            problem = as_problem(error)
            found.add((problem.problem_code, problem.status))
    return found
