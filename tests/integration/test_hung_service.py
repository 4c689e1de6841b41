"""A service that hangs: every wait for it ends, and the error stays true afterwards."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pisync_agent import Recorder
from pisync_agent.errors import NotAnswering
from pisync_agent.outbox import files
from pisync_agent.service import protocol, waiters
from pisync_common import unix_socket
from pisync_common.unix_socket import LineClient
from tests.support.outboxes import bodies, opened
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, wait_until

SHORT = 0.5
HOLD = (
    "import fcntl, os, signal, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
    "print('held', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path / "device") as made:
        made.start()
        yield made


def stopped(agent: AgentProcess) -> None:
    agent.record()
    os.kill(agent.pid, signal.SIGSTOP)


def ids(agent: AgentProcess) -> list[str | None]:
    """End the service, having answered everything; return the id of each event."""
    os.kill(agent.pid, signal.SIGCONT)
    assert agent.stop() == 0
    outbox = opened(agent.home)
    found = [json.loads(body).get("id") for body in bodies(outbox)]
    outbox.close()
    return found


def test_what_the_caller_was_told_is_not_stored_later(agent: AgentProcess) -> None:
    stopped(agent)
    with Recorder(agent.home) as recorder:
        with pytest.raises(NotAnswering, match=rf"process {agent.pid} .*does not answer: nothing was recorded"):
            recorder.record("note.taken", id="late", timeout=SHORT)
        with pytest.raises(NotAnswering, match="nothing was recorded"):
            recorder.record_many([{"type": "note.taken"}] * 3000, timeout=SHORT)
        os.kill(agent.pid, signal.SIGCONT)
        assert recorder.record("note.taken", id="next") == 2
    assert ids(agent) == [None, "next"]


def test_a_repeat_with_the_same_id_is_stored_once(agent: AgentProcess) -> None:
    stopped(agent)
    with Recorder(agent.home) as recorder:
        with pytest.raises(NotAnswering):
            recorder.record("note.taken", id="k", timeout=SHORT)
        os.kill(agent.pid, signal.SIGCONT)
        assert recorder.record("note.taken", id="k") == recorder.record("note.taken", id="k") == 2
    assert ids(agent) == [None, "k"]


def test_a_message_too_large_for_the_sockets_buffer_ends_in_time(agent: AgentProcess) -> None:
    stopped(agent)
    with Recorder(agent.home) as recorder:
        big = {"type": "note.taken", "data": {"text": "x" * 60_000}}
        with pytest.raises(NotAnswering, match="nothing was recorded"):
            recorder.record_many([big] * 5, timeout=SHORT)
    assert ids(agent) == [None]


def test_a_full_queue_of_connections_ends_in_time(agent: AgentProcess) -> None:
    stopped(agent)
    waiting: list[socket.socket] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(agent.socket))
    with Recorder(agent.home) as recorder, pytest.raises(NotAnswering, match="nothing was recorded"):
        recorder.record("note.taken", timeout=SHORT)
    for client in waiting:
        client.close()
    assert ids(agent) == [None]


def test_many_threads_each_end_at_their_own_time(agent: AgentProcess) -> None:
    """A call with a long timeout does not fail with a short one beside it."""
    stopped(agent)
    results: list[object] = []

    def record(recorder: Recorder, timeout: float) -> None:
        try:
            results.append(recorder.record("note.taken", id=str(timeout), timeout=timeout))
        except NotAnswering as error:
            results.append(error)

    with Recorder(agent.home) as recorder:
        threads = [
            threading.Thread(target=record, args=(recorder, seconds)) for seconds in (0.2, 0.3, DEADLINE_SECONDS)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(results) == 2, "the short calls have ended")
        os.kill(agent.pid, signal.SIGCONT)
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    assert [type(result) for result in results] == [NotAnswering, NotAnswering, int]
    assert ids(agent) == [None, str(DEADLINE_SECONDS)]


def test_a_stopped_process_with_the_lock_ends_in_time(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(files.lock(tmp_path))], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with Recorder(tmp_path) as recorder:
            with pytest.raises(NotAnswering, match=rf"process {holder.pid} .*does not answer: nothing was recorded"):
                recorder.record("note.taken", timeout=SHORT)
            holder.kill()
            holder.wait()
            assert recorder.record("note.taken") == 1
    finally:
        holder.kill()
        holder.communicate()


# A service that answers wrongly: it reads, and is silent


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Stands for a service that reads each line and answers the given bytes."""
    listener = unix_socket.listen(files.socket(tmp_path), mode=0o600)
    answers: list[bytes] = []
    peers: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                peers.append(client)
                client.makefile("rb").readline()
                client.sendall(answers[0])

    thread = threading.Thread(target=serve)
    thread.start()
    yield answers.append
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for client in peers:
        client.close()
    thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("answer", [b"", b'{"seqs":'])
