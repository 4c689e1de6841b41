"""`pisync doctor` on devices where one thing is really broken, and where everything is."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

import pisync_agent.client as clients
import pisync_agent.identity as identities
from pisync_agent import Recorder
from pisync_agent.clock import SystemClock
from pisync_agent.commands import cli
from pisync_agent.doctor import clock
from pisync_agent.doctor.deadlines import Deadline
from pisync_agent.doctor.examination import examine
from pisync_agent.doctor.findings import CHECKS, Finding, Verdict, first
from pisync_agent.doctor.network import Interface
from pisync_agent.doctor.repairs import repair
from pisync_agent.doctor.surroundings import Surroundings
from pisync_agent.identity import Identity
from pisync_agent.outbox import files, integrity
from pisync_agent.service import protocol
from pisync_common.problems import CONTENT_TYPE, problem_type
from tests.support.certificates import Authority
from tests.support.outboxes import event, events, opened, receipt
from tests.support.processes import AgentProcess, ReceiverProcess
from tests.support.raw_server import Peer, RawServer, answering, http
from tests.support.services import installed, missing, root
from tests.support.small_disk import small_disk, use_up

TOKEN = "psd_secret"
READY = http(200, {"status": "ok", "version": "0.3.0"})
PAGE = http(200, "<html>Welcome to the school's network", kind="text/html")
LINK = Interface(name="eth0", up=True, addresses=("192.0.2.7",))
QUIET = Surroundings(
    environ={}, ntp_servers=list, ntp_off=lambda: False, kernel_log=list, interfaces=lambda: [LINK], synced=lambda: True
)
"""Surroundings in which nothing is wrong, and no packet leaves this machine for NTP."""


def enrolled(home: Path, url: str, *, ca_file: Path | None = None, number: int = 3) -> Path:
    """An enrolled device with an outbox and without a service."""
    outbox = opened(home)
    outbox.append(events(number))
    outbox.close()
    ca = str(ca_file) if ca_file else None
    identities.save(home, Identity(url=url, device_id="pibook-1", token=TOKEN, insecure_http=True, ca_file=ca))
    return home


def examined(home: Path, around: Surroundings = QUIET, **given: Any) -> dict[str, Finding]:
    found = examine(home, around, **given)
    assert [each.check for each in found] == list(CHECKS)
    assert TOKEN not in repr(found)
    return {each.check: each for each in found}


def bad(found: Mapping[str, Finding]) -> list[str]:
    return [check for check, each in found.items() if each.verdict is Verdict.BAD]


# A real receiver


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as made:
        yield made


@pytest.fixture(scope="module")
def code(receiver: ReceiverProcess) -> str:
    return receiver.enrollment_code("--uses", "100")


@pytest.fixture
def agent(tmp_path: Path, receiver: ReceiverProcess, code: str) -> Iterator[AgentProcess]:
    """A running device that has delivered an event."""
    with AgentProcess(tmp_path / "device") as made:
        made.home.mkdir()
        identities.save(made.home, clients.enroll(receiver.url, code, device_id=tmp_path.name, clock=SystemClock()))
        made.start()
        deliver_an_event(made)
        yield made


def deliver_an_event(agent: AgentProcess) -> None:
    with Recorder(agent.home) as recorder:
        recorder.record("note.taken")
    result = protocol.sync(agent.socket, lambda progress: None)
    assert result is not None
    assert result["waiting"] == 0


class Doctor(Protocol):
    """Runs the command; returns its exit code and its output as one line."""

    def __call__(self, agent: AgentProcess, *arguments: str) -> tuple[int, str]: ...


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def run(agent: AgentProcess, *arguments: str) -> tuple[int, str]:
        code = cli.main(["doctor", "--home", str(agent.home), *arguments])
        output = capsys.readouterr().out
        assert max(map(len, output.splitlines())) <= 80 or "--json" in arguments
        return code, " ".join(output.split())

    return run


def test_device_that_is_fine(agent: AgentProcess, doctor: Doctor) -> None:
    found = agent.json("doctor")
    code, text = doctor(agent)

    wrong = [each for each in found["findings"] if each["verdict"] in ("warn", "bad") and each["check"] != "kernel"]
    assert wrong == []
    assert (found["exit_code"], found["schema"], code) == (0, 1, 0)
    assert [each["check"] for each in found["findings"]] == list(CHECKS)
    assert text.startswith("First: ")


def test_the_receiver_is_asked_with_the_token_and_nothing_changes(agent: AgentProcess) -> None:
    before = agent.status()
    found = examined(agent.home)

    assert "has events 1 to 1" in found["credential"].summary
    assert "version" in found["receiver"].summary
    assert found["clock"].verdict is Verdict.OK
    assert "of the service" in found["proxy"].summary
    assert agent.status()["waiting"] == before["waiting"] == 0


def test_hung_service(agent: AgentProcess, doctor: Doctor) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    code, text = doctor(agent)
    found = examined(agent.home)
    os.kill(agent.pid, signal.SIGCONT)

    assert code == 1
    assert text.startswith("First: The service runs but does not answer: it was stopped by a signal")
    assert bad(found) == ["service"]
    assert f"process {agent.pid}" in found["service"].evidence[0]


def test_retired_device(agent: AgentProcess, receiver: ReceiverProcess, doctor: Doctor) -> None:
    receiver.command("device", "retire", agent.home.parent.name)
    code, text = doctor(agent)

    assert code == 4
    assert "The receiver refused this device" in text.partition("Do:")[0]


def test_receiver_that_is_away(agent: AgentProcess, receiver: ReceiverProcess, doctor: Doctor) -> None:
    receiver.kill()
    try:
        code, text = doctor(agent)
    finally:
        receiver.start()

    assert code == 3
    assert f"port {receiver.port} refuses connections" in text
    assert "not checked: there is no connection" in text


def test_copied_card(agent: AgentProcess, tmp_path: Path) -> None:
    """The original goes on; the copy, from before, sees that the receiver knows more than it recorded."""
    agent.stop()
    copy = tmp_path / "copy"
    shutil.copytree(agent.home, copy)
    agent.start()
    deliver_an_event(agent)

    found = examined(copy)

    assert bad(found) == ["clone"]
    assert "1 to 2, this device recorded 1 to 1" in found["clone"].evidence[0]


# Receivers that are not well, and what answers in their place


@pytest.mark.parametrize(
    ("answers", "wrong", "words"),
    [
        ([http(503, {"type": problem_type("unavailable"), "detail": "disk full"}, kind=CONTENT_TYPE)], "receiver",
         "cannot store: disk full"),
        ([http(429, {"type": problem_type("busy"), "detail": "wait"}, kind=CONTENT_TYPE)], "receiver", "answers 429"),
        ([http(502, "<html>", kind="text/plain")], "receiver", "gateway answers 502"),
        ([http(404, "no", kind="text/plain")], "receiver", "not a PiSync receiver"),
        ([PAGE], "sign-in", "web page"),
        ([http(302, kind="text/html", location="http://login.example/")], "sign-in", "login.example"),
        ([http(511, kind="text/html")], "sign-in", "511"),
    ],
)  # fmt: skip
def test_answers_in_place_of_a_receivers(tmp_path: Path, answers: list[bytes], wrong: str, words: str) -> None:
    with RawServer(answering(*answers)) as server:
        found = examined(enrolled(tmp_path / "device", server.url))

    assert bad(found)[0] == wrong
    assert words in found[wrong].summary
    assert found["credential"].verdict in (Verdict.SKIPPED, Verdict.WARN)


def test_refused_token(tmp_path: Path) -> None:
    refusal = http(401, {"type": problem_type("unauthorized"), "detail": f"{TOKEN} is revoked"}, kind=CONTENT_TYPE)

    def talk(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            peer.send(READY if request.startswith(b"GET /readyz") else refusal)

    with RawServer(talk) as server:
        found = examined(enrolled(tmp_path / "device", server.url))

    assert bad(found) == ["credential"]


@pytest.mark.parametrize("server", [Peer.wait, Peer.reset, lambda peer: peer.send(b"\0" * 100)])
def test_server_that_does_not_speak_http(tmp_path: Path, server: Callable[[Peer], None]) -> None:
    with RawServer(server) as raw:
        found = examined(enrolled(tmp_path / "device", raw.url), seconds=2)

    assert {"tcp", "sign-in", "receiver"} & set(bad(found))
    assert found["credential"].verdict is Verdict.SKIPPED


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "a")


@pytest.mark.parametrize(
    ("valid", "trusted", "synced", "words"),
    [
        ({}, True, True, ""),
        ({"end": "20210101000000Z"}, True, True, "expired on 2021-01-01."),
        ({"end": "20210101000000Z"}, True, False, "expired on 2021-01-01, or the clock of this device is wrong"),
        ({"start": "20850101000000Z"}, True, True, "not valid before 2085-01-01"),
        ({}, False, True, "cannot be trusted"),
    ],
)
def test_tls(
    tmp_path: Path, authority: Authority, valid: dict[str, str], trusted: bool, synced: bool, words: str
) -> None:
    with RawServer(answering(READY), tls=authority.server(**valid)) as server:
        home = enrolled(tmp_path / "device", server.url, ca_file=authority.certificate if trusted else None)
        found = examined(home, replace(QUIET, synced=lambda: synced))

    assert words in found["tls"].summary
    assert ("tls" in bad(found)) is bool(words)
    assert any("A school" in line for line in found["tls"].evidence)
    assert any(line.startswith("valid from 20") for line in found["tls"].evidence)


def test_clock_is_blamed_where_ntp_shows_that_it_is_wrong(tmp_path: Path, authority: Authority) -> None:
    """As on a device that woke years in the past: by its clock, the certificate is not valid yet."""
    around = replace(
        QUIET, synced=lambda: False, ntp_servers=lambda: ["ntp"], ask_ntp=lambda server: 60 * 365 * 86_400_000
    )
    with RawServer(answering(READY), tls=authority.server(start="20850101000000Z")) as server:
        found = examined(enrolled(tmp_path / "device", server.url, ca_file=authority.certificate), around)

    if "behind" not in found["clock"].summary:
        pytest.skip("this machine has no route at all, so NTP is not asked")
    assert bad(found)[:2] == ["clock", "tls"]
    assert "60.0 years behind" in found["clock"].summary
    assert "Set the clock" in found["tls"].advice


def test_server_without_tls(tmp_path: Path) -> None:
    with RawServer(answering(READY)) as server:
        found = examined(enrolled(tmp_path / "device", server.url.replace("http:", "https:")))

    assert "tls" in bad(found)
    assert found["receiver"].verdict is Verdict.SKIPPED


# Names, proxies, NTP


def test_unknown_name(tmp_path: Path) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    found = examined(
        enrolled(tmp_path / "device", "https://pisync.invalid"),
        replace(QUIET, resolve=unknown, environ={"https_proxy": "http://proxy.invalid:1"}),
    )

    assert bad(found)[0] == "dns"
    assert found["tcp"].verdict is Verdict.SKIPPED


def test_receiver_within_a_network_without_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A school's server on a network of its own, under a name with dots."""
    monkeypatch.setattr("pisync_agent.doctor.network.has_link", lambda host, *, environ: False)
    around = replace(QUIET, resolve=lambda *_: ["127.0.0.1"])
    with RawServer(answering(READY)) as server:
        home = enrolled(tmp_path / "device", f"http://server.school.example:{server.port}")
        found = examined(home, around)

    assert found["address"].verdict is Verdict.OK
    assert "the receiver is in it" in found["address"].summary
    assert found["receiver"].verdict is Verdict.OK


