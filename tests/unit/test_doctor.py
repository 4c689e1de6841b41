"""The doctor's judgements, each from facts made up for it; and its report."""

import json
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.answers import Answer
from pisync_agent.clock import RELEASED_MS
from pisync_agent.doctor import clock, disk, folder, network, outbox, probing, receiver, report, service
from pisync_agent.doctor.findings import CHECKS, Effect, Finding, Verdict, bad, effect, first, in_order, ok, warn
from pisync_agent.doctor.repairs import REPAIRS, Repaired
from pisync_agent.doctor.subject import Subject
from pisync_agent.errors import BadAnswer, Overloaded, Refused, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.network.certificates import Certificate
from pisync_agent.network.proxies import Proxy
from pisync_agent.outbox.condition import Condition
from pisync_agent.outbox.faults import Fault
from pisync_agent.outbox.integrity import Integrity
from pisync_agent.service.spool_folder import SpoolCounts
from pisync_common import __version__
from pisync_common.models import Receipt
from pisync_common.problems import CONTENT_TYPE, problem_type

NOW = datetime(2026, 11, 30, 10, 0, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SYSTEM = Path("/var/lib/pisync")
HOME = Path("/home/pi/.local/share/pisync")
WAY = network.Way(url="https://pisync.example.org")
TOKEN = "psd_secret"
IDENTITY = Identity(url=WAY.url, device_id="pibook-1", token=TOKEN)
OUTBOX: dict[str, Any] = {
    "stream": "s", "last_seq": 9, "delivered": 9, "watermark": 9, "waiting": 0, "dead": 0, "salvaged": [],
}  # fmt: skip


def subject(home: Path = SYSTEM, **found: Any) -> Subject:
    """A healthy device, but for `found`; `outbox` changes its numbers."""
    numbers = OUTBOX | found.pop("outbox", {})
    state = {"device_id": "pibook-1", "url": WAY.url, "outbox": numbers, "last_run": found.pop("last_run", None)}
    live = {"kind": "service", "pid": 7, "version": __version__, "enrolled": True}
    given: dict[str, Any] = {"home": home, "live": live, "identity": IDENTITY, "state": state}
    return Subject(**given | found)


def the(verdict: Verdict, finding: Finding, *words: str) -> None:
    """Assert a verdict, and that summary, evidence and advice have these words; what is wrong comes with advice."""
    text = " ".join((finding.summary, *finding.evidence, finding.advice))
    assert finding.verdict is verdict, finding
    assert [word for word in words if word not in text] == [], text
    assert bool(finding.advice) == (verdict in (Verdict.WARN, Verdict.BAD))
    assert finding.check in CHECKS
    assert finding.fix is None or finding.fix in REPAIRS
    assert TOKEN not in text


# Disk and kernel

ROOMY = disk.DiskFacts(free_bytes=2 << 30, total_bytes=8 << 30, free_inodes=50_000, read_only=False, device="mmcblk0p2")


@pytest.mark.parametrize(
    ("facts", "fault", "verdict", "words"),
    [
        ({}, None, Verdict.OK, ["2.0 GiB free of 8.0 GiB"]),
        ({"read_only": True}, None, Verdict.BAD, ["read-only", "replace the card"]),
        ({"free_bytes": 1000}, None, Verdict.BAD, ["is full", "Delete files"]),
        ({"free_inodes": 0}, None, Verdict.BAD, ["inodes", "Delete files"]),
        ({"free_bytes": 30 << 20}, None, Verdict.WARN, ["nearly full"]),
        ({"free_inodes": 5}, None, Verdict.WARN, ["nearly full"]),
        ({"free_inodes": None}, None, Verdict.OK, []),
        ({}, {"detail": "disk I/O error", "since_ms": NOW_MS, "count": 3}, Verdict.BAD, ["I/O", "3 failed writes"]),
    ],
)
def test_disk(facts: dict[str, Any], fault: dict[str, Any] | None, verdict: Verdict, words: list[str]) -> None:
    the(verdict, disk.check_disk(replace(ROOMY, **facts), write_fault=fault), *words)


@pytest.mark.parametrize(
    ("line", "device", "verdict"),
    [
        ("mmc0: error -110 whilst initialising SD card", "mmcblk0p2", Verdict.BAD),
        ("blk_update_request: I/O error, dev mmcblk0, sector 64", "mmcblk0p2", Verdict.BAD),
        ("EXT4-fs error (device mmcblk0p2): ext4_find_entry:1455: inode #2", "mmcblk0p2", Verdict.BAD),
        ("Buffer I/O error on dev sda1, logical block 0", "sda1", Verdict.BAD),
        ("Buffer I/O error on dev sda1, logical block 0", "mmcblk0p2", Verdict.WARN),
        ("EXT4-fs error (device mmcblk1p1): bad block", "mmcblk0p2", Verdict.WARN),
        ("EXT4-fs error (device loop3): bad block", "mmcblk0p2", Verdict.OK),
        ("hwmon hwmon1: Undervoltage detected!", "mmcblk0p2", Verdict.WARN),
        ("Under-voltage detected! (0x00050005)", "", Verdict.WARN),
        ("mmc0: new high speed SDHC card at address aaaa", "mmcblk0p2", Verdict.OK),
        ("EXT4-fs (mmcblk0p2): re-mounted. Opts: errors=remount-ro", "mmcblk0p2", Verdict.OK),
    ],
)
def test_kernel_log(line: str, device: str, verdict: Verdict) -> None:
    the(verdict, disk.check_kernel(["usb 1-1: new device", line], device))


def test_kernel_log_that_may_not_be_read_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    the(Verdict.SKIPPED, disk.check_kernel(None, "sda1"), "kernel's log")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    the(Verdict.SKIPPED, disk.check_kernel(None, "sda1"), "sudo pisync doctor")


# Folder


def entry(name: str, *, uid: int = 990, mode: int = 0o600, age_s: float = 0) -> folder.Entry:
    return folder.Entry(path=SYSTEM / name, uid=uid, mode=mode, age_s=age_s)


@pytest.mark.parametrize(
    ("mode", "entries", "verdict", "fix"),
    [
        (0o750, [entry("outbox.db"), entry("notes.txt", uid=1, mode=0o644)], Verdict.OK, None),
        (0o750, [entry("outbox.db-wal", uid=0)], Verdict.BAD, "ownership"),
        (0o750, [entry("identity.json", mode=0o644)], Verdict.WARN, "modes"),
        (0o700, [entry("outbox.db")], Verdict.BAD, "modes"),
        (0o750, [entry(".identity.json.0123abcd", age_s=9999)], Verdict.WARN, "leftovers"),
        (0o750, [entry(".identity.json.0123abcd", age_s=5)], Verdict.OK, None),
        (0o750, [entry("outbox.db.broken-20261101", age_s=9999)], Verdict.OK, None),
    ],
)
def test_folder(mode: int, entries: list[folder.Entry], verdict: Verdict, fix: str | None) -> None:
    facts = folder.FolderFacts(path=SYSTEM, uid=990, gid=990, mode=mode, entries=tuple(entries))

    found = folder.check_folder(SYSTEM, facts, system=True)

    the(verdict, found)
    assert found.fix == fix


def test_folder_that_this_user_may_not_see() -> None:
    the(Verdict.SKIPPED, folder.check_folder(SYSTEM, PermissionError(13, "no"), system=True), "sudo pisync doctor")
    the(Verdict.WARN, folder.check_folder(HOME, FileNotFoundError(2, "no"), system=False), "nothing was ever")
    the(Verdict.BAD, folder.check_folder(HOME, OSError(5, "Input/output error"), system=False), "Input/output error")


def test_strays_name_the_folder_and_the_command() -> None:
    the(Verdict.OK, folder.check_strays([]))
    the(Verdict.WARN, folder.check_strays([HOME]), str(HOME), f"sudo pisync adopt {HOME}")


def test_files_of_apps_that_were_not_taken() -> None:
    spool = HOME / "spool"
    the(Verdict.OK, folder.check_spool(spool, SpoolCounts(pending=2)))
    the(Verdict.BAD, folder.check_spool(spool, SpoolCounts(pending=2, left=1)), "1 file", "is not", "pisync logs")
    the(Verdict.WARN, folder.check_spool(spool, SpoolCounts(refused=3)), "3 files", "reason")
    the(Verdict.SKIPPED, folder.check_spool(spool, None), "sudo pisync doctor")


# Service, socket, enrollment


@pytest.mark.parametrize(
    ("found", "unit", "verdict", "fix", "words"),
    [
        ({}, {"ActiveState": "active", "SubState": "running"}, Verdict.OK, None, ["process 7"]),
        ({"live": None}, {"UnitFileState": "enabled"}, Verdict.BAD, "start-service", ["systemctl start"]),
        ({"live": None}, {"UnitFileState": "disabled"}, Verdict.BAD, "start-service", ["enable --now"]),
        ({"live": None}, {"UnitFileState": "masked"}, Verdict.BAD, None, ["unmask"]),
        ({"live": None}, {"LoadState": "not-found"}, Verdict.BAD, None, ["Install the package"]),
        ({"live": None, "home": HOME}, None, Verdict.WARN, None, ["pisync run"]),
        ({"live": {"kind": "sync"}}, None, Verdict.BAD, "start-service", ["does not run"]),
        ({"live": {"kind": "service", "version": "0.1"}}, None, Verdict.WARN, "restart-service", ["0.1"]),
        ({"live": None, "silent": "the service (process 1) runs but …"}, None, Verdict.BAD, "restart-service", []),
        ({"live": None, "barred": "no"}, {"ActiveState": "active"}, Verdict.OK, None, ["active"]),
        ({"live": None, "barred": "no"}, None, Verdict.SKIPPED, None, ["sudo pisync doctor"]),
    ],
)
def test_service(
    found: dict[str, Any], unit: dict[str, str] | None, verdict: Verdict, fix: str | None, words: list[str]
) -> None:
    finding = service.check_service(subject(**found), unit)

    the(verdict, finding, *words)
    assert finding.fix == fix


def test_service_that_systemd_restarts_says_how_often() -> None:
    unit = {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "NRestarts": "9"}

    the(Verdict.BAD, service.check_service(subject(live=None), unit), "ended by exit-code", "restarted 9 times")


def unsettled(kind: str) -> dict[str, Any]:
    return {"enrolled": False, "enrollment": {"kind": kind, "detail": "why it is"}}


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        ({}, Verdict.OK, ["pibook-1", WAY.url]),
        ({"identity": None, "state": {"device_id": "pibook-1", "url": WAY.url}}, Verdict.OK, ["pibook-1"]),
        ({"identity": None, "state": {"device_id": None}}, Verdict.BAD, ["not enrolled", "pisync enroll"]),
        ({"identity": None, "identity_fault": "no", "state": None}, Verdict.SKIPPED, ["sudo"]),
        ({"live": {"enrolled": False}}, Verdict.BAD, ["has not noticed", "reload"]),
        ({"live": unsettled("moved")}, Verdict.BAD, ["another machine", "why it is", "--moved", "--new-device"]),
        ({"live": unsettled("waiting")}, Verdict.BAD, ["waits for the receiver", "why it is"]),
        ({"live": unsettled("refused")}, Verdict.BAD, ["refused", "why it is", "another file"]),
        ({"live": unsettled("invalid")}, Verdict.BAD, ["cannot be used", "why it is", "enroll-file FILE"]),
    ],
)
def test_enrollment(found: dict[str, Any], verdict: Verdict, words: list[str]) -> None:
    the(verdict, service.check_enrollment(subject(**found)), *words)


