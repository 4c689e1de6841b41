"""The fleet's answers by API, metrics and commands, for a fleet whose truth is known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from msgspec.structs import asdict

from pisync_common.times import format_ms
from pisync_receiver.commands import cli
from pisync_receiver.domain.submissions import DeviceChange
from tests.support.fleet_of_schools import (
    CLONED,
    DEVICES,
    FAILING,
    FAILING_SCHOOL,
    GAP,
    INCOMPLETE,
    MISSING,
    SCHOOLS,
    SILENT_SCHOOLS,
    STATES,
    fill,
    school_of,
)
from tests.support.live_receiver import NOW_MS, OTHER, SITE, Live, live_receiver
from tests.support.submissions import DAY, sync_event

DEAD = {*SILENT_SCHOOLS, *FAILING_SCHOOL}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("fleet")) as running:
        running.run(fill(running.store, now_ms=NOW_MS))
        yield running


@pytest.fixture
def viewer(live: Live) -> httpx.Client:
    return live.client("viewer")


def get(client: httpx.Client, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_overview_counts_every_device_once(viewer: httpx.Client) -> None:
    overview = get(viewer, "/api/overview")
    assert overview["at"] == format_ms(NOW_MS)
    assert overview["devices"] == asdict(STATES)
    assert sum(overview["devices"].values()) == DEVICES
    assert (overview["incomplete"], overview["cloned"]) == (INCOMPLETE, CLONED)
    assert (overview["events_missing"], overview["sites"], overview["sites_in_need"]) == (MISSING, len(SCHOOLS), 3)
    assert overview["today"]["runs"] > overview["today"]["failed"] > 0
    assert overview["delay"] == [{"hours": 1, "events": sum(delay["events"] for delay in overview["delay"])}]


def test_metrics_count_the_same(live: Live, viewer: httpx.Client) -> None:
    lines = live.client("metrics").get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for state, devices in asdict(STATES).items():
        assert float(values[f'pisync_devices{{health="{state}"}}']) == devices
    assert float(values["pisync_devices_incomplete"]) == INCOMPLETE
    assert float(values["pisync_devices_cloned"]) == CLONED
    assert float(values["pisync_sites_in_need"]) == 3
    for school, devices in SILENT_SCHOOLS.items():
        assert float(values[f'pisync_site_devices{{health="silent",site="{school}"}}']) == devices
    troubled = {site["site"] for site in get(viewer, "/api/sites", limit=1000) if site["failing"] + site["silent"]}
    assert len([name for name in values if name.startswith("pisync_site_devices")]) == 4 * len(troubled)


def test_commands_count_the_same(live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(live.secrets["viewer"])
    where = ["--url", live.url, "--token-file", str(file)]

    def printed(*arguments: str) -> str:
        assert cli.main([*arguments, *where]) == cli.DONE
        return capsys.readouterr().out

    assert json.loads(printed("overview", "--json"))["devices"] == asdict(STATES)
    text = printed("overview")
    assert "2,000 devices: 1,746 well, 119 failing, 107 silent, 25 new, 3 retired" in text
    assert "60 sites: 3 in need" in text
    for school in DEAD:
        assert school in "".join(printed("sites", "--limit", "3").splitlines()[1:])
    assert max(map(len, text.splitlines())) <= 80
    assert "108-120" in printed("incomplete")
    assert len(printed("devices", "--state", "silent", "--limit", "1000").splitlines()) == 1 + STATES.silent


def test_schools_that_fail_as_a_whole_stand_first(viewer: httpx.Client) -> None:
    sites = get(viewer, "/api/sites", limit=1000)
    assert {site["site"] for site in sites[:3]} == DEAD
    assert [site["in_need"] for site in sites[:4]] == [True, True, True, False]
    by_name = {site["site"]: site for site in sites}
    for school, devices in SILENT_SCHOOLS.items():
        assert (by_name[school]["silent"], by_name[school]["need"]) == (devices, devices)
        assert format_ms(NOW_MS - 10 * DAY) < by_name[school]["since"] < format_ms(NOW_MS - 9 * DAY)
    (failing,) = FAILING_SCHOOL
    assert by_name[failing]["causes"] == [{"code": "dns", "devices": 33}]
    for state, devices in asdict(STATES).items():
        assert sum(site[state] for site in sites) == devices
    pages = [get(viewer, "/api/sites", limit=1000, sort=sort) for sort in ("need", "site")]
    assert sorted(site["site"] for site in pages[0]) == [site["site"] for site in pages[1]]


def test_devices_by_state_say_their_number_on_every_page(viewer: httpx.Client) -> None:
    for state, devices in asdict(STATES).items():
        for sort in ("device_id", "last_contact", "failures", "site"):
            path: str | None = f"/api/devices?state={state}&limit=60&sort={sort}"
            seen: list[str] = []
            while path is not None:
                answer = viewer.get(path)
                assert answer.headers["PiSync-Total"] == str(devices)
                assert {row["state"] for row in answer.json()} == {state}
                seen += [row["device_id"] for row in answer.json()]
                path = answer.links["next"]["url"] if "next" in answer.links else None
            assert len(set(seen)) == devices


def test_device_says_its_state_and_since_when(viewer: httpx.Client) -> None:
    device = get(viewer, f"/api/devices/{FAILING}")
    assert (device["state"], device["since"], device["last_errors"]) == (
        "failing",
        device["failing_since"],
        {"timeout": 2},
    )
    assert get(viewer, f"/api/devices/{GAP}")["incomplete"]
    (listed,) = get(viewer, "/api/devices", search=GAP)
    assert listed == get(viewer, f"/api/devices/{GAP}")


def test_one_call_names_what_is_missing_of_the_fleet(viewer: httpx.Client) -> None:
    rows = get(viewer, "/api/incomplete")
    assert len(rows) == INCOMPLETE
    (gap,) = (row for row in rows if row["device_id"] == GAP)
    assert (gap["missing_count"], gap["missing"]) == (13, [["stream-1", 108, 120]])
    assert sum(row["missing_count"] for row in rows) == MISSING
    assert sum(row["conflicts"] > 0 and row["cloned_since"] is not None for row in rows) == CLONED
    school = school_of(int(GAP[-4:]))
    assert GAP in [row["device_id"] for row in get(viewer, "/api/incomplete", site=school)]


def test_site_has_its_own_limit_of_silence(live: Live, viewer: httpx.Client) -> None:
    admin = live.client("admin")
    path = f"/api/sites/{quote('Garissa Primary')}"
    changed = admin.patch(path, json={"silent_after": "30d"})
    assert (changed.status_code, changed.json()["silent"], changed.json()["silent_after_s"]) == (200, 0, 30 * 86_400)
    assert get(viewer, "/api/overview")["devices"]["silent"] == STATES.silent - 33
    assert get(viewer, "/api/devices", site="Garissa Primary", state="silent") == []
    assert get(viewer, "/api/devices/pibook-1940")["state"] == "well"
    assert admin.patch(path, json={}).json()["silent_after_s"] == 30 * 86_400
    assert admin.patch(path, json={"silent_after": None}).json()["silent"] == 33
    for wrong in ("30", "30s", "soon", "", 30, "9999999d"):
        assert admin.patch(path, json={"silent_after": wrong}).status_code == 400


def test_token_of_some_sites_sees_those_alone(live: Live) -> None:
    live.write(DeviceChange(device_id=OTHER, at_ms=NOW_MS, site=SITE))
    client = live.client("site admin")
    overview = get(client, "/api/overview")
    assert (sum(overview["devices"].values()), overview["sites"], overview["events_missing"]) == (1, 1, 0)
    assert overview["today"] == {"runs": 0, "failed": 0, "events": 0}
    assert [site["site"] for site in get(client, "/api/sites")] == [SITE]
    assert get(client, "/api/devices", state="silent") == get(client, "/api/incomplete") == []
    assert client.get(f"/api/sites/{SITE}").status_code == 200
    for method in ("GET", "PATCH"):
        answer = client.request(method, "/api/sites/Garissa%20Primary", json={"silent_after": "30d"})
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown_site")
    live.write(DeviceChange(device_id=OTHER, at_ms=NOW_MS, site=school_of(int(OTHER[-4:]))))


@pytest.mark.parametrize("name", ["A/B", "100 %2F?x=1#y", "<script>", "مدرسة النور", "=HYPERLINK", "..;/", "-"])
def test_site_of_any_name_has_a_path(live: Live, viewer: httpx.Client, name: str) -> None:
    live.write(sync_event(NOW_MS, device="wanderer", received_ms=NOW_MS))
    live.write(DeviceChange(device_id="wanderer", at_ms=NOW_MS, site=name))
    assert get(viewer, f"/api/sites/{quote(name, safe='')}")["site"] == name
    assert [row["device_id"] for row in get(viewer, "/api/devices", site=name)] == ["wanderer"]
    live.write(DeviceChange(device_id="wanderer", at_ms=NOW_MS, site="Bondo Girls"))
    assert viewer.get(f"/api/sites/{quote(name, safe='')}").status_code == 404


def test_devices_without_a_site_are_the_site_null(live: Live, viewer: httpx.Client) -> None:
    live.write(sync_event(NOW_MS, device="homeless", received_ms=NOW_MS))
    (site,) = (site for site in get(viewer, "/api/sites", limit=1000) if site["site"] is None)
    assert (site["devices"], site["in_need"]) == (1, False)
    assert [row["device_id"] for row in get(viewer, "/api/devices", without_site="true")] == ["homeless"]
