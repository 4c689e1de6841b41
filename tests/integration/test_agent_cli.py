"""The device's commands as processes, against a real receiver: every command, and every exit code."""

import json
import os
import pty
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.service.protocol import live_status
from pisync_common.single_writer import WriterLock
from tests.support.certificates import Authority
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess, wait_until


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        yield made


@pytest.fixture
def enrolled(agent: AgentProcess, receiver: ReceiverProcess) -> AgentProcess:
    """A device with an identity of its own choosing."""
    code = receiver.enrollment_code()
    agent.enroll(receiver.url, code, device_id=f"pibook-{code[:8].lower()}")
    return agent


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address without a server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def stored(receiver: ReceiverProcess, agent: AgentProcess) -> list[int]:
    """The seqs that the receiver has of this device, in order."""
    query = "SELECT seq FROM events WHERE device_id = ? ORDER BY seq"
    with closing(sqlite3.connect(f"file:{receiver.database}?mode=ro", uri=True)) as database:
        return [row[0] for row in database.execute(query, (agent.status()["device_id"],))]


def completeness(receiver: ReceiverProcess, agent: AgentProcess) -> dict[str, Any]:
    """What the receiver says about the device's one stream."""
    import httpx

    answer = httpx.get(
        f"{receiver.url}/api/devices/{agent.status()['device_id']}/completeness",
        headers={"Authorization": f"Bearer {receiver.admin_token('viewer')}"},
        timeout=DEADLINE_SECONDS,
    )
    (stream,) = answer.raise_for_status().json()["streams"]
    found: dict[str, Any] = stream
    return found


