"""The pages' own files: where those of other projects come from, their weight, and how they are served."""

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pisync_receiver.window.statics import FOLDER, Statics
from tests.support.live_receiver import Live, live_receiver

OWN: Final = {"app.css", "app.js", "icon.svg", "sheet.css"}
FIRST_LOAD: Final = 120_000
"""Bytes of every file and a large page, compressed."""
PAGE: Final = 20_000


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("statics")) as running:
        yield running


def listed() -> dict[str, list[str]]:
    """Return the rows of the list by file."""
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", (FOLDER / "VENDORED.md").read_text(), re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in rows}


def test_every_file_of_another_project_is_listed_with_its_hashes_and_licence() -> None:
    files = {file.name for file in FOLDER.iterdir() if file.suffix in (".js", ".css", ".svg")}
    assert set(listed()) == files - OWN
    for name, (source, licence, sha256, integrity) in listed().items():
        content = (FOLDER / name).read_bytes()
        assert sha256 == f"`{hashlib.sha256(content).hexdigest()}`", name
        assert integrity == f"`sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}`", name
        assert re.search(r" \d+\.\d+\.\d+, `dist/", source), name
        (text,) = re.findall(r"`(.+?)`", licence)
        assert (FOLDER / text).read_text().strip(), name


def test_a_first_load_is_light() -> None:
    weight = sum(len(gzip.compress(file.read_bytes(), 9)) for file in FOLDER.iterdir() if file.suffix != ".md")
    assert weight + PAGE <= FIRST_LOAD


def test_a_file_is_kept_for_ever_under_the_address_of_its_content(live: Live) -> None:
    address = Statics().address("app.css")
    content = (FOLDER / "app.css").read_bytes()
    answer = live.client(None).get(address)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers.get_list("Cache-Control") == ["public, max-age=31536000, immutable"]
    assert answer.headers["Vary"] == "accept-encoding"
    assert answer.content == content
    plain = live.client(None, **{"Accept-Encoding": "identity"}).get(address)
    assert "Content-Encoding" not in plain.headers
    assert plain.content == content


@pytest.mark.parametrize("name", ["app.css", "app.000000000000.css", "..%2Frendering.py", "VENDORED.md"])
def test_nothing_else_is_served(live: Live, name: str) -> None:
    assert live.client(None).get(f"/static/{name}").status_code == 404


def test_a_file_that_changes_has_another_address(tmp_path: Path) -> None:
    (tmp_path / "app.css").write_text("a{}")
    before = Statics(tmp_path).address("app.css")
    (tmp_path / "app.css").write_text("b{}")
    assert Statics(tmp_path).address("app.css") != before
