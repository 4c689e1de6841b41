"""Any list as NDJSON, CSV and Parquet: every list has all of them, with its own rows and filters."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import httpx
import pytest

from pisync_receiver.api import table
from pisync_receiver.app import EXPORTS
from pisync_receiver.domain.records import EventRecord
from pisync_receiver.http.routing import Route
from pisync_receiver.store.reading import PAGE_BYTES
from tests.support.live_receiver import DEVICE, NOW_MS, SITE, Live, live_receiver
from tests.support.processes import ReceiverProcess
from tests.support.services import installed
from tests.support.submissions import sync_event

pyarrow: Any = import_module("pyarrow")
parquet: Any = import_module("pyarrow.parquet")
TABLE: Final = "urn:oasis:names:tc:opendocument:xmlns:table:1.0"
TEXT: Final = "urn:oasis:names:tc:opendocument:xmlns:text:1.0"
LEARNER: Final = "s-17"
LISTS: Final = [row for row in table() if row.rows is not None]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_receiver(tmp_path_factory.mktemp("exports")) as running:
        fill(running)
        yield running


def fill(live: Live) -> None:
    """Give every list a row, or some."""
    for first in (1, 601):
        send(live, *(event(seq) for seq in range(first, first + 600)))
    send(live, event(1, data={"other": True}), event(1300, type="nonsense"), {"seq": 1301, "type": 7})
    client = live.client("admin")
    assert client.patch(f"/api/devices/{DEVICE}", json={"site": SITE}).status_code == 200
    assert client.post(f"/api/devices/{DEVICE}/notes", json={"text": "=1+1"}).status_code == 201
    assert client.post(f"/api/sites/{SITE}/notes", json={"text": "two\nlines"}).status_code == 201
    assert client.post("/api/enrollment-codes", json={"site": SITE}).status_code == 201
    run = {"timestamp": "2026-11-23T09:00:00Z", "total_files_synced": 1, "internet_speed": 1.5}
    for _ in range(3):
        body = {"device_id": DEVICE, **run, "total_errors": 2, "errors": {"dns": 1, "tls": 1}}
        assert live.client("device").post("/api/sync-event", json=body).status_code == 201


def event(seq: int, **fields: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "type": "a.b",
        "occurred_at": "2026-11-23T08:00:00.250Z",
        "data": {"n": [seq]},
        "learner_id": LEARNER,
    } | fields


def send(live: Live, *events: dict[str, Any], stream: str = "s1") -> None:
    batch = {"device_id": DEVICE, "stream": stream, "events": list(events)}
    assert live.client("device").post("/api/events", json=batch).status_code == 200


def path_of(row: Route) -> str:
    query = f"?learner_id={LEARNER}" if row.path.startswith("/api/learners") else ""
    return row.path.format(device_id=DEVICE, site=SITE) + query


def get(live: Live, path: str, **query: Any) -> httpx.Response:
    answer = live.client("admin").get(httpx.URL(path).copy_merge_params(query))
    assert answer.status_code == 200, answer.text
    return answer


def every_row(live: Live, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    following: str | None = path
    while following is not None:
        answer = live.client("admin").get(following)
        rows += answer.json()
        following = answer.links["next"]["url"] if "next" in answer.links else None
    return rows


@pytest.mark.parametrize("row", [row for row in LISTS if row.path != "/api/audit"], ids=lambda row: row.path)
def test_each_list_is_exported_whole_in_each_format(live: Live, row: Route) -> None:
    path = path_of(row)
    rows = every_row(live, path)
    assert rows or row.path in ("/api/transitions", "/api/notices")
    columns = list(row.rows.__struct_encode_fields__)  # type: ignore[union-attr]
    assert [json.loads(line) for line in get(live, path, format="ndjson").text.splitlines()] == rows
    answer = get(live, path, format="csv")
    name = httpx.URL(path).path.rpartition("/")[2]
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}-2026-11-23.csv"'
    head, *cells = csv.reader(io.StringIO(answer.text, newline=""), strict=True)
    assert head == columns
    assert len(cells) == len(rows)
    found = parquet.read_table(io.BytesIO(get(live, path, format="parquet").content))
    assert (found.column_names, found.num_rows) == (columns, len(rows))


def test_parquet_keeps_types(live: Live) -> None:
    found = parquet.read_table(io.BytesIO(get(live, "/api/events", format="parquet").content))
    assert found.schema.field("occurred_at").type == pyarrow.timestamp("ms", tz="UTC")
    assert found.schema.field("clock_synced").type == pyarrow.bool_()
    first = found.slice(0, 1).to_pylist()[0]
    assert first["occurred_at"] == datetime(2026, 11, 23, 8, 0, 0, 250_000, UTC)
    assert (first["id"], first["seq"], first["object_id"], json.loads(first["data"])) == (1, 1, None, {"n": [1]})
    history = get(live, f"/api/sync-event/device/{DEVICE}/sync-history", format="parquet").content
    run = parquet.read_table(io.BytesIO(history)).to_pylist()[0]
    assert (run["internet_speed"], json.loads(run["errors"])) == (1.5, {"dns": 1, "tls": 1})


@pytest.mark.parametrize(
    "sent", ["2026-11-23T11:00:00.250+03:00", "2026-11-23T08:00:00.250999Z", "2026-11-23t08:00:00.25z"]
)
def test_parquet_reads_every_form_of_a_time(tmp_path: Path, sent: str) -> None:
    with live_receiver(tmp_path) as live:
        send(live, event(1), event(2, occurred_at=sent))
        found = parquet.read_table(io.BytesIO(get(live, "/api/events", format="parquet").content)).to_pylist()
    assert [row["occurred_at"] for row in found] == [datetime(2026, 11, 23, 8, 0, 0, 250_000, UTC)] * 2


def test_csv_has_values_as_in_json(live: Live) -> None:
    row = next(csv.DictReader(io.StringIO(get(live, "/api/events", format="csv").text)))
    assert (row["clock_synced"], row["object_id"], row["data"]) == ("false", "", '{"n":[1]}')


@pytest.mark.parametrize(("query", "text"), [({}, "'=1+1"), ({"raw": "true"}, "=1+1"), ({"raw": "false"}, "'=1+1")])
def test_raw_csv_has_texts_as_they_are(live: Live, query: dict[str, str], text: str) -> None:
    answer = get(live, f"/api/devices/{DEVICE}/notes", format="csv", **query)
    assert next(csv.DictReader(io.StringIO(answer.text)))["text"] == text


def test_a_byte_order_mark_comes_on_request_and_once(live: Live) -> None:
    plain = get(live, "/api/events", format="csv").content
    assert get(live, "/api/events", format="csv", bom="true").content == b"\xef\xbb\xbf" + plain
    assert b"\xef\xbb\xbf" not in plain


def test_accept_chooses_too_and_format_goes_before_it(live: Live) -> None:
    client = live.client("viewer", Accept="text/csv")
    assert client.get("/api/devices").headers["Content-Type"] == "text/csv; charset=utf-8"
    assert client.get("/api/devices?format=json").headers["Content-Type"] == "application/json"
    assert "Accept" in client.get("/api/devices?format=json").headers["Vary"].title()


def test_limit_and_cursor_bound_an_export(live: Live) -> None:
    lines = get(live, "/api/events", format="ndjson", limit=700).text.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 701))
    rest = get(live, "/api/events", format="ndjson", cursor=json.loads(lines[-1])["id"], limit=3).text.splitlines()
    assert [json.loads(line)["seq"] for line in rest] == [701, 702, 703]


def test_the_number_of_rows_comes_before_the_rows(tmp_path: Path) -> None:
    with live_receiver(tmp_path) as live:
        # Beside the devices of the tokens.
        live.write(*(sync_event(NOW_MS, device=f"pibook-{n}") for n in range(1201)))
        answer = get(live, "/api/devices", format="ndjson")
        assert (answer.headers["PiSync-Total"], len(answer.text.splitlines())) == ("1203", 1203)


def test_an_export_sees_what_its_caller_sees(live: Live) -> None:
    answer = live.client("site viewer").get("/api/events?format=csv")
    assert len(list(csv.reader(io.StringIO(answer.text)))) == 1  # events of before the move have no site
    assert live.client("viewer").get("/api/tokens?format=csv").status_code == 403


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refused_export_is_a_problem_and_holds_nothing(live: Live, method: str) -> None:
    client = live.client("admin")
    for _ in range(2 * EXPORTS):
        assert client.request(method, "/api/events?format=csv&cursor=nonsense").status_code == 400
        assert client.head("/api/events?format=csv").status_code == 200
    assert client.get("/api/events?format=csv").status_code == 200


def test_an_export_leaves_an_audit_entry_without_values(live: Live) -> None:
    get(live, "/api/events", format="csv", learner_id="s-secret")
    entry = live.client("admin").get("/api/audit?act=list.export&limit=1").json()[0]
    assert (entry["target"], json.loads(entry["detail"])) == (
        "list /api/events",
        {"format": "csv", "given": ["learner_id", "format"]},
    )


def test_parquet_without_its_library_says_which_extra(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = live.client("admin").get("/api/events?format=parquet")
    assert (answer.status_code, answer.json()["type"]) == (501, "urn:pisync:problem:missing_extra")
    assert "'export'" in answer.json()["detail"]


def test_large_rows_make_several_row_groups(tmp_path: Path) -> None:
    with live_receiver(tmp_path) as live:
        text = "x" * 60_000
        for seq in range(1, 20 * PAGE_BYTES // len(text), 15):
            send(live, *(event(seq + n, data={"text": text}) for n in range(15)))
        found = parquet.ParquetFile(io.BytesIO(get(live, "/api/events", format="parquet").content))
        assert found.num_row_groups >= 4, "each export under way holds a row group in memory"
        assert found.read(["seq"]).column("seq").to_pylist() == list(range(1, found.metadata.num_rows + 1))


def test_commands_export_into_a_file_or_to_standard_output(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path / "receiver") as receiver:
        receiver.enrollment_code("--site", SITE)
        file = tmp_path / "codes.csv"
        shown = receiver.run("enrollment", "list", "--output", str(file))
        assert (shown.returncode, shown.stdout) == (0, "")
        assert f"{file}: {file.stat().st_size} bytes" in shown.stderr
        assert [row["site"] for row in csv.DictReader(io.StringIO(file.read_text()))] == [SITE]
        printed = receiver.command("enrollment", "list", "--format", "ndjson")
        assert json.loads(printed)["site"] == SITE
        assert receiver.run("devices", "--output", str(tmp_path / "devices.xlsx")).returncode == 2
        refused = receiver.run("events", "--cursor", "nonsense", "--output", str(tmp_path / "events.parquet"))
        assert (refused.returncode, [path.name for path in tmp_path.glob("events*")]) == (2, [])


TEXTS: Final = (
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", "\uff1d1+1", "x;=1+1", "=HYPERLINK(1)"),
    *("-s1", "مدرسة الأمل", '5" disk, or; so', "line\none", "x" * 40_000),
)


def test_libreoffice_opens_a_csv_as_it_was_exported(tmp_path: Path) -> None:
    with live_receiver(tmp_path) as live:
        send(live, *(event(seq, data={"text": text}) for seq, text in enumerate(TEXTS, 1)))
        for text in TEXTS[:11]:
            assert live.client("admin").post(f"/api/devices/{DEVICE}/notes", json={"text": text}).status_code == 201
        notes = f"/api/devices/{DEVICE}/notes"
        exports = {
            "events": get(live, "/api/events", format="csv"),
            "notes": get(live, notes, format="csv", bom="true"),
            "raw": get(live, notes, format="csv", raw="true"),
        }
    for name, answer in exports.items():
        (tmp_path / f"{name}.csv").write_bytes(answer.content)
    events, notes_shown, raw = opened_by_libreoffice(tmp_path, *exports)
    assert [len(row) for row in events.rows] == [len(EventRecord.__struct_fields__)] * (1 + len(TEXTS))
    data = events.rows[0].index("data")
    assert [json.loads(row[data])["text"].replace("'", "") for row in events.rows[1:]] == list(TEXTS)
    assert events.formulas == notes_shown.formulas == []
    assert notes_shown.rows[0][0] == "id"
    assert [row[3].replace("'", "") for row in notes_shown.rows[:0:-1]] == list(TEXTS[:11])
    assert [row[3] for row in raw.rows[:0:-1]][7:] == ["-s1", *TEXTS[8:11]]


@dataclass(frozen=True)
class Sheet:
    rows: list[list[str]]
    formulas: list[str]


def opened_by_libreoffice(folder: Path, *names: str) -> list[Sheet]:
    """Open files as a person does in the import dialog: UTF-8, the comma alone between columns."""
    subprocess.run(
        [
            *(installed("soffice"), f"-env:UserInstallation=file://{folder}/profile", "--headless"),
            *("--infilter=CSV:44,34,76,1", "--convert-to", "fods", "--outdir", str(folder)),
            *(str(folder / f"{name}.csv") for name in names),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return [sheet(ElementTree.parse(folder / f"{name}.fods").getroot()) for name in names]  # noqa: S314 - our own file


def sheet(document: ElementTree.Element) -> Sheet:
    rows = []
    for row in document.iter(f"{{{TABLE}}}table-row"):
        cells: list[str] = []
        for cell in row.iter(f"{{{TABLE}}}table-cell"):
            text = "\n".join("".join(part.itertext()) for part in cell.iter(f"{{{TEXT}}}p"))
            cells += [text] * int(cell.get(f"{{{TABLE}}}number-columns-repeated", "1"))
        rows.append(cells)
    formulas = [cell.get(f"{{{TABLE}}}formula", "") for cell in document.iter(f"{{{TABLE}}}table-cell")]
    return Sheet(rows, [formula for formula in formulas if formula])
