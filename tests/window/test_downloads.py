"""Lists as files, for people who have signed in."""

import csv
import io
import json

import pytest

from pisync_receiver.window.downloads import LISTS
from tests.support.fleet_of_schools import GAP
from tests.support.live_receiver import Live
from tests.support.people import Person, sign_in, words


@pytest.fixture(scope="module")
def admin(fleet: Live) -> Person:
    return sign_in(fleet)


def test_a_filtered_list_is_a_file_with_every_row(admin: Person) -> None:
    page = admin.get("/devices?state=silent&search=").text
    assert 'href="/download/devices?format=csv&amp;state=silent"' in page
    answer = admin.get("/download/devices?format=csv&state=silent")
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 107
    assert {row["state"] for row in rows} == {"silent"}


@pytest.mark.parametrize("name", sorted(LISTS))
def test_every_list_is_there_as_lines_of_json(admin: Person, name: str) -> None:
    of_device = f"&device_id={GAP}" if "{}" in LISTS[name] else ""
    answer = admin.get(f"/download/{name}?format=ndjson&limit=3{of_device}")
    assert answer.status_code == 200, words(answer.text)
    assert all(isinstance(json.loads(line), dict) for line in answer.text.splitlines())


def test_a_wrong_list_or_filter_is_a_page_in_words(admin: Person) -> None:
    assert admin.get("/download/tokens").status_code == 404
    assert admin.get("/download/history").status_code == 404
    assert admin.get("/download/history?device_id=../pibook-1").status_code == 404
    refused = admin.get("/download/sites?cloned=true")
    assert refused.status_code == 400
    assert "unknown parameter" in words(refused.text)


def test_a_person_of_some_sites_downloads_these_alone(fleet: Live) -> None:
    assert sign_in(fleet, "site viewer").get("/download/devices?format=ndjson").text == ""