def test_damaged_identity_differs_from_a_hidden_identity(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{")
    found = subject(tmp_path, identity=None, identity_fault="identity.json is damaged", state=None)

    the(Verdict.BAD, service.check_enrollment(found), "is damaged", "pisync enroll")


def test_stranger_learns_how_to_be_let_in() -> None:
    the(Verdict.WARN, service.check_socket(subject(live=None, barred="may not ask")), "adduser", "may not ask")


# Outbox


def test_outbox_file() -> None:
    the(Verdict.OK, outbox.check_outbox(subject(), Integrity()), "sound; 9 events")
    the(Verdict.OK, outbox.check_outbox(subject(), Integrity(complete=False)), "no damage in the part")
    the(Verdict.BAD, outbox.check_outbox(subject(), Integrity(problems=("Page 3: bad",))), "Page 3", "Copy /var/lib")
    the(Verdict.BAD, outbox.check_outbox(subject(state=None), StoreUnusable("written by a newer PiSync")), "newer")
    the(Verdict.SKIPPED, outbox.check_outbox(subject(), None), "sudo pisync doctor")
    the(Verdict.OK, outbox.check_outbox(subject(outbox={"stream": None}), None), "none yet")


def test_damage_that_sqlite_does_not_notice() -> None:
    lost = Condition(fault=Fault.LOG_MISSING, detail="its log is missing", reading=False, writing=True, state=None)

    the(Verdict.BAD, outbox.check_outbox(subject(condition=lost), Integrity()), "log is missing", "Copy /var/lib")


@pytest.mark.parametrize(
    ("waiting", "occurred_at", "verdict", "words"),
    [
        (0, None, Verdict.OK, ["everything is delivered"]),
        (1, "2026-11-30T09:00:00.000Z", Verdict.OK, ["1 event waits", "60 min"]),
        (3, "2026-11-27T10:00:00.000Z", Verdict.WARN, ["3 events wait", "3 days", "pisync sync"]),
        (3, "1970-01-01T00:00:09.000Z", Verdict.OK, ["3 events wait for delivery"]),
        (3, "2031-01-01T00:00:00.000Z", Verdict.OK, ["3 events wait for delivery"]),
        (3, "what?", Verdict.OK, ["3 events wait for delivery"]),
    ],
)
def test_backlog(waiting: int, occurred_at: str | None, verdict: Verdict, words: list[str]) -> None:
    found = subject(outbox={"waiting": waiting}, oldest={"occurred_at": occurred_at})

    the(verdict, outbox.check_backlog(found, now_ms=NOW_MS), *words)


def test_rejected_events_are_counted_by_reason() -> None:
    the(Verdict.OK, outbox.check_rejected(subject()))
    found = outbox.check_rejected(subject(outbox={"dead": 3}, dead={"invalid_event": 2, "conflict": 1}))

    the(Verdict.BAD, found, "3 events were rejected", "2 times invalid_event", "pisync queue dead")


def receipt(watermark: int) -> Receipt:
    return Receipt(
        device_id="pibook-1", stream="s", stored=0, duplicates=0, rejected=(), watermark=watermark, server_time="x"
    )


def test_clone() -> None:
    cloned = {"at_ms": NOW_MS, "reason": "the receiver has other events (a cloned card)", "file": "f", "transferred": 1}
    the(Verdict.OK, outbox.check_clone(subject(), receipt(9)))
    the(Verdict.BAD, outbox.check_clone(subject(), receipt(40)), "Another device", "1 to 40")
    the(Verdict.WARN, outbox.check_clone(subject(outbox={"salvaged": [cloned]}), None), "copied", "--device-id")


# Network

UP = network.Interface(name="wlan0", up=True, addresses=("192.168.1.5",), wireless=True)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        ([UP], Verdict.OK, ["wlan0"]),
        ([replace(UP, up=False)], Verdict.BAD, ["no interface is connected", "rfkill"]),
        ([], Verdict.BAD, ["has no network interface"]),
    ],
)
def test_interface(found: list[network.Interface], verdict: Verdict, words: list[str]) -> None:
    the(verdict, network.check_interface(found, WAY), *words)
    the(Verdict.OK, network.check_interface(found, network.Way(url="http://127.0.0.1:8080")), "none is needed")