@contextmanager
def standing_still(receiver: ReceiverProcess) -> Iterator[None]:
    """The receiver takes connections, and answers when the block is over."""
    os.kill(receiver.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(receiver.pid, signal.SIGCONT)


# enroll


def test_enroll_prints_the_id_and_not_the_token(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    done = agent.run("enroll", receiver.url, "--code", receiver.enrollment_code(), "--device-id", "pibook-e1")

    assert (done.returncode, done.stdout) == (0, f"enrolled as pibook-e1 at {receiver.url}\n")
    identity = agent.home / "identity.json"
    assert identity.stat().st_mode & 0o777 == 0o600
    token = json.loads(identity.read_text())["token"]
    assert token not in done.stdout + done.stderr + agent.command("config") + json.dumps(agent.status())
    assert agent.run("status").returncode == 0


def test_a_device_that_names_no_id_gets_one(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    agent.enroll(receiver.url, receiver.enrollment_code())
    again = AgentProcess(agent.home.with_name("twin"))
    again.enroll(receiver.url, receiver.enrollment_code())

    ids = {each.status()["device_id"] for each in (agent, again)}
    assert len(ids) == 2, "two devices of one make propose one id; the second gets another"


def test_a_code_for_a_certain_device_needs_no_id(agent: AgentProcess, receiver: ReceiverProcess) -> None:
    agent.enroll(receiver.url, receiver.enrollment_code("--device-id", "pibook-e2"))

    assert agent.status()["device_id"] == "pibook-e2"


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("ftp://example.org", 2, "not the address"),
        ("http://192.0.2.1", 2, "--insecure-http"),
        ("https://user:pass@example.org", 2, "name or password"),
        ("nonsense", 2, "not the address"),
    ],
)
def test_invalid_addresses_are_rejected(agent: AgentProcess, url: str, code: int, said: str) -> None:
    done = agent.run("enroll", url, "--code", "K7MQ-2XPD-9RTA-WW4Z")

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "pass@" not in done.stderr


def test_a_wrong_code_changes_nothing(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    before = (enrolled.home / "identity.json").read_bytes()
    done = enrolled.run("enroll", receiver.url, "--code", "K7MQ-2XPD-9RTA-WW4Z")

    assert (done.returncode, done.stdout) == (4, "")
    assert "code" in done.stderr
    assert (enrolled.home / "identity.json").read_bytes() == before


def test_an_id_that_is_taken_needs_an_admin(enrolled: AgentProcess, receiver: ReceiverProcess, tmp_path: Path) -> None:
    name = enrolled.status()["device_id"]
    other = AgentProcess(tmp_path / "other")
    refused = other.run("enroll", receiver.url, "--code", receiver.enrollment_code(), "--device-id", name)

    assert (refused.returncode, refused.stdout) == (4, "")
    assert "admin" in refused.stderr
    other.enroll(receiver.url, receiver.enrollment_code("--device-id", name), device_id=name)
    assert other.status()["device_id"] == name


def test_an_absent_receiver_is_unreachable(agent: AgentProcess, dead_url: str) -> None:
    done = agent.run("enroll", dead_url, "--code", "K7MQ-2XPD-9RTA-WW4Z")

    assert (done.returncode, done.stdout) == (3, "")
    assert "enroll again with the same code" in done.stderr
    assert not agent.status()["enrolled"]


def test_another_receiver_or_id_needs_again(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    name = enrolled.status()["device_id"]
    for arguments in ((receiver.url, "--device-id", "another"), ("https://elsewhere.example",)):
        done = enrolled.run("enroll", *arguments, "--code", "K7MQ-2XPD-9RTA-WW4Z")
        assert (done.returncode, done.stdout) == (2, "")
        assert name in done.stderr
        assert "--again" in done.stderr
    enrolled.enroll(receiver.url, receiver.enrollment_code(), "--again", device_id=f"{name}-b")
    assert enrolled.status()["device_id"] == f"{name}-b"


def test_the_same_device_may_enroll_again_with_a_code_for_it(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    name = enrolled.status()["device_id"]
    enrolled.enroll(receiver.url, receiver.enrollment_code("--device-id", name))

    assert enrolled.status()["device_id"] == name


def test_the_file_of_a_private_authority_is_copied(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    stick = Authority(tmp_path / "stick").certificate
    content = stick.read_bytes()
    agent.enroll(receiver.url, receiver.enrollment_code(), "--ca", str(stick))
    stick.unlink()

    kept = json.loads((agent.home / "identity.json").read_text())["ca_file"]
    assert Path(kept).parent == agent.home
    assert Path(kept).read_bytes() == content


def test_an_unusable_authority_does_not_use_the_code(
    agent: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    stick = tmp_path / "stick.pem"
    stick.write_text("no certificate")
    code = receiver.enrollment_code()
    refused = agent.run("enroll", receiver.url, "--code", code, "--ca", str(stick))

    assert refused.returncode == 2
    assert "the code was not used" in refused.stderr
    agent.enroll(receiver.url, code)


# sync


def test_sync_delivers_and_prints_a_summary(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    for _ in range(3):
        enrolled.record()
    done = enrolled.run("sync")

    assert done.returncode == 0
    assert "delivered 3 events" in done.stdout
    assert "nothing pending" in done.stdout
    assert "sending" in done.stderr
    assert "\x1b" not in done.stderr, "no terminal, no live line"
    assert stored(receiver, enrolled) == [1, 2, 3]
    assert completeness(receiver, enrolled)["watermark"] == 3


def test_sync_json_has_the_fields_that_scripts_rely_on(enrolled: AgentProcess) -> None:
    enrolled.record()
    found = enrolled.json("sync")

    assert {"delivered", "duplicates", "rejected", "waiting", "errors", "seconds", "bytes_sent"} <= found.keys()
    assert (found["delivered"], found["waiting"], found["errors"]) == (1, 0, {})
    assert found["bytes_sent"] > 0
    assert enrolled.json("sync")["delivered"] == 0


def test_sync_through_the_service(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    enrolled.start("--sync-delay", "1h")
    enrolled.record()
    done = enrolled.run("sync")

    assert (done.returncode, done.stdout.count("delivered 1 event")) == (0, 1)
    assert "sending" in done.stderr
    assert enrolled.status()["service"] is True
    assert stored(receiver, enrolled) == [1]


@pytest.mark.parametrize("with_service", [False, True])
def test_sync_before_enrolling(agent: AgentProcess, with_service: bool) -> None:
    agent.record()
    if with_service:
        agent.start()
    done = agent.run("sync")

    assert (done.returncode, done.stdout) == (4, "")
    assert "pisync enroll" in done.stderr
    assert agent.status()["waiting"] == 1


@pytest.mark.parametrize("with_service", [False, True])
def test_a_receiver_that_cannot_be_reached(enrolled: AgentProcess, dead_url: str, with_service: bool) -> None:
    identity = enrolled.home / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"url": dead_url}))
    enrolled.record()
    if with_service:
        enrolled.start("--sync-delay", "1h")
    done = enrolled.run("sync", "--json")

    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["waiting"], found["errors"]) == (1, {"connect": 1})
    assert "connect" in done.stderr
    assert enrolled.run("status").returncode == 3
    assert "connect" in enrolled.command("status", code=3)


@pytest.mark.parametrize("with_service", [False, True])
def test_a_refused_device_exits_with_4(enrolled: AgentProcess, receiver: ReceiverProcess, with_service: bool) -> None:
    identity = enrolled.home / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"token": "psd_revoked"}))
    enrolled.record()
    if with_service:
        enrolled.start("--sync-delay", "1h")
    done = enrolled.run("sync")

    assert done.returncode == 4
    assert "refused" in done.stderr
    assert "psd_revoked" not in done.stderr + done.stdout + enrolled.log()
    assert enrolled.run("status").returncode == 4
    assert enrolled.status()["waiting"] == 1, "nothing is dropped"


def test_what_a_clone_of_the_card_recorded_is_rejected_and_sent_in_a_new_stream(
    enrolled: AgentProcess, receiver: ReceiverProcess, tmp_path: Path
) -> None:
    enrolled.record()
    enrolled.command("sync")
    clone = AgentProcess(tmp_path / "clone")
    clone.home.mkdir()
    for name in ("outbox.db", "identity.json"):
        (clone.home / name).write_bytes((enrolled.home / name).read_bytes())
    enrolled.record("note.taken", "--learner", "s-1")
    clone.record("note.taken", "--learner", "s-2")
    enrolled.command("sync")
    first = clone.run("sync", "--json")

    assert first.returncode == 1
    assert json.loads(first.stdout)["rejected"] == 1
    clone.command("sync")
    assert stored(receiver, enrolled) == [1, 1, 2]


def test_an_outbox_that_cannot_be_used(enrolled: AgentProcess) -> None:
    (enrolled.home / "outbox.db").unlink(missing_ok=True)
    (enrolled.home / "outbox.db").mkdir()
    for command in (("sync",), ("record", "a.b"), ("run",), ("status",), ("queue", "list")):
        done = enrolled.run(*command)
        assert (done.returncode, done.stdout) == (5, ""), (command, done)
        assert done.stderr.startswith("pisync: "), command
        assert "Traceback" not in done.stderr, command


def test_two_syncs_at_once_make_one_run(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    """The first is in the middle of its run when the second comes: it joins, and both tell the same."""
    lines = "".join(json.dumps({"type": "note.taken", "data": {"n": n}}) + "\n" for n in range(500))
    enrolled.command("record", "-", stdin=lines)
    with standing_still(receiver):
        first = enrolled.popen("sync", "--json")
        wait_until(enrolled.socket.exists, "the first one serves the socket")
        second = enrolled.popen("sync", "--json")
        wait_until(lambda: (live_status(enrolled.socket) or {}).get("joined") == 1, "the second one joins")
    results = [json.loads(process.communicate(timeout=DEADLINE_SECONDS)[0]) for process in (first, second)]

    assert [process.returncode for process in (first, second)] == [0, 0]
    assert results[0] == results[1]
    assert (results[0]["delivered"], results[0]["duplicates"]) == (500, 0)
    assert stored(receiver, enrolled) == list(range(1, 501))


def test_apps_record_during_a_sync_without_a_service(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    enrolled.record()
    with standing_still(receiver):
        running = enrolled.popen("sync")
        wait_until(enrolled.socket.exists, "it serves the socket")
        assert [enrolled.record() for _ in range(3)] == [2, 3, 4]
    running.communicate(timeout=DEADLINE_SECONDS)

    assert running.returncode == 0
    assert stored(receiver, enrolled) == [1, 2, 3, 4]


@pytest.mark.parametrize("with_service", [False, True])
def test_ctrl_c_during_a_sync_keeps_everything(
    enrolled: AgentProcess, receiver: ReceiverProcess, with_service: bool
) -> None:
    enrolled.record()
    if with_service:
        enrolled.start("--sync-delay", "1h")
    with standing_still(receiver):
        running = enrolled.popen("sync", "--stop-timeout", "0.1s")
        assert running.stderr is not None
        assert running.stderr.readline().startswith(b"sending")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=DEADLINE_SECONDS)

    assert (running.returncode, out) == (130, b"")
    assert b"everything is kept" in err
    assert b"Traceback" not in err
    enrolled.command("sync")
    assert stored(receiver, enrolled) == [1]


def test_a_sync_continues_when_the_service_is_killed(enrolled: AgentProcess, receiver: ReceiverProcess) -> None:
    enrolled.record()
    enrolled.start("--sync-delay", "1h")
    with standing_still(receiver):
        running = enrolled.popen("sync")
        assert running.stderr is not None
        assert running.stderr.readline().startswith(b"sending")
        enrolled.kill()
    running.communicate(timeout=DEADLINE_SECONDS)

    assert running.returncode == 0
    assert stored(receiver, enrolled) == [1]


def test_a_sync_killed_in_its_middle_loses_and_doubles_nothing(
    enrolled: AgentProcess, receiver: ReceiverProcess
) -> None:
    lines = "".join(json.dumps({"type": "note.taken", "data": {"n": n}}) + "\n" for n in range(2000))
    enrolled.command("record", "-", stdin=lines)
    for _ in range(5):
        running = enrolled.popen("sync")
        assert running.stderr is not None
        running.stderr.readline()
        running.kill()
        running.communicate(timeout=DEADLINE_SECONDS)
    enrolled.command("sync")

    assert stored(receiver, enrolled) == list(range(1, 2001))
    assert enrolled.status()["waiting"] == 0


def test_a_lock_without_a_socket_is_waited_for_and_its_holder_named(enrolled: AgentProcess) -> None:
    lock = WriterLock(enrolled.home / "outbox.lock")
    lock.acquire(wait=False)
    try:
        done = enrolled.run("queue", "requeue", "1")
        if not (enrolled.home / "outbox.db").exists():
            assert done.returncode == 2
            enrolled.home.joinpath("outbox.db").touch()
            done = enrolled.run("queue", "requeue", "1")
    finally:
        lock.release()

    assert (done.returncode, done.stdout) == (5, "")
    assert f"process {os.getpid()}" in done.stderr


def test_progress_on_a_terminal_is_live(enrolled: AgentProcess) -> None:
    enrolled.record()
    terminal, end = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while more := os.read(terminal, 65536):
                shown.extend(more)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen(
        [*enrolled.program, "sync"], env=enrolled.environ(), stdin=subprocess.DEVNULL, stdout=end, stderr=end
    )
    os.close(end)
    assert process.wait(DEADLINE_SECONDS) == 0
    reader.join(DEADLINE_SECONDS)
    os.close(terminal)

    assert b"\r\x1b[Ksending: 0 of 1 event" in shown
    assert shown.rstrip().endswith(b"nothing pending")
    assert b"delivered 1 event" in shown


# The rest


def test_a_rejected_event_is_requeued_under_a_new_seq(enrolled: AgentProcess) -> None:
    enrolled.record()
    with closing(sqlite3.connect(enrolled.home / "outbox.db")) as database, database:
        (stream,) = database.execute("SELECT stream FROM pointers").fetchone()
        (body,) = database.execute("SELECT body FROM events").fetchone()
        database.execute(
            "INSERT INTO dead_letters (stream, seq, code, detail, body, local) VALUES (?, 1, 'x', 'y', ?, 0)",
            (stream, body),
        )
    assert enrolled.run("status").returncode == 1
    enrolled.start("--sync-delay", "1h")

    assert enrolled.command("queue", "requeue", "1") == "2\n"
    assert enrolled.json("queue", "requeue", "1") == {"seq": 2}
    assert enrolled.run("queue", "requeue", "7").returncode == 2
    enrolled.command("sync")
    assert enrolled.run("status").returncode == 0


def test_lines_are_recorded_while_they_arrive(agent: AgentProcess) -> None:
    """A reader sees each seq once its event is stored, long before the input ends."""
    agent.start()
    process = subprocess.Popen(
        [*agent.program, "record", "-"], env=agent.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for seq in range(1, 6):
        process.stdin.write(b'{"type": "a.b"}\n')
        process.stdin.flush()
        assert process.stdout.readline() == b"%d\n" % seq
    process.stdin.close()
    assert process.wait(DEADLINE_SECONDS) == 0
    process.stdout.close()


def test_python_m_and_version(agent: AgentProcess) -> None:
    from pisync_common import __version__

    assert agent.command("--version") == f"pisync {__version__}\n"
    assert agent.run().returncode == 0
    assert agent.run("fly").returncode == 2


def test_a_closed_output_is_not_an_error(agent: AgentProcess) -> None:
    agent.command("record", "-", stdin='{"type": "a.b"}\n' * 3000)
    command = f"{' '.join(agent.program)} queue list --limit 3000 | head -1"
    done = subprocess.run(
        ["bash", "-c", command], env=agent.environ(), capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stderr == ""
    assert done.stdout.split()[0] == "1"
