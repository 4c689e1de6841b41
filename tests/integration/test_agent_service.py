"""The service as a process: notices to systemd, start and stop, many apps at once, hostile peers."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pisync_agent import Recorder, config
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.service import protocol
from pisync_agent.service.service import FLUSH_S
from pisync_common import unix_socket
from pisync_common.unix_socket import LineClient
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess, wait_until
from tests.support.services import installed

WORKER = """
import sys
from pisync_agent import Recorder
with Recorder(sys.argv[1]) as recorder:
    for number in range(int(sys.argv[3])):
        print(recorder.record("note.taken", data={"from": sys.argv[2], "n": number}), number, flush=True)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        yield made


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path / "receiver") as running:
        yield running


class Systemd:
    """The socket on which systemd listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_SECONDS)
        self._socket.bind(str(path))

    def notice(self) -> str:
        return self._socket.recv(1000).decode()

    def gets_in_the_end(self, wanted: str) -> bool:
        """Whether it comes, after any number of other notices."""
        while self.notice() != wanted:
            pass
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify")
    yield listening
    listening.close()


def watched(tmp_path: Path, systemd: Systemd) -> AgentProcess:
    """A device whose service systemd watches closely."""
    environ = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "600000"}
    return AgentProcess(tmp_path / "device", environ=environ)


def events_in(home: Path) -> dict[int, Any]:
    """The data of every event by its seq; they are numbered without gaps."""
    outbox = open_outbox(home)
    rows = outbox.read(0, max_events=10**6, max_bytes=10**10)
    outbox.close()
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    return {seq: json.loads(body).get("data") for seq, body in rows}


# systemd


def test_systemd_gets_ready_watchdog_and_stopping(tmp_path: Path, systemd: Systemd) -> None:
    with watched(tmp_path, systemd) as agent:
        agent.start()
        assert [systemd.notice() for _ in range(4)].count("READY=1") == 1
        assert systemd.gets_in_the_end("WATCHDOG=1")
        assert agent.stop() == 0
        assert systemd.gets_in_the_end("STOPPING=1\nEXTEND_TIMEOUT_USEC=5000000")


def test_the_watchdog_does_not_need_a_network_nor_an_enrollment(tmp_path: Path, systemd: Systemd) -> None:
    with watched(tmp_path, systemd) as agent:
        agent.home.mkdir()
        (agent.home / "identity.json").write_text(
            '{"url": "https://192.0.2.1", "device_id": "d", "token": "psd_x", "ca_file": null}'
        )
        agent.start()
        agent.record()
        for _ in range(3):
            assert systemd.gets_in_the_end("WATCHDOG=1")


def test_a_write_that_fails_is_reported_and_the_watchdog_goes_on(tmp_path: Path, systemd: Systemd) -> None:
    with watched(tmp_path, systemd) as agent:
        agent.start()
        systemd.gets_in_the_end("WATCHDOG=1")
        code = (
            "import sqlite3, sys\n"
            "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(agent.home / "outbox.db")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as holder:  # fmt: skip
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            assert agent.run("record", "note.taken").returncode == 5
            wait_until(lambda: "recording fails" in agent.log(), "the service notes it")
            assert systemd.gets_in_the_end("WATCHDOG=1"), "a restart would not mend it"
            holder.communicate("")
        wait_until(lambda: "recording works again" in agent.log(), "it notices the end")


UNITS = Path(__file__).parents[2] / "agent/systemd"


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [installed("systemd-analyze"), *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    copies = [tmp_path / unit.name for unit in UNITS.iterdir()]
    for copy in copies:
        text = (UNITS / copy.name).read_text()
        copy.write_text(text.replace("/usr/bin/pisync", shutil.which("true") or "/bin/true"))
    done = analyze("verify", *map(str, copies))

    assert {copy.name for copy in copies} == {"pisync-agent.service", "pisync-agent.socket", "pisync-enroll.service"}
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_is_exposed_to_little() -> None:
    done = analyze("security", "--offline=true", "--threshold=15", str(UNITS / "pisync-agent.service"))

    assert done.returncode == 0, done.stdout


def test_a_stop_ends_before_systemd_kills_within_five_seconds() -> None:
    (given,) = re.findall(r"^TimeoutStopSec=(\d+)$", (UNITS / "pisync-agent.service").read_text(), re.MULTILINE)
    patience = config.settings_from(argparse.Namespace(), {})[config.STOP_TIMEOUT]

    assert patience + 2 * FLUSH_S <= int(given) <= 5


def test_a_service_that_cannot_start_is_not_started_for_ever() -> None:
    """The service has no limit of its own: it is restarted as often as it fails for another reason."""
    found = dict(re.findall(r"^(TriggerLimit\w+)=(.+)$", (UNITS / "pisync-agent.socket").read_text(), re.MULTILINE))

    assert found == {"TriggerLimitIntervalSec": "10min", "TriggerLimitBurst": "60"}


# Start and stop


def test_a_second_service_says_who_has_the_outbox(agent: AgentProcess) -> None:
    agent.start()
    second = agent.run("run")

    assert (second.returncode, second.stdout) == (5, "")
    assert f"process {agent.pid}" in second.stderr
    assert agent.record() == 1, "the first one goes on"


def test_after_a_kill_the_next_one_starts_and_nothing_is_lost(agent: AgentProcess) -> None:
    agent.start()
    assert [agent.record() for _ in range(3)] == [1, 2, 3]
    agent.kill()
    agent.start()

    assert agent.record() == 4
    assert agent.stop() == 0
    assert len(events_in(agent.home)) == 4


def test_a_graceful_end_leaves_no_socket_and_a_free_lock(agent: AgentProcess) -> None:
    agent.start()
    agent.record()

    assert agent.stop() == 0
    assert not agent.socket.exists()
    assert agent.record() == 2, "recorded directly"


def test_a_removed_outbox_ends_the_service_with_an_error(tmp_path: Path, systemd: Systemd) -> None:
    with watched(tmp_path, systemd) as agent:
        agent.start()
        agent.record()
        (agent.home / "outbox.db").rename(agent.home / "elsewhere.db")
        service = agent._process
        assert service is not None
        wait_until(lambda: service.poll() is not None, "the service ends")

        assert service.returncode == 5
        assert "removed or replaced" in agent.log()


def test_a_broken_outbox_is_salvaged_at_the_start(agent: AgentProcess) -> None:
    agent.record()
    (agent.home / "outbox.db").write_bytes(b"gone" * 4096)
    agent.start()

    assert agent.record() >= 1
    assert len(agent.status()["salvaged"]) == 1


# Many apps


def test_many_processes_record_through_one_service(agent: AgentProcess) -> None:
    agent.start()
    workers = {
        f"p{number}": subprocess.Popen(
            [sys.executable, "-c", WORKER, str(agent.home), f"p{number}", "40"], stdout=subprocess.PIPE, text=True
        )
        for number in range(10)
    }
    printed = {name: worker.communicate(timeout=DEADLINE_SECONDS)[0].splitlines() for name, worker in workers.items()}
    assert agent.stop() == 0
    found = events_in(agent.home)

    assert len(found) == 400
    for name, lines in printed.items():
        for line in lines:
            seq, number = map(int, line.split())
            assert found[seq] == {"from": name, "n": number}


def test_requests_that_arrive_together_are_committed_together(agent: AgentProcess) -> None:
    """Twenty requests that arrive while the service stands still have one answer time: neighbours in one commit."""
    agent.start()
    clients = [LineClient(agent.socket, timeout=DEADLINE_SECONDS) for _ in range(20)]
    for client in clients:
        client.ask({"do": "status"})
    os.kill(agent.pid, signal.SIGSTOP)
    event = {"type": "a.b", "stamp": [1, "boot", 1, True]}
    for client in clients:
        client.send(protocol.record_request([event], 2**53))
    before = int(Path(f"/proc/{agent.pid}/io").read_text().split("syscw: ")[1].split()[0])
    os.kill(agent.pid, signal.SIGCONT)
    seqs = sorted(client.receive()["seqs"][0] for client in clients)
    after = int(Path(f"/proc/{agent.pid}/io").read_text().split("syscw: ")[1].split()[0])
    for client in clients:
        client.close()

    assert seqs == list(range(1, 21))
    assert after - before < 20 * 4, "one commit writes a few pages, twenty would write each of them again"


def test_recorders_survive_a_restart_of_the_service(agent: AgentProcess) -> None:
    agent.start()
    done: list[int] = []
    go_on = threading.Event()
    go_on.set()

    def work() -> None:
        with Recorder(agent.home) as recorder:
            while go_on.is_set():
                done.append(recorder.record("a.b", data={"from": "t", "n": len(done)}))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for end in (agent.stop, agent.kill, agent.stop):
            number = len(done)
            wait_until(lambda number=number: len(done) > number + 20, "it records")  # type: ignore[misc]
            end()
            agent.start()
    finally:
        go_on.clear()
        thread.join(DEADLINE_SECONDS)
    agent.stop()
    found = events_in(agent.home)

    assert sorted(found[seq]["n"] for seq in done) == list(range(len(done)))
    assert len(found) == len(done)


# Hostile peers


def raw(agent: AgentProcess) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(DEADLINE_SECONDS)
    client.connect(str(agent.socket))
    return client


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"do": 7}',
        b'{"do": "fly"}',
        b'{"do": "record"}',
        b'{"do": "record", "events": 7}',
        b'{"do": "requeue"}',
        b'{"do": "requeue", "seq": true}',
        b'{"do": "requeue", "seq": 99}',
        b'{"do": "requeue", "seq": %d}' % 2**70,
        b'{"do": "requeue", "seq": %d}' % 2**53,
        b'{"do": "requeue", "seq": 0}',
        b'{"do": "requeue", "seq": -1}',
        b'{"do": "requeue", "seq": 1.0}',
        b'{"do": "requeue", "seq": "1"}',
        b'{"do": "requeue", "seq": [1]}',
        b'{"do": "requeue", "seq": %s}' % (b"1" * 5000),
        b'{"do": "requeue\\ud800", "seq": 1}',
        b'{"do": ["requeue"], "seq": 1}',
        b'{"do": "read"}',
        b'{"do": "read", "what": "identity"}',
        b'{"do": "read", "what": "events", "after": -1}',
        b'{"do": "read", "what": "events", "after": %d}' % 2**64,
        b'{"do": "read", "what": "dead", "limit": 0}',
        b'{"do": "read", "what": "dead", "limit": true}',
        b'{"do": "record", "events": [%s0]}' % (b"0," * protocol.RECORD_EVENTS),
        b'{"do": "sync", "x": [%s0]}' % (b"{}," * 100_000),
        b'{"do": "record", "events": [%s0]}' % (b"0," * 1_000_000),
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda line: line[:45].decode(errors="replace"),
)
def test_garbage_gets_an_error_and_the_connection_goes_on(agent: AgentProcess, line: bytes) -> None:
    agent.start()
    with raw(agent) as client, client.makefile("rb") as answers:
        client.sendall(line + b"\n")
        assert "error" in json.loads(answers.readline())
        client.sendall(b'{"do": "status"}\n')
        assert json.loads(answers.readline())["status"]["kind"] == "service"
    assert "unexpectedly" not in agent.log()


@pytest.mark.parametrize("content", [b"0,", b"{},", b"[],", b'{"a":0},', b'"",', b'{"type":"a.b"},'])
@pytest.mark.parametrize("head", [b'{"do":"record","events":[', b'{"do":"status","x":['])
def test_a_long_line_takes_no_more_memory_than_itself(agent: AgentProcess, head: bytes, content: bytes) -> None:
    agent.start()
    agent.record()
    before = agent.memory_mib("VmHWM")
    longest = unix_socket.LINE_BYTES - 100
    for _ in range(3):
        with raw(agent) as client, client.makefile("rb") as answers:
            client.sendall(head + content * (longest // len(content)) + b"0]}\n")
            assert json.loads(answers.readline())["error"]["code"] == "bad_message"
    assert agent.memory_mib("VmHWM") < before + 8 * longest / 2**20
    assert agent.record() == 2


def test_long_data_is_refused_before_it_is_decoded(agent: AgentProcess) -> None:
    agent.start()
    agent.record()
    before = agent.memory_mib("VmHWM")
    event = {"type": "a.b", "stamp": [1, "b", 1, True], "data": '{"a": [' + "{}," * 600_000 + "0]}"}
    with LineClient(agent.socket, timeout=DEADLINE_SECONDS) as client:
        assert "65,536 bytes" in client.ask({"do": "record", "events": [event]})["seqs"][0]["detail"]
    assert agent.memory_mib("VmHWM") < before + 20


def test_a_line_beyond_the_limit_closes_its_connection(agent: AgentProcess) -> None:
    agent.start()
    before = agent.memory_mib("VmHWM")
    with raw(agent) as client:
        with contextlib.suppress(OSError):  # it is closed while this is sent, or when all has arrived
            client.sendall(b'{"do":"record","events":[' + b"0," * (8 * 1024 * 1024) + b"0]}\n")
            client.recv(1000)
        with pytest.raises(OSError):
            client.sendall(b"\n")
    assert agent.memory_mib("VmHWM") < before + 16
    assert agent.record() == 1


@pytest.mark.parametrize(
    "event",
    [
        7,
        {},
        {"type": "a.b", "stamp": []},
        {"type": "a.b", "stamp": [1, "b", 1, True], "data": "{"},
        {"type": "a.b", "stamp": [1, "b", 1, True], "data": '{"a": 1}, "seq": 7, "x": {}'},
        {"type": "a.b", "stamp": [1, "b", 1, True], "learner_id": "a\nb"},
        {"type": "a.b", "stamp": [1, "b", 1, True], "occurred_at_ms": 10**15},
        {"type": "a.b", "stamp": [10**30, "b", 1, True]},
        {"type": "a.b", "stamp": [1, "b", 1, True], "attempt": "x"},
        {"type": "a.b", "stamp": [1, "b", 1, True], "attempt": 2**70},
        {"type": "a.b", "stamp": [1, "b", 1, True], "id": "\ud800"},
        {"type": "a.b\ud800", "stamp": [1, "b", 1, True]},
        {"type": "a.b", "stamp": [1, "\ud800", 1, True]},
        {"type": "a.b", "stamp": [1, "b", 1, True], "data": '{"a": "\ud800"}'},
        {"type": "a.b", "stamp": [1, "b", 1, True], "data": "[" * 100_000},
        {"type": "a.b", "stamp": [1, "b", 1, True], "data": '{"a": [' + "{}," * 200_000 + "0]}"},
    ],
    ids=lambda event: ascii(event)[:70],
)
def test_a_bad_event_does_not_spoil_its_neighbours(agent: AgentProcess, event: Any) -> None:
    agent.start()
    good = {"type": "a.b", "stamp": [1, "boot", 1, True], "data": '{"n":1}'}
    with LineClient(agent.socket, timeout=DEADLINE_SECONDS) as client:
        answer = client.ask({"do": "record", "events": [good, event, good]})

    first, bad, last = answer["seqs"]
    assert (first, bad["code"], last) == (1, "invalid_event", 2)


def test_hostile_peers_do_not_keep_others_from_recording(agent: AgentProcess) -> None:
    """One sends a line without an end, one never reads, one connects and says nothing, a hundred times."""
    agent.start()
    endless, deaf = raw(agent), raw(agent)
    silent = [raw(agent) for _ in range(100)]
    halt = threading.Event()

    def shout() -> None:
        endless.settimeout(1)
        while not halt.is_set():
            try:
                endless.sendall(b"x" * 1_000_000)
            except OSError:
                return

    def ask_without_reading() -> None:
        deaf.settimeout(1)
        while not halt.is_set():
            try:
                deaf.sendall(b'{"do": "status"}\n' * 1000)
            except OSError:
                return

    threads = [threading.Thread(target=shout), threading.Thread(target=ask_without_reading)]
    for thread in threads:
        thread.start()
    try:
        assert [agent.record() for _ in range(5)] == [1, 2, 3, 4, 5]
        assert agent.memory_mib("VmHWM") < 120
    finally:
        halt.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        for client in (endless, deaf, *silent):
            client.close()
    assert agent.stop() == 0


# Delivery


def enrolled(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    agent.enroll(receiver.url, receiver.enrollment_code(), device_id="pibook-1")


def watermark(receiver: ReceiverProcess) -> int:
    done = subprocess.run(
        [sys.executable, "-c", "import sqlite3,sys\n"
         "c = sqlite3.connect('file:'+sys.argv[1]+'?mode=ro', uri=True)\n"
         "print(c.execute('select coalesce(max(watermark), 0) from streams').fetchone()[0])", str(receiver.database)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_new_events_are_delivered_automatically(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    enrolled(agent, receiver)
    agent.start("--sync-delay", "0.1s")
    agent.record()
    wait_until(lambda: agent.status()["waiting"] == 0, "the event is delivered")
    agent.record()
    wait_until(lambda: agent.status()["waiting"] == 0, "the next one too")

    assert watermark(receiver) == 2
    assert agent.status()["last_run"]["failure"] is None


def test_enrolling_wakes_the_service(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    agent.start("--sync-delay", "0.1s")
    agent.record()
    assert agent.status()["enrolled"] is False
    enrolled(agent, receiver)

    wait_until(lambda: agent.status()["waiting"] == 0, "what was recorded before is delivered")


def test_a_returning_receiver_gets_everything(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    enrolled(agent, receiver)
    receiver.stop()
    agent.start("--sync-delay", "0.1s", "--retry-base", "0.1s", "--retry-cap", "0.5s")
    agent.record()
    wait_until(lambda: (agent.status()["last_error"] or {}).get("code") == "unreachable", "it fails")
    wait_until(lambda: "attempt" in (agent.status()["next_run_why"] or ""), "it says that it tries again")
    receiver.start()

    wait_until(lambda: agent.status()["waiting"] == 0, "the event is delivered")


def test_a_broken_outbox_is_salvaged_at_run_time(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    """Its first pages are lost while the service has it open; delivery meets that when it reads."""
    agent.start("--sync-delay", "0.1s")
    for _ in range(3):
        agent.record()
    with (agent.home / "outbox.db").open("r+b") as file:
        file.write(b"\0" * 8192)
    enrolled(agent, receiver)
    wait_until(lambda: agent.run("status", "--json").returncode == 0, "what could be read is delivered")

    found = agent.status()
    assert len(found["salvaged"]) == 1
    assert found["service"] is True
    agent.record()
    wait_until(lambda: agent.status()["waiting"] == 0, "and it goes on")


def test_sigterm_during_a_sync_ends_it_soon_and_loses_nothing(tmp_path: Path, receiver: ReceiverProcess) -> None:
    """The receiver stands still: a batch is in flight and no answer comes."""
    with AgentProcess(tmp_path / "device", "--stop-timeout", "0.5s", "--sync-delay", "0.1s") as agent:
        enrolled(agent, receiver)
        agent.start()
        os.kill(receiver.pid, signal.SIGSTOP)
        try:
            agent.record()
            wait_until(lambda: protocol.live_status(agent.socket)["running"], "a run is under way")  # type: ignore[index]
            assert agent.stop() == 0
        finally:
            os.kill(receiver.pid, signal.SIGCONT)
        agent.start()
        wait_until(lambda: agent.status()["waiting"] == 0, "the event is delivered")

    assert watermark(receiver) == 1


def test_memory_stays_small(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    lines = "".join(
        json.dumps({"type": "note.taken", "data": {"n": n, "text": "x" * 100}}) + "\n" for n in range(20_000)
    )
    agent.command("record", "-", stdin=lines)
    enrolled(agent, receiver)
    agent.start("--sync-delay", "0.1s")
    wait_until(lambda: agent.status()["waiting"] == 0, "all is delivered")
    time.sleep(0)

    assert agent.memory_mib("VmHWM") < 60