def test_proxy_that_wants_a_login(tmp_path: Path) -> None:
    with RawServer(answering(http(407, kind="text/plain"))) as server:
        proxy = {"HTTPS_PROXY": f"http://u:{TOKEN}@localhost:{server.port}"}
        around = replace(QUIET, environ=proxy, resolve=lambda *_: ["127.0.0.1"])
        found = examined(enrolled(tmp_path / "device", "https://pisync.invalid"), around)

    assert "HTTPS_PROXY" in found["proxy"].summary
    assert "asks for a user name" in found["tls"].summary


def test_receiver_behind_a_proxy(tmp_path: Path) -> None:
    with RawServer(answering(READY)) as proxy:
        around = replace(
            QUIET, environ={"http_proxy": f"http://localhost:{proxy.port}"}, resolve=lambda *_: ["127.0.0.1"]
        )
        found = examined(enrolled(tmp_path / "device", "http://pisync.invalid/base"), around)

    assert found["receiver"].verdict is Verdict.OK
    assert proxy.requests[0].startswith(b"GET http://pisync.invalid/base/readyz HTTP/1.1")


def test_certificate_is_read_through_a_proxys_tunnel(tmp_path: Path, authority: Authority) -> None:
    with RawServer(answering(READY), tls=authority.server()) as server:

        def tunnel(peer: Peer) -> None:
            peer.request()
            peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
            peer.join(server.port)

        with RawServer(tunnel) as proxy:
            around = replace(
                QUIET, environ={"https_proxy": f"http://localhost:{proxy.port}"}, resolve=lambda *_: ["127.0.0.1"]
            )
            home = enrolled(tmp_path / "device", "https://pisync.invalid", ca_file=authority.certificate)
            found = examined(home, around)

    assert proxy.requests[0].startswith(b"CONNECT pisync.invalid:443 HTTP/1.1")
    assert "Hostname mismatch" in found["tls"].summary
    assert found["tls"].evidence[0] == "issued by A school"


