"""The audit log over the API and the command line: each act is in it, no secret is, and a change is found."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from pisync_receiver.api import table
from pisync_receiver.commands.cli import main
from pisync_receiver.http.auth import Access, token_hash
from tests.integration.test_route_access import BODIES, CODE, call, prepare
from tests.support.live_receiver import DEVICE, Live, live_receiver

ACTS: Final = sorted(
    (route.method, route.path)
    for route in table()
    if route.method != "GET"
    and route.access in (Access.ADMIN, Access.CHIEF)
    and route.path != "/api/retention"  # of a new database there is nothing to delete
)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        prepare(running)
        yield running


def log(live: Live, **query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = live.client("admin").get("/api/audit", params=query).json()
    return rows


@pytest.mark.parametrize(("method", "path"), ACTS)
def test_each_act_says_who_did_it_and_from_where(live: Live, method: str, path: str) -> None:
    live.client("admin").post("/api/enrollment-codes", json={"site": "Nakuru"})
    before = {row["id"] for row in log(live)}
    answer = call(live, method, path, "admin")
    assert answer.is_success, answer.text
    entry = log(live)[0]
    assert entry["id"] not in before
    assert (entry["actor"], entry["token_id"], entry["address"]) == ("admin token 4", 4, "127.0.0.1")
    assert re.fullmatch(r"[a-z]+\.[a-z]+", entry["act"])
    json.loads(entry["detail"])


def test_a_refused_act_leaves_no_entry(live: Live) -> None:
    before = log(live)
    for who in ("viewer", "site admin", "none"):
        assert not call(live, "POST", "/api/tokens", who).is_success
    assert live.client("admin").patch("/api/devices/unknown", json={"label": "x"}).status_code == 404
    assert live.client("admin").post("/api/tokens/99/revoke").status_code == 404
    assert log(live) == before


def test_no_secret_is_in_the_log(live: Live) -> None:
    admin = live.client("admin")
    secrets = [admin.post("/api/tokens", json={"scope": "viewer", "label": "x"}).json()["token"]]
    secrets.append(admin.post("/api/enrollment-codes", json={}).json()["code"])
    secrets.append(live.client(None).post("/api/enroll", json={"code": CODE, "device_id": "pi-9"}).json()["token"])
    signed_in = live.client(None, Host="localhost").post("/sign-in", data={"token": secrets[0]})
    secrets += [signed_in.cookies["pisync"], CODE]
    assert live.client(None, Host="localhost").post("/sign-in", data={"token": "psa_wrong"}).status_code == 403
    rows = log(live)
    assert {row["act"] for row in rows} >= {"token.create", "code.create", "device.enroll", "session.open"}
    text = json.dumps(rows)
    for secret in secrets:
        assert secret not in text
        assert token_hash(secret) not in text


def test_wrong_sign_ins_are_noted_once_a_minute(live: Live) -> None:
    for _ in range(5):
        assert live.client(None, Host="localhost").post("/sign-in", data={"token": "psa_wrong"}).status_code == 403
    live.run(live.receiver.services.intake.ready())
    (entry,) = log(live, act="session.refuse")
    assert (entry["actor"], entry["address"]) == ("unknown", "127.0.0.1")


def test_filters_and_pages(live: Live) -> None:
    call(live, "PATCH", "/api/devices/{device_id}", "admin")
    (changed,) = log(live, target=f"device {DEVICE}", act="device.change")
    assert json.loads(changed["detail"]) == {"label": [None, BODIES["/api/devices/{device_id}"]["label"]]}
    admin = live.client("admin")
    for number in range(3):
        admin.patch(f"/api/devices/{DEVICE}", json={"label": f"n{number}"})
    first = admin.get("/api/audit?limit=2&order=oldest")
    assert [row["id"] for row in first.json()] == [1, 2]
    assert [row["id"] for row in admin.get(first.links["next"]["url"]).json()] == [3, 4]
    assert admin.get("/api/audit?order=up").status_code == 400


@pytest.fixture
def command(live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command against the receiver; return its exit code and outputs."""
    (tmp_path / "token").write_text(live.secrets["admin"])

    def run(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--url", live.url, "--token-file", str(tmp_path / "token")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_change_of_the_database_is_found(
    live: Live, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    for label in ("a", "b", "c"):
        live.client("admin").post("/api/tokens", json={"scope": "viewer", "label": label})
    written = len(log(live))
    code, out, _ = command("audit", "verify")
    said = re.fullmatch(rf"{written} entries, each as it was written; the head is ([0-9a-f]{{64}})\n", out)
    assert code == 0
    assert said is not None, out
    live.client("admin").post("/api/tokens", json={"scope": "viewer"})
    assert command("audit", "verify", "--expect", said[1])[0] == 0
    code, _, err = command("audit", "verify", "--expect", "0" * 64)
    assert code == 1
    assert "none has the hash" in err
    assert command("audit", "verify", "--expect", "x")[0] == 2

    _, out, _ = command("audit", "list", "--act", "token.create", "--json")
    assert [json.loads(row["detail"]).get("label") for row in json.loads(out)] == [None, "c", "b", "a"]

    with closing(sqlite3.connect(tmp_path / "receiver.db")) as connection, connection:
        connection.execute("DROP TRIGGER audit_is_not_changed")
        connection.execute("UPDATE audit SET detail = replace(detail, '\"b\"', '\"B\"') WHERE id = ?", (written - 1,))
    code, _, err = command("audit", "verify")
    assert code == 1
    assert f"entry {written - 1} " in err
    assert f"is not as it was written; the {written - 2} entries before it are" in err


def test_another_program_can_check_the_chain(live: Live) -> None:
    """As the guide shows it, from the API's answer alone."""
    guide = (Path(__file__).parents[2] / "docs/sign-in.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    program: dict[str, Any] = {}
    exec(shown, program)  # noqa: S102 - the guide is ours
    live.client("admin").patch(f"/api/devices/{DEVICE}", json={"label": 'قسم "A" \\ 🙂'})
    rows = log(live, order="oldest")
    assert program["head_of"](rows) == rows[-1]["hash"]
    rows[-1]["detail"] = rows[-1]["detail"].replace("}", " }")
    with pytest.raises(AssertionError, match=f"entry {rows[-1]['id']} is not as it was written"):
        program["head_of"](rows)


def test_only_an_admin_of_all_sites_reads_it(live: Live) -> None:
    kinds = ("viewer", "site admin", "metrics", "admin")
    found = {kind: live.client(kind).get("/api/audit").status_code for kind in kinds}
    assert found == {"viewer": 403, "site admin": 403, "metrics": 403, "admin": 200}
