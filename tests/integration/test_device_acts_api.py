"""Acts on devices over the API: ask for a sync, revoke, notes, batches of codes, conflicts, enrollment files."""

import json
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.enrollment.enroll_file import read_enroll_file
from pisync_agent.enrollment.machine import Machine
from pisync_agent.identity import Identity
from pisync_agent.service.sync_runner import SyncRunner
from pisync_common.times import format_ms
from pisync_receiver.commands import cli
from pisync_receiver.domain.submissions import DeviceChange
from tests.support.live_receiver import DEVICE, NOW_MS, OTHER, SITE, Live, live_receiver
from tests.support.outboxes import opened
from tests.support.processes import AgentProcess, wait_until


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_receiver(tmp_path) as running:
        yield running


def send(live: Live, *seqs: int, note: str = "") -> httpx.Response:
    events = [
        {"seq": seq, "type": "a.b", "occurred_at": "2026-11-23T08:00:00Z", "data": {"note": note}} for seq in seqs
    ]
    answer = live.client("device").post("/api/events", json={"device_id": DEVICE, "stream": "s1", "events": events})
    assert answer.status_code == 200, answer.text
    return answer


def act(live: Live, part: str, body: dict[str, Any] | None = None, *, kind: str = "admin") -> httpx.Response:
    return live.client(kind).post(f"/api/devices/{DEVICE}/{part}", json=body)


class ShiftedClock(SystemClock):
    """This machine's clock, and time that has passed since by the test's word."""

    passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


def enrolled(live: Live, home: Path) -> Path:
    identities.save(home, Identity(url=live.url, device_id=DEVICE, token=live.secrets["device"]))
    return home


def sync_asked() -> DeviceChange:
    return DeviceChange(device_id=DEVICE, at_ms=NOW_MS, ask_for_sync=True)


class TestSync:
    def test_an_agent_that_gathers_events_delivers_and_reports_at_once(self, live: Live, tmp_path: Path) -> None:
        with AgentProcess(enrolled(live, tmp_path / "agent")) as agent:
            agent.record()
            live.write(sync_asked())
            agent.start("--sync-delay", "10s", "--sync-interval", "1h")
            history = f"/api/sync-event/device/{DEVICE}/sync-history"
            wait_until(
                lambda: len(live.client("viewer").get(history).json()) == 2, "the run that was asked for reports"
            )
            assert agent.log().count("the receiver asks for a sync") == 1

    def test_requests_within_a_minute_make_one_run(self, live: Live, tmp_path: Path) -> None:
        clock = ShiftedClock()
        with closing(opened(enrolled(live, tmp_path))) as outbox:
            runner = SyncRunner(home=tmp_path, outbox=outbox, clock=clock, stopping=lambda: False, here=Machine())
            runner.reload()
            asked = []
            for passed in (0, 30, 59, 61):
                clock.passed = passed
                live.write(sync_asked())
                runner.run(probe=True, progress=lambda progress: None)
                asked.append((runner.take_request(), runner.take_request()))
            runner.close()
        assert asked == [(True, False), (False, False), (False, False), (True, False)]

    def test_the_next_answer_asks_the_device_once(self, live: Live) -> None:
        assert "PiSync-Sync" not in send(live, 1).headers
        assert act(live, "sync").status_code == 200
        assert send(live, 2).headers["PiSync-Sync"] == "now"
        assert "PiSync-Sync" not in send(live, 3).headers

    def test_the_answer_to_a_sync_event_asks_too(self, live: Live) -> None:
        send(live, 1)
        act(live, "sync")
        run = {"timestamp": "2026-11-23T08:00:00Z", "total_files_synced": 1, "total_errors": 0, "internet_speed": 1}
        answer = live.client("device").post("/api/sync-event", json={"device_id": DEVICE, **run})
        assert answer.headers["PiSync-Sync"] == "now"
        assert answer.json()["device_id"] == DEVICE

    def test_a_retired_device_is_409(self, live: Live) -> None:
        send(live, 1)
        live.client("admin").patch(f"/api/devices/{DEVICE}", json={"retired": True})
        answer = act(live, "sync")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:pisync:problem:device_retired")