def test_proxy_that_cannot_be_used(tmp_path: Path) -> None:
    around = replace(QUIET, environ={"ALL_PROXY": "socks5://proxy.example"})
    found = examined(enrolled(tmp_path / "device", "https://pisync.invalid"), around)

    assert "proxy" in bad(found)
    assert "SOCKS" in found["proxy"].summary


@contextlib.contextmanager
def ntp_server(change: Callable[[bytearray], object]) -> Iterator[int]:
    """A server whose time is 2026-11-30 10:00:00, its answer changed by `change`; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))

        def serve() -> None:
            question, place = listening.recvfrom(100)
            answer = bytearray(question)
            answer[0], answer[1] = 0x24, 2
            now = (1_796_032_800 + 2_208_988_800).to_bytes(4) + bytes(4)
            answer[24:32], answer[32:40], answer[40:48] = question[40:48], now, now
            change(answer)
            listening.sendto(answer, place)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda answer: None, 3_600_000),
        (lambda answer: answer.__setitem__(slice(24, 32), bytes(8)), None),
        (lambda answer: answer.__setitem__(0, 0xE4), None),
        (lambda answer: answer.__setitem__(1, 0), None),
        (lambda answer: answer.__delitem__(slice(20, None)), None),
    ],
)
def test_ntp(change: Callable[[bytearray], object], expected: int | None) -> None:
    """Only an answer to this question, of a server that knows the time, counts."""
    with ntp_server(change) as port:
        found = clock.ask_ntp("127.0.0.1", port=port, now_ms=lambda: 1_796_032_800_000 - 3_600_000)

    assert found == expected or (expected and found and abs(found - expected) < 60_000)


# Disks and files


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, size=16 << 20) as disk:
        home = enrolled(disk / "device", "http://127.0.0.1:1")
        use_up(disk)
        found = examined(home)

    assert bad(found)[0] == "disk"
    assert "is full" in found["disk"].summary
    assert found["outbox"].verdict is Verdict.OK


def test_read_only_disk(tmp_path: Path, doctor: Doctor) -> None:
    with small_disk(tmp_path, size=16 << 20) as disk:
        home = enrolled(disk / "device", "http://127.0.0.1:1")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, text = doctor(AgentProcess(home))

    assert code == 5
    assert "takes no writes" in text.partition("Do:")[0]


def test_damaged_outbox(tmp_path: Path) -> None:
    home = enrolled(tmp_path / "device", "http://127.0.0.1:1", number=400)
    content = bytearray(files.database(home).read_bytes())
    content[4096 * 5 : 4096 * 8] = os.urandom(4096 * 3)
    files.database(home).write_bytes(content)

    found = examined(home)

    assert bad(found)[0] == "outbox"
    assert found["outbox"].evidence
    assert files.database(home).read_bytes() == content


def test_large_outbox_is_checked_as_far_as_time_allows(tmp_path: Path) -> None:
    home = enrolled(tmp_path / "device", "http://127.0.0.1:1", number=3000)

    assert not integrity.check(home, seconds=0, monotonic=lambda: 1.0).complete
    assert integrity.check(home, seconds=60, monotonic=lambda: 1.0) == integrity.Integrity()


def test_index_of_a_killed_service_is_left_alone(tmp_path: Path, agent: AgentProcess) -> None:
    """It says what the log must hold: the next start needs it to notice a log that was cut."""
    agent.kill()
    before = {path.name: path.read_bytes() for path in agent.home.iterdir() if path.is_file()}

    found = examined(agent.home)

    assert found["outbox"].verdict is Verdict.OK
    after = {path.name: path.read_bytes() for path in agent.home.iterdir() if path.is_file()}
    assert after["outbox.db-wal"] == before["outbox.db-wal"]
    assert after["outbox.db-shm"] == before["outbox.db-shm"]


def test_rejected_and_old_events(tmp_path: Path) -> None:
    home = enrolled(tmp_path / "device", "http://127.0.0.1:1")
    outbox = opened(home)
    outbox.settle(receipt(outbox, 2, rejected=[(2, "invalid_event")]), [1, 2])
    outbox.append([event(9)])
    outbox.close()

    found = examined(home)

    assert "1 times invalid_event" in found["rejected"].evidence
    assert found["backlog"].verdict is Verdict.WARN
    assert "2 events wait for delivery; the oldest waits for " in found["backlog"].summary


def test_repairs_touch_the_agents_files_and_no_event(tmp_path: Path) -> None:
    root("giving files away")
    home = enrolled(tmp_path / "device", "http://127.0.0.1:1")
    before = files.database(home).read_bytes()
    os.chown(files.reserve(home), 54_321, 54_321)
    (home / "notes.txt").write_text("not the agent's")
    os.chown(home / "notes.txt", 54_321, 54_321)
    stranger = examined(home)["folder"]
    assert (stranger.verdict, stranger.fix) == (Verdict.BAD, "ownership")
    assert repair(home, stranger).done

    files.database(home).chmod(0o644)
    (home / ".identity.json.0123abcd").touch()
    os.utime(home / ".identity.json.0123abcd", (0, 0))
    with AgentProcess(home) as agent:
        done = agent.json("doctor", "--fix", code=3)
    assert {each["fix"]: each["done"] for each in done["fixed"]} == {"modes": True, "leftovers": True}
    assert examined(home)["folder"].verdict is Verdict.OK
    assert (home / "notes.txt").stat().st_uid == 54_321
    assert not (home / ".identity.json.0123abcd").exists()
    assert files.database(home).read_bytes() == before


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A folder of root's, beside that of the agent's user."""
    made = tmp_path / "root"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An agent's folder whose user is hostile."""
    root("attacking root")
    home = enrolled(tmp_path / "device", "http://127.0.0.1:1")
    for each in (home, *home.iterdir()):
        os.chown(each, 54_321, 54_321)
    return home


