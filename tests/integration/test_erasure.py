"""Erasing a learner with real programs: yesterday's backup is restored, devices send again, and nothing comes back."""

import json
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_common.wire import encode_event
from tests.support.devices import MadeUpDevice
from tests.support.live_receiver import DEVICE, NOW_MS, SITE, Live, live_receiver
from tests.support.processes import ReceiverProcess

LEARNER, KEPT = "pupil-planted-7", "pupil-kept-8"
UUID = "5c1e2f60-7a0b-4f8e-9d57-0123456789ab"


def history(device: MadeUpDevice) -> list[list[str]]:
    """Batches with events of both learners, a conflict and an event that breaks a rule."""

    def made(seq: int, learner: str, **fields: Any) -> str:
        return encode_event(seq=seq, type="video.watched", stamp=device.stamp(), learner_id=learner, **fields)

    return [
        [made(1, LEARNER), made(2, KEPT), made(3, LEARNER, id=UUID)],
        [made(2, LEARNER, data='{"conflict":true}'), json.dumps({"seq": 4, "type": "bad", "learner_id": LEARNER})],
        [made(5, LEARNER, data=json.dumps({"of": LEARNER})), made(6, KEPT)],
    ]


def texts(file: Path) -> str:
    """Return every value of every table of a database."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = repr([connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables])
    connection.close()
    return found


def test_restored_backup_brings_no_erased_learner_back(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path / "receiver") as receiver:
        code = receiver.enrollment_code("--site", "Nakuru")
        with MadeUpDevice(receiver.url, code, device_id="pibook-1") as device:
            sent = history(device)
            for batch in sent[:2]:
                assert device.post_batch(batch).status_code == 200
            backup = tmp_path / "yesterday.db"
            receiver.command("backup", str(backup))
            assert device.post_batch(sent[2]).status_code == 200
            before = receiver.json("completeness", "pibook-1")
            assert LEARNER in texts(receiver.database)

            exported = receiver.command("learner", "export", "--learner-id", "-", stdin=f"{LEARNER}\n")
            assert {json.loads(line)["learner_id"] for line in exported.splitlines()} == {LEARNER}
            assert len(exported.splitlines()) == len(receiver.json("learner", "events", "--learner-id", LEARNER)) == 3
            refused = receiver.run("learner", "erase", "--learner-id", LEARNER)
            assert refused.returncode == 2
            planned = receiver.command("learner", "erase", "--learner-id", "-", "--dry-run", stdin=f"{LEARNER}\n")
            assert planned.startswith("would be erased: 3 events and 2 rejected events or conflicting versions")
            done = receiver.command("learner", "erase", "--learner-id", "-", "--yes", stdin=f"{LEARNER}\n")
            assert done.startswith("erased: 3 events, 2 rejected events or conflicting versions; receipt ")
            assert LEARNER not in texts(receiver.database)
            assert receiver.json("completeness", "pibook-1")["streams"][0]["watermark"] == 6

            receiver.stop()
            assert LEARNER.encode() not in receiver.database.read_bytes()
            erasures = receiver.database.with_name("receiver.db.erasures")
            assert stat.S_IMODE(erasures.stat().st_mode) == 0o600
            assert LEARNER not in erasures.read_text()
            shutil.copy(backup, receiver.database)
            assert LEARNER in texts(receiver.database)

            receiver.start()
            assert LEARNER not in texts(receiver.database)
            for batch in [*sent, *reversed(sent)]:
                receipt = device.post_batch(batch).json()
                assert not {rejection["seq"] for rejection in receipt["rejected"]} & {1, 2, 3, 5, 6}
            assert LEARNER not in texts(receiver.database)
            after = receiver.json("completeness", "pibook-1")
            assert after["complete"] is before["complete"] is True
            assert [event["learner_id"] for event in receiver.json("events", "--device-id", "pibook-1")] == [KEPT] * 2
            receiver.stop()
            assert LEARNER.encode() not in receiver.database.read_bytes()
    assert LEARNER not in receiver.log_file.read_text()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path, now_ms=lambda: NOW_MS) as running:
        yield running


def send(live: Live, *events: dict[str, Any]) -> None:
    made = [{"seq": seq, "type": "a.b", **event} for seq, event in enumerate(events, 1)]
    answer = live.client("device").post("/api/events", json={"device_id": DEVICE, "stream": "s1", "events": made})
    assert answer.status_code == 200


def erase(live: Live, kind: str = "admin", **wanted: Any) -> httpx.Response:
    return live.client(kind).post("/api/learners/erase", json={"learner_id": LEARNER, **wanted})


class TestErasing:
    def test_dry_run_lists_homes_and_changes_nothing(self, live: Live) -> None:
        send(live, *(mine(f"2026-11-2{day}T08:00:00Z", learner_home=home) for day, home in ((1, "club"), (2, SITE))))
        planned = erase(live, dry_run=True).json()
        assert planned == {"receipt": None, "homes": ["Nakuru", "club"], "events": 2, "rejected": 0, "more": False}
        assert erase(live, dry_run=True).json() == planned
        done = erase(live).json()
        assert (done["events"], done["more"], len(done["receipt"])) == (2, False, 32)
        assert erase(live).json() == {**done, "homes": []}

    def test_admin_of_a_site_erases_learners_of_that_home_alone(self, live: Live) -> None:
        send(live, mine("2026-11-21T08:00:00Z", learner_home="club"), mine("2026-11-22T08:00:00Z", learner_home=SITE))
        assert erase(live, "site admin", learner_home="club").status_code == 404
        assert erase(live, "site admin").json()["homes"] == [SITE]
        assert erase(live, "site admin", dry_run=True).status_code == 404
        assert erase(live, dry_run=True).json()["homes"] == ["club"]

    def test_unknown_learner_is_404_without_a_home(self, live: Live) -> None:
        assert erase(live).json()["type"].endswith("unknown_learner")
        assert erase(live, learner_home=SITE).json()["events"] == 0
        send(live, mine("2026-11-21T08:00:00Z", learner_home=SITE))
        assert live.client("admin").get("/api/events").json() == []


class TestTimeline:
    def test_events_come_by_the_time_they_happened_newest_first(self, live: Live) -> None:
        days = ["2026-11-12", "2026-11-20", "2026-11-11", "2026-11-15"]
        send(
            live,
            *(mine(f"{day}T08:00:00Z", clock_synced=True) for day in days),
            {"occurred_at": "2026-11-13T08:00:00Z"},
        )
        found, path = [], f"/api/learners/events?learner_id={LEARNER}&limit=2"
        while path:
            answer = live.client("viewer").get(path)
            found += [event["estimated_at"][:10] for event in answer.json()]
            path = answer.links.get("next", {}).get("url", "")
        assert found == ["2026-11-20", "2026-11-15", "2026-11-12", "2026-11-11"]
        some = "&since=2026-11-12T08:00:00Z&until=2026-11-20T08:00:00Z"
        chosen = live.client("viewer").get(f"/api/learners/events?learner_id={LEARNER}{some}").json()
        assert [event["estimated_at"][:10] for event in chosen] == ["2026-11-15", "2026-11-12"]

    def test_home_and_sites_narrow_it(self, live: Live) -> None:
        send(live, mine("2026-11-21T08:00:00Z", learner_home="club"), mine("2026-11-22T08:00:00Z"))
        path = f"/api/learners/events?learner_id={LEARNER}"
        assert len(live.client("viewer").get(path).json()) == 2
        assert len(live.client("viewer").get(f"{path}&learner_home=club").json()) == 1
        assert live.client("site viewer").get(path).json() == []
        assert live.client("metrics").get(path).status_code == 403

    def test_learner_is_required(self, live: Live) -> None:
        answer = live.client("viewer").get("/api/learners/events")
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:pisync:problem:missing_parameter")


def mine(occurred_at: str, **fields: Any) -> dict[str, Any]:
    return {"occurred_at": occurred_at, "learner_id": LEARNER, **fields}
