"""The three calls of the reference API, bodies included, as devices and tools in the field know them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_receiver import DEVICE, Live, live_receiver

REPORT = {
    "device_id": DEVICE,
    "timestamp": "2026-11-23T08:00:00+02:00",
    "total_files_synced": 12,
    "total_errors": 0,
    "internet_speed": 50,
}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        yield running


def report(live: Live, kind: str = "device", **changes: Any) -> dict[str, Any]:
    answer = live.client(kind).post("/api/sync-event", json=REPORT | changes)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def at(hour: int) -> str:
    return f"2026-11-23T{hour:02d}:00:00.000Z"


def history(live: Live, query: str = "", kind: str = "admin") -> list[dict[str, Any]]:
    answer = live.client(kind).get(f"/api/sync-event/device/{DEVICE}/sync-history{query}")
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()
    return rows


def failures(live: Live, query: str = "") -> list[dict[str, Any]]:
    answer = live.client("viewer").get(f"/api/sync-event/devices/repeated-failures{query}")
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()
    return rows


def test_a_report_is_answered_with_the_stored_record_and_the_five_fields_as_sent(live: Live) -> None:
    record = report(live)
    assert {name: record[name] for name in REPORT} == REPORT
    assert isinstance(record["internet_speed"], int)
    assert set(record) == {*REPORT, "id", "received_at"}
    assert record["received_at"] == "2026-11-23T10:00:00.000Z"
    assert report(live)["id"] != record["id"]


@pytest.mark.parametrize("speed", [0, 50, 0.25, 12.5, 1000000])
def test_the_speed_comes_back_as_the_number_it_was(live: Live, speed: float) -> None:
    assert repr(report(live, internet_speed=speed)["internet_speed"]) == repr(speed)
    assert repr(history(live)[0]["internet_speed"]) == repr(speed)


def test_what_failed_is_kept_by_code(live: Live) -> None:
    record = report(live, total_errors=3, errors={"dns": 2, "timeout": 1})
    assert record["errors"] == {"dns": 2, "timeout": 1}
    assert history(live)[0] == record


def test_a_repeat_with_the_same_key_is_answered_with_the_first_record(live: Live) -> None:
    client = live.client("device", **{"Idempotency-Key": "run-1"})
    first = client.post("/api/sync-event", json=REPORT)
    again = client.post("/api/sync-event", json=REPORT | {"total_errors": 9})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert len(history(live)) == 1


def test_the_history_is_newest_first_by_timestamp_in_whatever_order_it_came(live: Live) -> None:
    for hour in (3, 1, 2):
        report(live, timestamp=at(hour))
    assert [row["timestamp"] for row in history(live)] == [at(3), at(2), at(1)]
    assert [row["timestamp"] for row in history(live, kind="device")] == [at(3), at(2), at(1)]


def test_the_history_comes_in_pages_that_link_to_the_next(live: Live) -> None:
    for hour in range(5):
        report(live, timestamp=at(hour))
    client, url, seen, pages = live.client("admin"), f"/api/sync-event/device/{DEVICE}/sync-history?limit=2", [], 0
    while url:
        answer = client.get(url)
        seen += [row["timestamp"] for row in answer.json()]
        url, pages = answer.links.get("next", {}).get("url", ""), pages + 1
    assert seen == [at(hour) for hour in (4, 3, 2, 1, 0)]
    assert pages == 3


def test_the_history_can_be_filtered(live: Live) -> None:
    for hour, errors in ((1, 0), (2, 1), (3, 0), (4, 2)):
        report(live, timestamp=at(hour), total_errors=errors)
    assert [row["timestamp"] for row in history(live, "?failed=true")] == [at(4), at(2)]
    assert [row["timestamp"] for row in history(live, "?failed=false")] == [at(3), at(1)]
    assert [row["timestamp"] for row in history(live, f"?since={at(2)}&until={at(4)}")] == [at(3), at(2)]


def test_the_history_of_a_device_that_never_reported_is_empty_and_of_an_unknown_one_404(live: Live) -> None:
    assert history(live) == []
    answer = live.client("admin").get("/api/sync-event/device/unknown/sync-history")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:pisync:problem:unknown_device"


def test_repeated_failures_name_who_keeps_failing_worst_first(live: Live) -> None:
    for hour in range(1, 4):
        report(live, timestamp=at(hour), total_errors=1, errors={"http_5xx": 1})
    for hour in range(1, 6):
        report(live, "other device", device_id="pibook-0043", timestamp=at(hour), total_errors=1)
    worst, mine = failures(live)
    assert (worst["device_id"], worst["consecutive_failures"]) == ("pibook-0043", 5)
    assert mine == {
        "device_id": DEVICE,
        "site": None,
        "consecutive_failures": 3,
        "total_failures": 3,
        "failing_since": at(1),
        "last_sync_at": at(3),
        "last_success_at": None,
        "last_errors": {"http_5xx": 1},
    }


def test_repeated_failures_end_with_a_success_and_the_threshold_can_be_chosen(live: Live) -> None:
    for hour in range(1, 4):
        report(live, timestamp=at(hour), total_errors=1)
    assert len(failures(live, "?min_failures=4")) == 0
    assert len(failures(live, "?min_failures=3")) == 1
    report(live, timestamp=at(4), total_errors=0)
    assert failures(live) == []
    assert [row["total_failures"] for row in failures(live, f"?mode=total&since={at(1)}")] == [3]
    assert failures(live, f"?mode=total&since={at(2)}") == []


def test_a_late_report_is_counted_where_it_belongs(live: Live) -> None:
    for hour in (1, 2, 4, 5):
        report(live, timestamp=at(hour), total_errors=1)
    assert failures(live)[0]["consecutive_failures"] == 4
    report(live, timestamp=at(3), total_errors=0)
    assert failures(live) == []