def test_repairs_open_no_socket_that_a_link_names(hostile: Path, roots: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(roots / "s"))
        (roots / "s").chmod(0o600)
        files.socket(hostile).symlink_to(roots / "s")
        hostile.chmod(0o700)
        wrong = Finding(check="folder", verdict=Verdict.BAD, summary="s", advice="a", fix="modes")

        assert not repair(hostile, wrong).done

    assert (roots / "s").stat().st_mode & 0o777 == 0o600


def test_repairs_give_away_no_file_with_another_name(hostile: Path, roots: Path) -> None:
    (roots / "shadow").write_text("root's")
    os.link(roots / "shadow", hostile / "outbox.db-x;reboot")
    wrong = examined(hostile)["folder"]
    assert wrong.fix == "ownership"
    assert "reboot" not in wrong.advice

    assert not repair(hostile, wrong).done

    assert (roots / "shadow").stat().st_uid == 0


@pytest.mark.parametrize(
    ("fix", "program", "words"),
    [
        ("start-service", "systemctl", "enable --now pisync-agent"),
        ("restart-service", "systemctl", "restart pisync-agent"),
        ("ntp", "timedatectl", "set-ntp true"),
    ],
)
def test_repairs_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fix: str, program: str, words: str
) -> None:
    """Stands for systemd: a program that notes how it was called, then a program that fails."""
    root("asking systemd for it")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = tmp_path / "asked"
    (tmp_path / program).write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    (tmp_path / program).chmod(0o755)
    wanted = Finding(check="service", verdict=Verdict.BAD, summary="s", advice="a", fix=fix)

    assert repair(tmp_path, wanted).done
    assert asked.read_text().strip() == words

    (tmp_path / program).write_text("#!/bin/sh\necho Unit not found. >&2; exit 5\n")
    failed = repair(tmp_path, wanted)
    assert not failed.done
    assert "Unit not found." in failed.text