def test_a_revoked_device_is_refused_at_once(live: Live) -> None:
    send(live, 1)
    assert act(live, "revoke").status_code == 200
    batch = {"device_id": DEVICE, "stream": "s1", "events": []}
    assert live.client("device").post("/api/events", json=batch).status_code == 401
    batch["device_id"] = OTHER
    assert live.client("other device").post("/api/events", json=batch).status_code == 200


class TestNotes:
    def test_a_note_is_listed_as_it_was_written(self, live: Live) -> None:
        send(live, 1)
        text = "screen broken\r\nواحد <script>"
        made = act(live, "notes", {"text": text})
        assert made.status_code == 201
        assert made.json()["text"] == "screen broken\nواحد <script>"
        assert live.client("viewer").get(f"/api/devices/{DEVICE}/notes").json() == [made.json()]

    @pytest.mark.parametrize("text", ["", "x" * 2001, "tab\there", "nul\0", "esc\x1b[31m", "line\u2028separator"])
    def test_a_text_that_breaks_the_rule_is_400(self, live: Live, text: str) -> None:
        send(live, 1)
        assert act(live, "notes", {"text": text}).status_code == 400

    def test_a_site_has_notes_of_its_own_for_those_who_see_it(self, live: Live) -> None:
        send(live, 1)
        path = "/api/sites/Sainte%20Marie%2FA/notes"
        assert live.client("admin").post(path, json={"text": "x"}).status_code == 404
        live.client("admin").patch(f"/api/devices/{DEVICE}", json={"site": "Sainte Marie/A"})
        assert live.client("admin").post(path, json={"text": "no power"}).status_code == 201
        assert [note["text"] for note in live.client("viewer").get(path).json()] == ["no power"]
        assert live.client("site viewer").get(path).status_code == 404


class TestCodes:
    def create(self, live: Live, kind: str = "admin", **wanted: Any) -> httpx.Response:
        return live.client(kind).post("/api/enrollment-codes", json=wanted)

    def test_a_batch_of_codes_is_made_in_one_act(self, live: Live) -> None:
        made = self.create(live, count=30, site=SITE, label="class 5").json()
        assert len({each["code"] for each in made}) == 30
        assert {each["record"]["site"] for each in made} == {SITE}
        device_ids = [
            live.client(None).post("/api/enroll", json={"code": each["code"]}).json()["device_id"] for each in made[:2]
        ]
        listed = {row["id"]: row["devices"] for row in live.client("admin").get("/api/enrollment-codes").json()}
        assert [listed[each["record"]["id"]] for each in made[:2]] == [[device_id] for device_id in device_ids]

    @pytest.mark.parametrize("wanted", [{"count": 0}, {"count": 201}, {"count": 2, "device_id": "pibook-1"}])
    def test_what_cannot_be_made_is_400(self, live: Live, wanted: dict[str, Any]) -> None:
        assert self.create(live, **wanted).status_code == 400
        assert live.client("admin").get("/api/enrollment-codes").json() == []

    def test_a_batch_is_for_a_site_of_the_caller(self, live: Live) -> None:
        assert self.create(live, "site admin", count=2, site="Kisumu").status_code == 403
        assert self.create(live, "site admin", count=2, site=SITE).status_code == 201

    def test_a_code_takes_no_device_from_a_site_that_the_caller_does_not_see(self, live: Live) -> None:
        send(live, 1)
        assert self.create(live, "site admin", site=SITE, device_id="pibook-9").status_code == 201
        assert self.create(live, "site admin", site=SITE, device_id=DEVICE).status_code == 403
        live.client("admin").patch(f"/api/devices/{DEVICE}", json={"site": SITE})
        assert self.create(live, "site admin", site=SITE, device_id=DEVICE).status_code == 201

    def test_the_enrollment_file_is_read_by_the_agent(self, live: Live, tmp_path: Path) -> None:
        site = 'École "B" \\ ثانوية'
        made = self.create(live, site=site, device_id="pibook-7").json()
        file = tmp_path / "pisync-enroll.toml"
        file.write_text(made["enroll_file"], encoding="utf-8")
        read = read_enroll_file(file)
        assert (read.receiver, read.code, read.site, read.device_id) == (live.url, made["code"], site, "pibook-7")
        assert "site" not in tomllib.loads(self.create(live).json()["enroll_file"])


