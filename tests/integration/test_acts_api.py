"""Acts of admins over the API: tokens, enrollment codes, devices, retention."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_common.times import format_ms
from tests.support.live_receiver import DEVICE, NOW_MS, Live, live_receiver

CLOCK = [NOW_MS]
DAY_S = 86_400


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    CLOCK[0] = NOW_MS
    with live_receiver(tmp_path, now_ms=lambda: CLOCK[0]) as running:
        yield running


def send(live: Live, *seqs: int, kind: str = "device") -> httpx.Response:
    events = [{"seq": seq, "type": "a.b", "occurred_at": "2026-11-23T08:00:00Z"} for seq in seqs]
    batch = {"device_id": DEVICE, "stream": "s1", "events": events}
    return live.client(kind).post("/api/events", json=batch)


def use(live: Live, secret: str, path: str = "/api/devices") -> int:
    return live.client(None, Authorization=f"Bearer {secret}").get(path).status_code


def create(live: Live, **wanted: Any) -> dict[str, Any]:
    answer = live.client("admin").post("/api/tokens", json=wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


class TestTokens:
    def test_a_token_works_at_once_with_its_label_and_sites(self, live: Live) -> None:
        made = create(live, scope="viewer", label="district", sites=["Nakuru"])
        assert use(live, made["token"]) == 200
        assert (made["record"]["label"], made["record"]["sites"]) == ("district", ["Nakuru"])
        listed = live.client("admin").get("/api/tokens?scope=viewer").json()
        assert made["record"] in listed
        assert {row["scope"] for row in listed} == {"viewer"}

    def test_no_list_has_a_secret(self, live: Live) -> None:
        made = create(live, scope="admin")
        text = live.client("admin").get("/api/tokens").text
        assert made["token"] not in text
        assert "hash" not in text

    def test_a_metrics_token_reads_the_metrics_alone(self, live: Live) -> None:
        secret = create(live, scope="metrics")["token"]
        assert secret.startswith("psm_")
        assert use(live, secret, "/metrics") == 200
        assert use(live, secret, "/api/events") == 403

    def test_a_device_token_is_of_a_device(self, live: Live) -> None:
        secret = create(live, scope="device", device_id="pibook-9")["token"]
        assert use(live, secret, "/api/sync-event/device/pibook-9/sync-history") in (200, 404)

    @pytest.mark.parametrize(
        "wanted",
        [{"scope": "device"}, {"scope": "viewer", "device_id": "x"}, {"scope": "metrics", "sites": ["Nakuru"]}],
    )
    def test_what_does_not_fit_together_is_400(self, live: Live, wanted: dict[str, Any]) -> None:
        assert live.client("admin").post("/api/tokens", json=wanted).status_code == 400

    def test_a_revoked_token_is_refused_at_once(self, live: Live) -> None:
        made = create(live, scope="viewer")
        assert use(live, made["token"]) == 200
        revoked = live.client("admin").post(f"/api/tokens/{made['record']['id']}/revoke")
        assert revoked.json()["revoked_at"] == format_ms(NOW_MS)
        assert use(live, made["token"]) == 401

    def test_a_token_expires(self, live: Live) -> None:
        made = create(live, scope="viewer", expires_in_s=60)
        assert use(live, made["token"]) == 200
        CLOCK[0] += 60_000
        answer = live.client(None, Authorization=f"Bearer {made['token']}").get("/api/devices")
        assert answer.json()["type"].endswith(":token_expired")

    def test_a_rotated_token_works_for_the_overlap_and_its_successor_has_its_rights(self, live: Live) -> None:
        old = create(live, scope="viewer", label="district", sites=["Nakuru"])
        assert use(live, old["token"]) == 200
        path = f"/api/tokens/{old['record']['id']}/rotate"
        new = live.client("admin").post(path, json={"overlap_s": 3600}).json()
        assert (new["record"]["label"], new["record"]["sites"]) == ("district", ["Nakuru"])
        CLOCK[0] += 3_599_000
        assert (use(live, old["token"]), use(live, new["token"])) == (200, 200)
        CLOCK[0] += 1_000
        assert (use(live, old["token"]), use(live, new["token"])) == (401, 200)

    def test_rotation_without_overlap_ends_the_old_token_at_once(self, live: Live) -> None:
        old = create(live, scope="viewer")
        assert use(live, old["token"]) == 200
        live.client("admin").post(f"/api/tokens/{old['record']['id']}/rotate", json={"overlap_s": 0})
        assert use(live, old["token"]) == 401

    @pytest.mark.parametrize("path", ["/api/tokens/9999/revoke", "/api/tokens/9999/rotate", "/api/tokens/x/revoke"])
    def test_an_unknown_token_is_404(self, live: Live, path: str) -> None:
        assert live.client("admin").post(path, json={}).status_code == 404


class TestCodes:
    def enroll(self, live: Live, code: str, device_id: str | None = None) -> httpx.Response:
        body = {"code": code} | ({} if device_id is None else {"device_id": device_id})
        return live.client(None).post("/api/enroll", json=body)

    def create(self, live: Live, **wanted: Any) -> dict[str, Any]:
        made: dict[str, Any] = live.client("admin").post("/api/enrollment-codes", json=wanted).json()
        return made

    def test_a_code_is_listed_with_the_devices_it_let_in(self, live: Live) -> None:
        made = self.create(live, uses=2, site="Nakuru", label="class 5")
        assert self.enroll(live, made["code"], "pibook-7").status_code == 201
        (row,) = live.client("admin").get("/api/enrollment-codes").json()
        assert (row["uses"], row["uses_left"], row["label"], row["devices"]) == (2, 1, "class 5", ["pibook-7"])
        assert made["code"] not in live.client("admin").get("/api/enrollment-codes").text

    def test_an_ended_code_lets_in_no_further_device(self, live: Live) -> None:
        made = self.create(live, uses=2)
        identity = self.enroll(live, made["code"], "pibook-7").json()
        ended = live.client("admin").post(f"/api/enrollment-codes/{made['record']['id']}/end")
        assert ended.json()["ended_at"] == format_ms(NOW_MS)
        assert self.enroll(live, made["code"], "pibook-8").status_code == 403
        assert use(live, identity["token"], "/api/sync-event/device/pibook-7/sync-history") == 200

    def test_the_same_code_and_device_id_work_again_if_the_answer_was_lost(self, live: Live) -> None:
        made = self.create(live)
        assert self.enroll(live, made["code"], "pibook-7").status_code == 201
        again = self.enroll(live, made["code"], "pibook-7")
        assert again.status_code == 201
        assert use(live, again.json()["token"], "/api/sync-event/device/pibook-7/sync-history") == 200
        assert self.enroll(live, made["code"], "pibook-8").status_code == 403

    def test_an_unknown_code_is_404(self, live: Live) -> None:
        assert live.client("admin").post("/api/enrollment-codes/9999/end").status_code == 404


class TestDevices:
    def change(self, live: Live, **changes: Any) -> dict[str, Any]:
        answer = live.client("admin").patch(f"/api/devices/{DEVICE}", json=changes)
        assert answer.status_code == 200, answer.text
        device: dict[str, Any] = answer.json()
        return device

    def test_a_moved_device_keeps_the_site_of_its_past(self, live: Live) -> None:
        send(live, 1)
        self.change(live, site="Nakuru")
        CLOCK[0] += 1000
        send(live, 2)
        assert self.change(live, site="Kisumu")["site"] == "Kisumu"
        sites = [row["site"] for row in live.client("admin").get("/api/events").json()]
        assert sites[0] != "Kisumu"
        assert "Kisumu" not in sites

    def test_a_rename_changes_the_label_alone(self, live: Live) -> None:
        send(live, 1)
        before = live.client("admin").get(f"/api/devices/{DEVICE}").json()
        assert self.change(live, label="library") == before | {"label": "library"}

    def test_a_retired_device_is_refused_at_once_and_comes_back_by_enrolling(self, live: Live) -> None:
        assert send(live, 1).status_code == 200
        assert self.change(live, retired=True)["retired_at"] is not None
        assert send(live, 2).status_code == 401
        assert self.change(live, retired=False)["retired_at"] is None
        assert send(live, 2).status_code == 401

    def test_an_unknown_device_is_404(self, live: Live) -> None:
        assert live.client("admin").patch("/api/devices/unknown", json={"label": "x"}).status_code == 404


class TestRetention:
    def test_a_dry_run_tells_what_a_run_deletes(self, live: Live) -> None:
        send(live, 1, 2, 3)
        CLOCK[0] += 10 * DAY_S * 1000
        send(live, 4)
        client = live.client("admin")
        would = client.post("/api/retention", json={"older_than_s": 5 * DAY_S, "dry_run": True}).json()
        assert would["events"] == 3
        assert len(client.get("/api/events").json()) == 4
        did = client.post("/api/retention", json={"older_than_s": 5 * DAY_S}).json()
        assert (did["events"], did["more"]) == (3, False)
        assert [row["seq"] for row in client.get("/api/events").json()] == [4]
        (stream,) = client.get(f"/api/devices/{DEVICE}/completeness").json()["streams"]
        assert (stream["complete"], stream["stored"]) == (True, 4)

    def test_less_than_a_day_is_400(self, live: Live) -> None:
        assert live.client("admin").post("/api/retention", json={"older_than_s": 60}).status_code == 400