def test_repair_that_needs_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = repair(
        tmp_path, Finding(check="service", verdict=Verdict.BAD, summary="s", advice="a", fix="start-service")
    )

    assert not found.done
    assert found.text == "start the service: sudo pisync doctor --fix"


# Networks that lead nowhere


def without_network(home: Path, *setup: str) -> dict[str, Any]:
    """Run the doctor in a network namespace of its own."""
    root("a network namespace")
    installed("unshare")
    installed("ip")
    words = [sys.executable, "-m", "pisync_agent", "doctor", "--json", "--home", str(home)]
    script = " && ".join(["mount -t sysfs sysfs /sys", *setup, f"exec {shlex.join(words)}"])
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    own = ["unshare", "--net", "--mount", "sh", "-c", script]
    done = subprocess.run(own, capture_output=True, text=True, env=clean, check=False)
    if not done.stdout:
        missing(f"no network namespaces here: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode == 3
    return {each["check"]: each for each in found["findings"]}


VETH = ("ip link add name d0 type veth peer name d1", "ip link set d1 up", "ip link set d0 up")


def test_no_network_at_all(tmp_path: Path) -> None:
    found = without_network(enrolled(tmp_path / "device", "https://pisync.example.org"))

    assert found["interface"]["verdict"] == "bad"
    assert [found[check]["summary"] for check in ("address", "dns", "tcp", "tls")] == [
        "not checked: this device has no network"
    ] * 4


def test_no_address(tmp_path: Path) -> None:
    found = without_network(enrolled(tmp_path / "device", "https://pisync.example.org"), *VETH)

    assert (found["interface"]["verdict"], found["address"]["verdict"]) == ("ok", "bad")
    assert found["dns"]["summary"] == "not checked: this device has no address"


def test_no_way_out(tmp_path: Path) -> None:
    home = enrolled(tmp_path / "device", "https://203.0.113.7")
    found = without_network(home, *VETH, "ip addr add 192.0.2.7/24 dev d0")

    assert found["address"]["verdict"] == "bad"
    assert "leads nowhere" in found["address"]["summary"]
    assert found["tcp"]["summary"] == "not checked: this network leads nowhere"


def test_receiver_that_does_not_answer(tmp_path: Path) -> None:
    """Packets to it vanish, as behind a firewall."""
    home = enrolled(tmp_path / "device", "https://203.0.113.7")
    gateway = "ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev d0"
    found = without_network(
        home, *VETH, "ip addr add 192.0.2.7/24 dev d0", gateway, "ip route add default via 192.0.2.1"
    )

    assert found["tcp"]["verdict"] == "bad"
    assert "does not answer" in found["tcp"]["summary"]
    assert "203.0.113.7: no answer in" in found["tcp"]["evidence"][0]


# Everything at once


def test_all_is_examined_where_nothing_ever_ends(tmp_path: Path) -> None:
    """Name service, kernel log and NTP never answer: each check still has a finding, and the rest says why not."""
    never = threading.Event()

    def hang(*given: object) -> Any:
        never.wait()

    around = replace(QUIET, resolve=hang, kernel_log=hang, ask_ntp=hang, ntp_servers=lambda: ["x"])
    found = examined(enrolled(tmp_path / "device", "https://pisync.invalid"), around, seconds=0.5)
    never.set()

    assert found["disk"].verdict is Verdict.OK
    assert "given up" in found["kernel"].summary
    assert "before it did not end" in found["service"].summary
    assert {"kernel", "dns"} & set(bad(found)) == {"kernel", "dns"} or "address" in bad(found)


def test_folder_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr("pisync_agent.doctor.examination.gather", lambda home: never.wait())
    monkeypatch.setattr("pisync_agent.doctor.examination.GATHER_S", 0.1)
    found = examined(tmp_path)
    never.set()

    assert "the disk does not answer" in found["outbox"].summary + found["outbox"].advice


def test_fault_of_a_check_hides_nothing_else(tmp_path: Path) -> None:
    def broken() -> list[str]:
        raise RuntimeError("a fault of the doctor")

    found = examined(enrolled(tmp_path / "device", "http://127.0.0.1:1"), replace(QUIET, kernel_log=broken))

    assert found["kernel"].evidence == ("RuntimeError: a fault of the doctor",)
    assert first(list(found.values())) is found["tcp"]


def test_steps_of_an_examination_share_its_end() -> None:
    now = [100.0]
    deadline = Deadline(10, lambda: now[0])
    assert deadline.left(3) == 3
    now[0] = 108.5
    assert deadline.left(3) == 1.5
    now[0] = 200
    assert deadline.left(3) == 0


def test_budget_of_the_doctor_keeps_its_promise() -> None:
    """Less than 15 s in all: the examination, and the start of the program."""
    from pisync_agent.doctor import examination

    assert examination.TOTAL_S <= 10
