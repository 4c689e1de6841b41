"""The fleet's answers over HTTP, by a fleet whose truth is known."""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import asdict

from tests.support.fleet_of_schools import (
    CLONED,
    DEVICES,
    FAILING_SCHOOL,
    INCOMPLETE,
    MISSING,
    SCHOOLS,
    SILENT_SCHOOLS,
    STATES,
    fill,
)
from tests.support.live_receiver import NOW_MS, Live, live_receiver


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("fleet")) as running:
        running.run(fill(running.store, now_ms=NOW_MS))
        yield running


@pytest.fixture
def get(live: Live) -> Any:
    client = live.client("viewer")

    def get(path: str, **query: str) -> Any:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return get


def test_overview_counts_every_device_once(get: Any) -> None:
    overview = get("/api/overview")
    assert overview["devices"] == asdict(STATES)
    assert (overview["incomplete"], overview["cloned"]) == (INCOMPLETE, CLONED)
    assert (overview["events_missing"], overview["sites"], overview["sites_in_need"]) == (MISSING, len(SCHOOLS), 3)


def test_schools_that_fail_as_a_whole_stand_first(get: Any) -> None:
    sites = get("/api/sites", limit="1000")
    assert {site["site"] for site in sites[:3]} == {*SILENT_SCHOOLS, *FAILING_SCHOOL}
    assert [site["in_need"] for site in sites[:4]] == [True, True, True, False]
    (failing,) = (site for site in sites if site["site"] in FAILING_SCHOOL)
    assert failing["causes"] == [{"code": "dns", "devices": 33}]
    assert sum(site["devices"] for site in sites) == DEVICES