@pytest.mark.parametrize("addresses", [(), ("169.254.7.7",), ("169.254.7.7", "fe80::1")])
def test_address_that_no_router_gave_is_none(addresses: tuple[str, ...]) -> None:
    the(Verdict.BAD, network.check_address([replace(UP, addresses=addresses)], WAY, {}), "no address")


def test_names() -> None:
    import socket

    servers = ["192.168.1.1"]
    unknown = network.Resolved(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    failing = network.Resolved(error=socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    the(Verdict.OK, network.check_dns(WAY.host, network.Resolved(addresses=("203.0.113.5",)), servers), "203.0.113.5")
    the(Verdict.BAD, network.check_dns(WAY.host, unknown, servers), "is unknown", "192.168.1.1")
    the(Verdict.BAD, network.check_dns(WAY.host, failing, []), "Temporary failure", "no name server is configured")
    the(Verdict.BAD, network.check_dns(WAY.host, network.Resolved(error=TimeoutError()), servers), "gives no answer")


def test_connections() -> None:
    good = network.Attempt(address="203.0.113.5", seconds=0.023)
    the(Verdict.OK, network.check_tcp(WAY, [good]), "port 443", "23 ms")
    refused = replace(good, error=ConnectionRefusedError(111, "Connection refused"))
    the(Verdict.BAD, network.check_tcp(WAY, [refused]), "refuses connections", "the port is wrong", WAY.url)
    silent = replace(good, error=TimeoutError(), seconds=1.5)
    the(Verdict.BAD, network.check_tcp(WAY, [silent, silent]), "does not answer", "no answer in 1.5 s", "firewall")
    the(Verdict.OK, network.check_tcp(WAY, [refused, good]), "Connection refused")


def test_proxy_is_named_without_its_login() -> None:
    proxy = Proxy(variable="HTTPS_PROXY", scheme="http", host="proxy.example", port=3128, login=("u", TOKEN))
    found = network.check_proxy(network.Way(url=WAY.url, proxy=proxy), "the service")

    the(Verdict.OK, found, "proxy.example:3128", "HTTPS_PROXY", "the service")


# Clock


@pytest.mark.parametrize(
    ("facts", "blocks_tls", "verdict", "words"),
    [
        ({"receiver_ms": 400}, False, Verdict.OK, ["right, to 0.4 s"]),
        ({"receiver_ms": 40_000}, False, Verdict.OK, ["40 s behind", "corrected"]),
        ({"receiver_ms": -2 * HOUR_MS}, False, Verdict.WARN, ["2 h ahead", "corrected", "date -s"]),
        ({"ntp_ms": 3 * 365 * DAY_MS + 5, "ntp_server": "n"}, True, Verdict.BAD, ["3.0 years behind", "by NTP (n)"]),
        ({"ntp_ms": 300, "receiver_ms": HOUR_MS}, False, Verdict.OK, ["by the receiver: 60 min behind"]),
        ({"synced": True}, True, Verdict.OK, ["synchronised, says the kernel"]),
        ({}, True, Verdict.WARN, ["may be wrong", "watch"]),
        ({}, False, Verdict.OK, ["not synchronised"]),
        ({"now_ms": 5_000}, False, Verdict.BAD, ["is wrong", "1970"]),
        ({"now_ms": RELEASED_MS - DAY_MS, "ntp_ms": 600_000}, True, Verdict.BAD, ["10 min behind"]),
    ],
)
def test_clock(facts: dict[str, Any], blocks_tls: bool, verdict: Verdict, words: list[str]) -> None:
    given: dict[str, Any] = {"now_ms": NOW_MS, "synced": False}
    known = clock.ClockFacts(**given | facts)

    the(verdict, clock.check_clock(known, blocks_tls=blocks_tls), *words)


def test_clock_is_repaired_where_the_time_service_is_off() -> None:
    facts = clock.ClockFacts(now_ms=NOW_MS, synced=False, receiver_ms=HOUR_MS, ntp_off=True)

    assert clock.check_clock(facts, blocks_tls=False).fix == "ntp"


def test_ntp_servers_are_those_of_the_time_service(tmp_path: Path) -> None:
    main, more = tmp_path / "timesyncd.conf", tmp_path / "timesyncd.conf.d"
    assert clock.ntp_servers([main, more]) == ["0.debian.pool.ntp.org", "1.debian.pool.ntp.org"]
    main.write_text("[Time]\n#NTP=commented.example\nFallbackNTP=fallback.example\n")
    assert clock.ntp_servers([main, more]) == ["fallback.example"]
    more.mkdir()
    (more / "school.conf").write_text("[Time]\nNTP=a.example b.example c.example\n")
    assert clock.ntp_servers([main, more]) == ["a.example", "b.example"]


# TLS, sign-in pages, the receiver

KNOWN = Certificate(issuer="A school", not_before=NOW - timedelta(days=30), not_after=NOW + timedelta(days=60))


def rejected(code: int, message: str = "self-signed certificate") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("tls", "now", "certain", "verdict", "words"),
    [
        (probing.Tls(version="TLSv1.3", certificate=KNOWN), NOW, True, Verdict.OK, ["TLSv1.3", "A school"]),
        (probing.Tls(certificate=KNOWN), NOW + timedelta(days=50), True, Verdict.WARN, ["expires on 2027-01-29"]),
        (probing.Tls(certificate=KNOWN, error=rejected(10)), NOW + timedelta(days=70), True, Verdict.BAD,
         ["expired on 2027-01-29", "true date", "has to be renewed"]),
        (probing.Tls(certificate=KNOWN, error=rejected(9)), NOW, True, Verdict.BAD, ["Set the clock"]),
        (probing.Tls(certificate=KNOWN, error=rejected(9)), NOW - timedelta(days=99), False, Verdict.BAD,
         ["not valid before", "or the clock of this device is wrong", "date on this device"]),
        (probing.Tls(certificate=KNOWN, error=rejected(18)), NOW, True, Verdict.BAD,
         ["cannot be trusted: self-signed certificate", "issued by A school", "--ca"]),
        (probing.Tls(error=ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong")), NOW, True, Verdict.BAD, ["wrong"]),
        (probing.Tls(error=TimeoutError()), NOW, True, Verdict.BAD, ["no answer in time"]),
    ],
)  # fmt: skip
def test_tls(tls: probing.Tls, now: datetime, certain: bool, verdict: Verdict, words: list[str]) -> None:
    the(verdict, receiver.check_tls(WAY, tls, now=now, certain=certain), *words)


def reply(status: int, body: object = b"", *, kind: str = "application/json", own: bool = True, **more: str) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": kind} | more
    return probing.Reply(answer=Answer(status=status, headers=headers, body=raw, own=own))


READY = reply(200, {"status": "ok", "version": "0.3.0"})
PAGE = reply(200, b"<html>", kind="text/html", own=False)
REDIRECT = reply(302, own=False, kind="text/html", location="http://login.hotel.example/?user=17")


def test_sign_in() -> None:
    the(Verdict.OK, receiver.check_sign_in(WAY, READY, None), "the receiver itself answers")
    the(Verdict.BAD, receiver.check_sign_in(WAY, PAGE, None), "web page", "browser")
    the(Verdict.BAD, receiver.check_sign_in(WAY, probing.Reply(), REDIRECT), "login.hotel.example")
    assert "user=17" not in str(receiver.check_sign_in(WAY, probing.Reply(), REDIRECT))
    the(Verdict.OK, receiver.check_sign_in(WAY, probing.Reply(), probing.Reply(error=TimeoutError())), "no sign")


def test_receiver() -> None:
    problem = {"type": problem_type("unavailable"), "detail": "the disk is full"}
    the(Verdict.OK, receiver.check_receiver(WAY, READY), "version 0.3.0")
    the(Verdict.OK, receiver.check_receiver(WAY, reply(200, {"status": "ok"})), "not told")
    the(Verdict.BAD, receiver.check_receiver(WAY, reply(503, problem, kind=CONTENT_TYPE)), "the disk is full")
    the(Verdict.BAD, receiver.check_receiver(WAY, reply(502, b"", own=False)), "gateway answers 502")
    the(Verdict.BAD, receiver.check_receiver(WAY, PAGE), "not a PiSync receiver")
    the(Verdict.BAD, receiver.check_receiver(WAY, probing.Reply(error=TimeoutError())), "gave no answer")


def test_credential() -> None:
    the(Verdict.OK, receiver.check_credential(subject(), receipt(1234)), "1 to 1,234")
    the(Verdict.BAD, receiver.check_credential(subject(), Refused("401: revoked", kind="auth")), "revoked", "--again")
    the(Verdict.WARN, receiver.check_credential(subject(), Overloaded("429", kind="http_4xx")), "busy")
    the(Verdict.BAD, receiver.check_credential(subject(), BadAnswer("not a receipt", kind="http_5xx")), "not a receipt")
    the(Verdict.SKIPPED, receiver.check_credential(subject(), TimeoutError()))
    the(Verdict.SKIPPED, receiver.check_credential(subject(identity=None, identity_fault="no"), None), "sudo")
    run = {"failure": {"code": "refused", "detail": "401"}}
    the(Verdict.BAD, receiver.check_credential(subject(identity=None, last_run=run), None), "revoked")


# The report


def test_first_is_the_cause_and_not_the_effect() -> None:
    effects = [bad("tls", "T", advice="t"), bad("clock", "C", advice="c"), warn("disk", "D", advice="d")]
    assert [each.check for each in in_order(effects)] == ["disk", "clock", "tls"]
    found = first(in_order(effects))
    assert found is not None
    assert found.check == "clock"
    assert first([ok("disk", "fine")]) is None


def test_most_severe_effect_counts() -> None:
    assert effect([warn("disk", "D", advice="d")]) is None
    assert effect([bad("rejected", "R", advice="r")]) is Effect.ATTENTION
    assert effect([bad("rejected", "R", advice="r"), bad("tcp", "T", advice="t")]) is Effect.UNREACHABLE
    assert effect([bad("credential", "C", advice="c"), bad("tcp", "T", advice="t")]) is Effect.REFUSED
    assert effect([bad("outbox", "O", advice="o"), bad("credential", "C", advice="c")]) is Effect.STORE


def test_report_fits_80_columns_and_begins_with_the_first_thing_to_do() -> None:
    path = "/a/" + "very-long-folder/" * 12
    found = [ok("disk", "fine"), bad("clock", f"It is “{path}” – wrong…", path, advice=f"rm {path}"), ok("tls", "é")]

    text = report.text(found, [Repaired(fix="ntp", done=False, text=f"no {path}")])

    assert text.startswith("First: It is")
    assert max(map(len, text.splitlines())) <= 80
    assert set(text) - set(map(chr, range(32, 127))) == {"\n", "é"}
    assert report.text([ok("disk", "fine")]).startswith("First: nothing.")


def test_json_has_its_documented_fields() -> None:
    found = [ok("disk", "fine"), warn("clock", "C", "e", advice="c", fix="ntp")]

    shown = report.fields(found, [Repaired(fix="ntp", done=True, text="t")], code=0, version="1")

    assert shown == {
        "schema": 1,
        "version": "1",
        "verdict": "warn",
        "exit_code": 0,
        "first": shown["findings"][1],
        "findings": [
            {"check": "disk", "verdict": "ok", "summary": "fine", "evidence": [], "advice": "", "fix": None},
            {"check": "clock", "verdict": "warn", "summary": "C", "evidence": ["e"], "advice": "c", "fix": "ntp"},
        ],
        "fixed": [{"fix": "ntp", "done": True, "text": "t"}],
    }


def test_documentation_names_every_check_and_repair() -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()

    assert [check for check in CHECKS if f"`{check}`" not in page] == []
    assert [fix for fix in REPAIRS if f"`{fix}`" not in page] == []
