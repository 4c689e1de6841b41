"""Batches in, receipts back; pages and exports out; completeness; enrollment; what a refused token leaves behind."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pisync_common.wire import decode_receipt
from pisync_receiver.domain.submissions import CodeCreate
from pisync_receiver.http.auth import token_hash
from tests.support.live_receiver import DEVICE, NOW_MS, OTHER, Live, live_receiver
from tests.support.processes import wait_until


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        yield running


def event(seq: int, **changes: Any) -> dict[str, Any]:
    return {"seq": seq, "type": "video.watched", "occurred_at": "2026-11-23T08:00:00.000Z"} | changes


def send(live: Live, *events: dict[str, Any], stream: str = "s1", kind: str = "device") -> dict[str, Any]:
    device_id = DEVICE if kind == "device" else OTHER
    body = gzip.compress(json.dumps({"device_id": device_id, "stream": stream, "events": events}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = live.client(kind).post("/api/events", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    decode_receipt(answer.content)
    found: dict[str, Any] = answer.json()
    return found


def test_a_batch_is_answered_with_its_receipt(live: Live) -> None:
    receipt = send(live, event(1), event(2, data=[]), event(3))
    assert receipt == {
        "device_id": DEVICE,
        "stream": "s1",
        "stored": 2,
        "duplicates": 0,
        "rejected": [{"seq": 2, "code": "invalid_event", "detail": "data must be a JSON object"}],
        "watermark": 3,
        "server_time": "2026-11-23T10:00:00.000Z",
        "missing": [],
    }
    again = send(live, event(1), event(2, data=[]), event(3))
    assert (again["stored"], again["duplicates"], again["watermark"]) == (0, 2, 3)


def test_a_gap_is_named_and_an_empty_batch_asks_for_the_watermark(live: Live) -> None:
    send(live, event(1), event(2))
    assert send(live, event(5))["missing"] == [[3, 4]]
    asked = send(live)
    assert (asked["stored"], asked["watermark"], asked["missing"]) == (0, 2, [[3, 4]])


def test_completeness_says_what_is_missing(live: Live) -> None:
    send(live, event(1), event(2, type="Bad"), event(5))
    send(live, event(1), stream="s2")
    found = live.client("viewer").get(f"/api/devices/{DEVICE}/completeness").json()
    assert (found["device_id"], found["complete"]) == (DEVICE, False)
    one, two = found["streams"]
    assert (one["stream"], one["watermark"], one["highest"], one["missing"]) == ("s1", 2, 5, [[3, 4]])
    assert (one["complete"], one["missing_count"], one["rejected"]) == (False, 2, 1)
    assert [row["seq"] for row in one["rejections"]] == [2]
    assert (two["stream"], two["complete"], two["missing"]) == ("s2", True, [])


def test_a_cloned_card_shows(live: Live) -> None:
    send(live, event(1))
    assert [row["code"] for row in send(live, event(1, type="note.taken"))["rejected"]] == ["conflict"]
    found = live.client("viewer").get(f"/api/devices/{DEVICE}").json()
    assert found["conflicts"] == 1
    assert found["cloned_since"] == "2026-11-23T10:00:00.000Z"


def test_events_come_in_pages_in_the_order_of_arrival(live: Live) -> None:
    send(live, *(event(seq, data={"n": seq}) for seq in range(1, 6)))
    client, url, rows = live.client("viewer"), "/api/events?limit=2", []
    while url:
        answer = client.get(url)
        rows += answer.json()
        url = answer.links.get("next", {}).get("url", "")
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[2]["data"] == {"n": 3}
    assert rows[2]["received_at"] == "2026-11-23T10:00:00.000Z"
    assert rows[2]["quality"] in ("synced", "corrected", "estimated")


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("device_id=pibook-0042", [1, 2, 3]),
        ("device_id=pibook-0043", [9]),
        ("stream=s2", [3]),
        ("type=note.taken", [2]),
        ("learner_id=s-17", [1]),
        ("object_id=math/g5%20x", [3]),
        ("since=2027-01-01T00:00:00Z", []),
        ("until=2027-01-01T00:00:00Z", [1, 2, 3, 9]),
        ("site=nowhere", []),
    ],
)
def test_events_can_be_filtered(live: Live, query: str, seqs: list[int]) -> None:
    send(live, event(1, learner_id="s-17"), event(2, type="note.taken"))
    send(live, event(3, object_id="math/g5 x"), stream="s2")
    send(live, event(9), kind="other device")
    assert sorted(row["seq"] for row in live.client("admin").get(f"/api/events?{query}").json()) == seqs


def test_an_export_streams_everything(live: Live) -> None:
    for first in range(1, 1201, 400):
        send(live, *(event(seq, data={"n": seq}) for seq in range(first, first + 400)))
    client = live.client("admin")
    answer = client.get("/api/events", headers={"Accept": "application/x-ndjson"})
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    assert [json.loads(line)["data"]["n"] for line in answer.text.splitlines()] == list(range(1, 1201))
    table = client.get("/api/events", headers={"Accept": "text/csv"})
    assert table.headers["Content-Type"].startswith("text/csv")
    assert [int(row["seq"]) for row in csv.DictReader(io.StringIO(table.text))] == list(range(1, 1201))
    assert client.head("/api/events", headers={"Accept": "text/csv"}).content == b""


@pytest.mark.parametrize("media", ["application/x-ndjson", "text/csv"])
@pytest.mark.parametrize("limit", [1, 499, 500, 501, 1000])
def test_an_export_has_as_many_rows_as_its_limit_and_goes_on_behind_its_cursor(
    live: Live, media: str, limit: int
) -> None:
    for first in range(1, 1201, 400):
        send(live, *(event(seq, data={"text": "x" * 9_000}) for seq in range(first, first + 100)))
        send(live, *(event(seq) for seq in range(first + 100, first + 400)))
    client = live.client("admin", Accept=media)
    seqs: list[int] = []
    cursor = "0"
    while rows := exported(client.get("/api/events", params={"limit": limit, "cursor": cursor}).text, media):
        assert len(rows) == min(limit, 1200 - len(seqs))
        seqs += [int(row["seq"]) for row in rows]
        cursor = str(rows[-1]["id"])
    assert seqs == list(range(1, 1201))


def exported(text: str, media: str) -> list[dict[str, Any]]:
    return (
        list(csv.DictReader(io.StringIO(text))) if media == "text/csv" else [json.loads(x) for x in text.splitlines()]
    )


def test_data_with_line_breaks_stays_one_line_of_an_export(live: Live) -> None:
    body = b'{"device_id":"%s","stream":"s1","events":[{"seq":1,"type":"a.b",' % DEVICE.encode()
    body += b'"occurred_at":"2026-11-23T08:00:00Z","data":{\n "a":\r\n "x\\ny" }}]}'
    assert (
        live.client("device").post("/api/events", content=body, headers={"Content-Type": "application/json"}).is_success
    )
    text = live.client("admin").get("/api/events", headers={"Accept": "application/x-ndjson"}).text
    assert text.count("\n") == 1
    assert json.loads(text)["data"] == {"a": "x\ny"}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_spreadsheet_gets_no_formula_from_a_device(live: Live, text: str) -> None:
    send(live, event(1, object_id=text))
    (row,) = csv.DictReader(io.StringIO(live.client("admin").get("/api/events", headers={"Accept": "text/csv"}).text))
    assert row["object_id"] == "'" + text


@pytest.mark.parametrize("text", ["x;=1+1", "x; @SUM(A1)"])
def test_a_spreadsheet_that_splits_at_semicolons_gets_no_formula_either(live: Live, text: str) -> None:
    send(live, event(1, object_id=text))
    exported = live.client("admin").get("/api/events", headers={"Accept": "text/csv"}).text
    cells = [cell for row in csv.reader(io.StringIO(exported), delimiter=";") for cell in row]
    assert [cell for cell in cells if cell.lstrip()[:1] in "=@" and cell.strip()] == []


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("text/*", "text/csv"),
        ("application/json;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("TEXT/CSV", "text/csv"),
    ],
)
def test_the_form_of_the_answer_is_chosen_by_accept(live: Live, accept: str, media: str) -> None:
    answer = live.client("admin").get("/api/events", headers={"Accept": accept})
    assert answer.headers["Content-Type"].partition(";")[0] == media


def test_a_form_that_is_not_offered_is_406(live: Live) -> None:
    answer = live.client("admin").get("/api/events", headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["type"]) == (406, "urn:pisync:problem:not_acceptable")


def test_a_device_that_was_refused_shows_when_it_last_tried(live: Live) -> None:
    viewer, revoked = live.client("viewer"), live.client("revoked")
    assert revoked.post("/api/events", json={}).status_code == 401
    wait_until(
        lambda: viewer.get(f"/api/devices/{DEVICE}").json()["last_refused"] == "2026-11-23T10:00:00.000Z",
        "the refusal is noted",
    )


def test_silent_devices_are_found(live: Live) -> None:
    send(live, event(1))
    client = live.client("viewer")
    assert DEVICE not in [row["device_id"] for row in client.get("/api/devices?silent_for=1h").json()]
    assert DEVICE in [row["device_id"] for row in client.get("/api/devices").json()]


CODE = "K7MQ-2XPD-9RTA-WW4Z"


def make_code(live: Live, *, uses: int = 1, expires_ms: int = NOW_MS + 1000) -> None:
    hashed = token_hash(CODE.replace("-", ""))
    live.write(CodeCreate(code_hash=hashed, at_ms=NOW_MS, expires_ms=expires_ms, uses=uses, site="Nakuru"))


def test_a_code_becomes_an_identity_that_works_at_once(live: Live) -> None:
    make_code(live, uses=2)
    client = live.client(None)
    named = client.post("/api/enroll", json={"code": CODE.lower().replace("-", " "), "device_id": "pibook-7"})
    assert named.status_code == 201
    assert named.json()["device_id"] == "pibook-7"
    headers = {"Authorization": f"Bearer {named.json()['token']}"}
    batch = {"device_id": "pibook-7", "stream": "s1", "events": [event(1)]}
    assert client.post("/api/events", json=batch, headers=headers).json()["stored"] == 1
    assert live.client("admin").get("/api/devices/pibook-7").json()["site"] == "Nakuru"
    unnamed = client.post("/api/enroll", json={"code": CODE})
    assert unnamed.json()["device_id"].startswith("pi-")
    assert client.post("/api/enroll", json={"code": CODE}).status_code == 403


def test_an_expired_code_opens_nothing(live: Live) -> None:
    make_code(live, expires_ms=NOW_MS)
    assert live.client(None).post("/api/enroll", json={"code": CODE}).status_code == 403


def test_an_id_that_is_taken_needs_an_admins_consent_and_the_old_token_gets_an_end(live: Live) -> None:
    make_code(live)
    client = live.client(None)
    taken = client.post("/api/enroll", json={"code": CODE, "device_id": DEVICE})
    assert (taken.status_code, taken.json()["type"]) == (409, "urn:pisync:problem:device_id_taken")
    live.write(CodeCreate(code_hash=token_hash("C0DE"), at_ms=NOW_MS, expires_ms=NOW_MS + 1, device_id=DEVICE))
    assert client.post("/api/enroll", json={"code": "code", "device_id": DEVICE}).status_code == 201
    (old,) = live.run(live.store.tokens_by_hash([token_hash(live.secrets["device"])]))
    assert old.expires_ms is not None


def test_metrics_count_what_happened(live: Live) -> None:
    send(live, event(1), event(2, data=[]))
    send(live, event(1))
    live.client("viewer").get("/nowhere")
    text = live.client("admin").get("/metrics").text
    assert 'pisync_requests_total{method="POST",route="/api/events",status="200"} 2.0' in text
    assert 'pisync_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'pisync_events_total{outcome="stored"} 1.0' in text
    assert 'pisync_events_total{outcome="duplicate"} 1.0' in text
    assert 'pisync_events_total{outcome="rejected"} 1.0' in text
    assert "pisync_intake_group_size_bucket" in text
    assert "pisync_intake_wait_seconds_bucket" in text


def test_a_304_has_no_body_and_no_header_that_describes_a_body(live: Live) -> None:
    client = live.client("viewer")
    whole = client.get("/api/devices")
    unchanged = client.get("/api/devices", headers={"If-None-Match": whole.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["ETag"] == whole.headers["ETag"]
    assert "content-type" not in unchanged.headers
    send(live, event(1))
    assert client.get("/api/devices", headers={"If-None-Match": whole.headers["ETag"]}).status_code == 200


def test_head_is_answered_with_the_head_of_get(live: Live) -> None:
    client = live.client("viewer")
    whole, head = client.get("/api/devices"), client.head("/api/devices")
    assert head.content == b""
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