def test_conflicts_and_rejected_events_are_shown_decoded(live: Live) -> None:
    send(live, 1, note="mine")
    send(live, 1, note="clone's")
    (found,) = live.client("viewer").get(f"/api/devices/{DEVICE}/conflicts").json()
    notes = [(each["kept"], each["event"]["data"]["note"]) for each in found["versions"]]
    assert (found["stream"], found["seq"], notes) == ("s1", 1, [(True, "mine"), (False, "clone's")])
    assert found["versions"][0]["received_at"] == format_ms(NOW_MS)
    (rejected,) = live.client("viewer").get(f"/api/devices/{DEVICE}/rejected").json()
    assert (rejected["code"], rejected["seq"]) == ("conflict", 1)
    (suspicious,) = live.client("viewer").get("/api/suspicious").json()
    assert (suspicious["device_id"], suspicious["reasons"][0]["code"]) == (DEVICE, "cloned")


def test_sites_of_a_device_are_listed_for_those_who_see_them(live: Live) -> None:
    send(live, 1)
    for site in ("Kisumu", SITE):
        live.client("admin").patch(f"/api/devices/{DEVICE}", json={"site": site})
    path = f"/api/devices/{DEVICE}/sites"
    assert [row["site"] for row in live.client("admin").get(path).json()] == [SITE, "Kisumu"]
    assert [row["site"] for row in live.client("site viewer").get(path).json()] == [SITE]


class TestCommands:
    @pytest.fixture
    def run(
        self, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., str]:
        """Runs a command against the receiver, and returns what it prints."""
        token = tmp_path / "token"
        token.write_text(live.secrets["admin"])
        monkeypatch.setattr(os, "umask", lambda _: None)

        def call(*words: str, code: int = 0) -> str:
            ended = cli.main([*words, "--url", live.url, "--token-file", str(token)])
            shown = capsys.readouterr()
            assert ended == code, shown.err
            return shown.out

        return call

    def test_acts_on_a_device(self, live: Live, run: Callable[..., str]) -> None:
        send(live, 1)
        assert "asked for a sync" in run("device", "sync", DEVICE)
        assert run("device", "note", DEVICE, "screen broken").startswith("note ")
        (note,) = json.loads(run("device", "notes", DEVICE, "--json"))
        assert note["text"] == "screen broken"
        send(live, 1, note="clone")
        (conflict,) = json.loads(run("device", "conflicts", DEVICE, "--json"))
        assert len(conflict["versions"]) == 2
        assert "conflict" in run("device", "rejected", DEVICE)
        assert "cloned" in run("suspicious")
        assert "refused from now on" in run("device", "revoke", DEVICE)
        run("device", "sync", "unknown", code=1)

    def test_a_batch_of_codes_is_written_for_each_device(self, run: Callable[..., str], tmp_path: Path) -> None:
        codes = run("enrollment", "create", "--count", "3", "--site", SITE, "--file", str(tmp_path / "cards")).split()
        files = sorted((tmp_path / "cards").glob("code-*/pisync-enroll.toml"))
        assert sorted(read_enroll_file(file).code for file in files) == sorted(codes)
        run("enrollment", "create", "--count", "201", code=2)
