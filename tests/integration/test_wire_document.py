"""The examples of docs/wire.md, run in order against the real receiver."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.live_receiver import live_receiver

DOCUMENT: Final = Path(__file__).parents[2] / "docs/wire.md"
ANY: Final = "…"
"""Stands for a value that differs each time."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request or an answer as the document shows it."""

    first_line: str
    headers: dict[str, str]
    body: str


def examples() -> list[tuple[Message, Message]]:
    """Return the document's requests with their answers."""
    blocks = re.findall(r"^```http\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    messages = [message(block) for block in blocks]
    return list(zip(messages[::2], messages[1::2], strict=True))


def message(block: str) -> Message:
    head, _, body = block.partition("\n\n")
    first_line, *rows = head.strip().splitlines()
    return Message(first_line=first_line, headers=dict(row.split(": ", 1) for row in rows), body=body)


def matches(shown: Any, actual: Any) -> bool:
    """Compare what the document shows with what came, `…` being anything."""
    if shown == ANY:
        return actual is not None
    if isinstance(shown, dict) and isinstance(actual, dict):
        return shown.keys() == actual.keys() and all(matches(value, actual[key]) for key, value in shown.items())
    if isinstance(shown, list) and isinstance(actual, list):
        return len(shown) == len(actual) and all(map(matches, shown, actual))
    return bool(shown == actual)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    with live_receiver(tmp_path_factory.mktemp("wire")) as live:
        admin = live.client("admin")
        code = admin.post("/api/enrollment-codes", json={"uses": 1, "expires_in": "1h"}).json()["code"]
        yield live.client(None), {"$CODE": code, "$VIEWER": live.secrets["viewer"]}


def test_every_example_is_answered_as_shown(receiver: tuple[httpx.Client, dict[str, str]]) -> None:
    client, values = receiver
    for request, answer in examples():
        method, target = request.first_line.split()
        filled = {name: fill(value, values) for name, value in request.headers.items()}
        got = client.request(method, target, headers=filled, content=fill(request.body, values).encode())

        assert got.status_code == int(answer.first_line), (request.first_line, got.text)
        for name, value in answer.headers.items():
            assert matches(value, got.headers.get(name, "").partition(";")[0] or None), (request.first_line, name)
        assert matches(json.loads(answer.body), got.json()), (request.first_line, got.text)
        if target == "/api/enroll":
            values["$TOKEN"] = got.json()["token"]


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def test_the_document_names_every_limit() -> None:
    from pisync_common import limits

    text = DOCUMENT.read_text()
    for value in (limits.BATCH_EVENTS, limits.ID_CHARS, limits.OBJECT_ID_CHARS, limits.RECEIPT_RANGES):
        assert f"{value:,}" in text
    assert f"{limits.BODY_BYTES // limits.MIB} MiB" in text
    assert f"{limits.DECODED_BYTES // limits.MIB} MiB" in text
    assert f"{limits.DATA_BYTES // limits.KIB} KiB" in text


@pytest.mark.parametrize(("shown", "actual"), [({"a": 1}, {"a": 1, "b": 2}), ({"a": ANY}, {}), ([1], [1, 1]), (1, "1")])
def test_a_difference_from_the_document_is_noticed(shown: Any, actual: Any) -> None:
    assert not matches(shown, actual)
