"""Connections cannot be held open for nothing."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from pisync_common.settings import load
from pisync_receiver import config
from pisync_receiver.errors import CannotListen
from pisync_receiver.http import protocol
from pisync_receiver.http.protocol import HEAD_BYTES, HEADERS, PIPELINED, bounded
from pisync_receiver.server import listening_socket
from tests.support.processes import ReceiverProcess, wait_until

LARGE = 16 * 1024 * 1024


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def patient(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await hello(scope, receive, send)


async def busy(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def serving(max_connections: int = 100, app: Any = hello) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        settings = uvicorn.Config(app, http=bounded(max_connections, busy), ws="none", lifespan="off", log_config=None)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        port: int = listener.getsockname()[1]
        thread.start()
        wait_until(lambda: server.started, "the server listens")
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow:"])
def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    with serving() as port, connect(port) as slow:
        slow.sendall(sent)
        assert everything(slow) == b""


def test_the_second_head_of_a_connection_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    with serving() as port, connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not slow.recv(65536).endswith(b"hi"):
            pass
        slow.sendall(b"GET / HT")
        assert everything(slow) == b""


def test_an_endless_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 3600.0)
    with serving() as port, connect(port) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(OSError):
            endless.sendall(b"x" * HEAD_BYTES * 100)
        assert everything(endless)[:12] in (b"HTTP/1.1 431", b"")
        with connect(port) as other:
            other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert everything(other).startswith(b"HTTP/1.1 200")


HOST = b"Host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET http://x/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /#x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET \\ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +2\r\n\r\n{}",
        CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_what_gateways_read_in_several_ways_is_400_and_closed(sent: bytes) -> None:
    with serving(app=patient) as port, connect(port) as odd:
        odd.sendall(sent + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = everything(odd)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "bad", [b"GET / HTTP/1.1\r\n\r\n", b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 2**17]
)
def test_an_unreadable_request_is_no_answer_to_the_one_before_it(bad: bytes) -> None:
    answered = threading.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(answered.wait, 60)
        await hello(scope, receive, send)

    with serving(app=late) as port, connect(port) as pipelining:
        with contextlib.suppress(OSError):
            pipelining.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bad)
        assert everything(pipelining) == b""
        answered.set()


def test_a_body_that_goes_wrong_after_its_answer_gets_no_second_one() -> None:
    with serving() as port, connect(port) as odd:
        odd.sendall(CHUNKED)
        assert odd.recv(65536).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            odd.sendall(b"1;" + b"x" * HEAD_BYTES * 2)
        assert b"HTTP/1.1" not in everything(odd)


MANY = b"a:\r\n" * (HEADERS + 1)


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n" + HOST + MANY, b"GET / HTTP/1.1\r\n" + HOST + MANY + b"\r\n", CHUNKED + b"0\r\n" + MANY],
)
def test_too_many_headers_end_the_connection(sent: bytes) -> None:
    with serving(app=patient) as port, connect(port) as many:
        many.sendall(sent)
        assert everything(many)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_as_many_headers_as_allowed_are_read() -> None:
    with serving() as port, connect(port) as full:
        full.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + b"a:\r\n" * (HEADERS - 2) + b"\r\n")
        assert everything(full).startswith(b"HTTP/1.1 200")


def test_endless_trailers_are_refused() -> None:
    with serving() as port, connect(port) as endless:
        endless.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        with contextlib.suppress(OSError):
            endless.sendall(b"a:\r\n" * HEAD_BYTES * 20)
        assert len(everything(endless)) < 1000


def test_a_large_body_is_no_long_head() -> None:
    with serving(app=patient) as port, connect(port) as large_body:
        large_body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n")
        large_body.sendall(b"x" * 1_000_000)
        assert everything(large_body).startswith(b"HTTP/1.1 200")


def test_requests_far_ahead_of_their_answers_end_the_connection() -> None:
    with serving(app=large) as port, connect(port) as greedy:
        with contextlib.suppress(OSError):
            greedy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (PIPELINED + 2))
        assert len(everything(greedy)) < LARGE


def test_an_idle_connection_makes_room_for_another() -> None:
    with serving(max_connections=2) as port, contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in range(4):
            held.append(stack.enter_context(connect(port)))
            assert is_served(held[-1])
        assert [is_served(each) for each in held].count(True) == 2
        assert is_served(held[-1])


def is_served(connection: socket.socket) -> bool:
    """Return whether a request on a connection is answered 200."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def test_a_connection_too_many_is_answered_by_the_busy_app() -> None:
    with serving(max_connections=2, app=patient) as port, contextlib.ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(connect(port))
            held.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nh")
        with connect(port) as one_more:
            one_more.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
            assert everything(one_more).startswith(b"HTTP/1.1 503")