def test_an_event_that_was_read_may_have_been_recorded(
    tmp_path: Path, peer: Callable[[bytes], None], answer: bytes
) -> None:
    peer(answer)
    with Recorder(tmp_path) as recorder, pytest.raises(NotAnswering, match=r"may have been recorded.*same id"):
        recorder.record("note.taken", id="k", timeout=SHORT)


@pytest.mark.parametrize("ask", [protocol.reload, lambda path: protocol.requeue(path, 7), protocol.live_status])
def test_short_requests_end_in_time(
    tmp_path: Path, peer: Callable[[bytes], None], ask: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer(b'{"se')
    monkeypatch.setattr(protocol, "ANSWER_S", SHORT)
    with pytest.raises(NotAnswering, match="does not answer"):
        ask(files.socket(tmp_path))


def test_progress_keeps_a_sync_alive_and_silence_ends_it(tmp_path: Path, peer: Callable[[bytes], None]) -> None:
    shown: list[object] = []
    peer(b'{"progress": {"step": "sending"}}\n' * 3)
    with pytest.raises(NotAnswering, match="what is pending is kept"):
        protocol.sync(files.socket(tmp_path), shown.append, silence=SHORT)
    assert len(shown) == 3


# Commands


def test_status_says_that_the_service_does_not_answer(agent: AgentProcess) -> None:
    stopped(agent)
    found = agent.status()
    text = agent.run("status").stdout

    assert f"process {agent.pid}" in found["service_fault"]
    assert (found["service"], found["waiting"]) == (True, 1)
    assert "does not answer" in text
    assert "not running" not in text
    assert "no service runs" not in text


@pytest.mark.parametrize("command", [("sync",), ("queue", "requeue", "1"), ("record", "note.taken")])
def test_commands_end_with_an_error(agent: AgentProcess, command: tuple[str, ...]) -> None:
    stopped(agent)
    done = agent.run(*command)

    assert (done.returncode, done.stdout) == (5, "")
    assert f"process {agent.pid}" in done.stderr
    assert "does not answer" in done.stderr
    assert ids(agent) == [None]


def test_the_service_shows_life_while_the_receiver_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its progress comes more often than a client's patience, while one request lasts."""
    assert waiters.ALIVE_S < protocol.ANSWER_S / 2
    with socket.create_server(("127.0.0.1", 0)) as silent, AgentProcess(tmp_path / "device") as agent:
        agent.home.mkdir()
        identity = {"url": f"http://127.0.0.1:{silent.getsockname()[1]}", "device_id": "d", "token": "psd_x"}
        (agent.home / "identity.json").write_text(json.dumps(identity | {"insecure_http": True, "ca_file": None}))
        agent.start()
        agent.record()
        with LineClient(agent.socket, timeout=DEADLINE_SECONDS) as client:
            client.send({"do": "sync"})
            answers = [client.receive() for _ in range(4)]
    assert all("progress" in answer for answer in answers)