def test_a_connection_too_many_gets_a_problem_with_retry_after(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path, "--max-connections", "1") as receiver, connect(receiver.port) as held:
        held.sendall(b"GET /healthz HTTP/1.1\r\n")
        answer = httpx.get(receiver.url + "/healthz", headers={"PiSync-Nonce": "n"}, trust_env=False)
    assert (answer.status_code, answer.headers["connection"]) == (503, "close")
    assert 30 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["PiSync-Nonce"] == "n"
    assert answer.json()["type"] == "urn:pisync:problem:overloaded"


def test_a_host_that_resolves_to_every_address_is_refused_without_auth(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("0.0.0.0", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [everywhere])
    settings = load(config.SETTINGS, prefix="", environ={}, flags={"host": "localhost", "auth": "off"}, toml_file=None)
    config.check_serving(settings)
    with pytest.raises(CannotListen, match="non-loopback address"):
        listening_socket(settings)


def test_a_connection_that_ended_makes_room() -> None:
    with serving(max_connections=1) as port:
        for _ in range(3):
            with connect(port) as one:
                one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert everything(one).startswith(b"HTTP/1.1 200")


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections whose callers do not read, each time that is noticed."""
    noticed: list[Any] = []
    watch = protocol.BoundedProtocol._watch_stall

    def note(connection: protocol.BoundedProtocol) -> None:
        noticed.append(connection)
        watch(connection)

    monkeypatch.setattr(protocol.BoundedProtocol, "_watch_stall", note)
    return noticed


def test_a_caller_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, stalls: list[Any]) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.1)
    with serving(app=large) as port, connect(port) as stalled:
        stalled.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: bool(stalls) and stalls[-1].transport.is_closing(), "the connection is cut off")
        assert len(everything(stalled)) < LARGE


def test_a_caller_that_reads_slowly_gets_all_of_an_answer(monkeypatch: pytest.MonkeyPatch, stalls: list[Any]) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 3600.0)
    with serving(app=large) as port, connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: bool(stalls), "the answer waits for its reader")
        unread_before = stalls[0].transport.get_write_buffer_size() + 1
        stalls[0].loop.call_soon_threadsafe(stalls[0]._check_stall, unread_before)
        wait_until(lambda: len(stalls) == 2, "it is looked at again later")
        assert len(everything(slow)) > LARGE


def limited(files: int) -> tuple[str, ...]:
    return ("prlimit", f"--nofile={files}:{files}")


def test_the_limit_of_open_files_bounds_the_connections(tmp_path: Path) -> None:
    """More callers than files: the receiver never runs out of files, and goes on answering."""
    files, callers = 240, 400
    receiver = ReceiverProcess(tmp_path)
    receiver.program = (*limited(files), *receiver.program)
    with receiver, contextlib.ExitStack() as stack:
        assert (
            f"the limit of open files is {files}: {files - 128} connections are served instead of 4096"
            in receiver.log()
        )
        first = stack.enter_context(connect(receiver.port))
        held = [stack.enter_context(connect(receiver.port)) for _ in range(callers)]
        for connection in held:
            connection.setblocking(False)
        assert receiver._process is not None
        folder = Path(f"/proc/{receiver._process.pid}/fd")
        wait_until(lambda: sum(map(cut_off, held)) >= callers - files, "callers too many are cut off")
        assert len(list(folder.iterdir())) < files
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        assert receiver.run("devices", "--json").returncode == 0
    assert receiver.log().count("limit of open files") == 1
    assert "ERROR" not in receiver.log()


def cut_off(connection: socket.socket) -> bool:
    """Whether the other side has closed."""
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_limit_of_open_files_without_room_is_wrong_usage(tmp_path: Path) -> None:
    receiver = ReceiverProcess(tmp_path)
    receiver.program = (*limited(100), *receiver.program)
    done = receiver.run("serve", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "limit of open files is 100" in done.stderr
    assert not receiver.database.exists()


def test_the_soft_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    receiver = ReceiverProcess(tmp_path)
    receiver.program = ("prlimit", "--nofile=100:8192", *receiver.program)
    with receiver:
        assert "limit of open files" not in receiver.log()


@pytest.mark.parametrize("value", ["0", "-1", "100001", "1e3", "many"])
def test_absurd_numbers_of_connections_are_wrong_usage(tmp_path: Path, value: str) -> None:
    done = ReceiverProcess(tmp_path).run("serve", "--port", "0", f"--max-connections={value}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "max-connections" in done.stderr
