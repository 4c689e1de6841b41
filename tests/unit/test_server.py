"""The server of the agent's socket: lines in, lines out, and what a slow or hostile peer cannot do."""

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.errors import OutboxFull
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.recorder import _Entry, _messages
from pisync_agent.service import protocol, server
from pisync_agent.service.decoding import decode_line
from pisync_agent.service.server import LocalServer, Request, record
from pisync_common import unix_socket
from pisync_common.models import Stamp

STAMP = Stamp(at_ms=1, boot_id="boot", boottime_ms=1, clock_synced=True)


class Bench:
    """A server whose answers are given by hand."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.path = path
        self.clients: list[socket.socket] = []
        self.groups: list[list[Request]] = []
        self.server = LocalServer(path=path, serve=self._serve, **limits)  # type: ignore[arg-type]

    def _serve(self, requests: Sequence[Request]) -> None:
        self.groups.append(list(requests))

    @property
    def taken(self) -> list[str]:
        """What the requests that wait ask for."""
        return [request.do for group in self.groups for request in group]

    async def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.setblocking(False)
        with unix_socket.address(self.path) as name:
            client.connect(name)
        await self.turn()
        return client

    async def turn(self) -> None:
        """Handle everything that is ready."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def answer(self, message: dict[str, Any] | None = None) -> None:
        """Answer every request that waits: with what it asked for, or with `message`."""
        groups, self.groups = self.groups, []
        for request in [request for group in groups for request in group]:
            request.answer(message or {"line": request.do})
        await self.turn()

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()


@asynccontextmanager
async def serving(path: Path, **limits: int) -> AsyncIterator[Bench]:
    bench = Bench(path, **(limits or {"peers": 4, "line_bytes": 1_000_000, "held_bytes": 1_500_000}))
    await bench.server.start()
    try:
        yield bench
    finally:
        bench.close()
        await bench.turn()


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Runs a test's coroutine with a server."""

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def main() -> None:
            async with serving(tmp_path / "agent.sock") as bench:
                await test(bench)

        asyncio.run(main())

    return run


Run = Callable[[Callable[[Bench], Awaitable[None]]], None]


def line(do: str) -> bytes:
    return json.dumps({"do": do}).encode() + b"\n"


def received(client: socket.socket) -> list[str]:
    """The lines that have arrived."""
    found = b""
    while True:
        try:
            more = client.recv(1 << 20)
        except BlockingIOError:
            break
        if not more:
            break
        found += more
    return [json.loads(each).get("line", "?") for each in found.splitlines()]


def is_closed(client: socket.socket) -> bool:
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_a_line_is_answered_whatever_its_pieces(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        for piece in (b'{"do": "hel', b'lo"}\n{"do":', b' "next"}', b"\n"):
            client.send(piece)
            await bench.turn()
            await bench.answer()
        assert received(client) == ["hello", "next"]

    run(test)


def test_lines_sent_ahead_are_answered_in_order_one_at_a_time(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.send(line("1") + line("2") + line("3"))
        await bench.turn()
        assert bench.taken == ["1"]
        for _ in range(3):
            await bench.answer()
        assert received(client) == ["1", "2", "3"]

    run(test)


def test_lines_that_arrive_together_are_one_group(run: Run) -> None:
    async def test(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(4)]
        for number, client in enumerate(clients):
            client.send(line(str(number)))
        await bench.turn()
        assert [len(group) for group in bench.groups] == [4]

    run(test)


def test_the_socket_is_for_the_group_alone_and_its_path_may_be_long(tmp_path: Path) -> None:
    async def test() -> None:
        folder = tmp_path / ("x" * 120)
        folder.mkdir()
        async with serving(folder / "agent.sock") as bench:
            client = await bench.connect()
            client.send(line("hello"))
            await bench.turn()
            await bench.answer()
            assert received(client) == ["hello"]
            assert bench.path.stat().st_mode & 0o777 == 0o660

    asyncio.run(test())


def test_a_line_without_an_end_is_refused_at_the_limit(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        sent = 0
        while not is_closed(client):
            assert sent < 2_000_000
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                sent += client.send(b"x" * 100_000)
            await bench.turn()
        assert len(bench.server) == 0

    run(test)


def test_unfinished_lines_of_all_peers_together_are_bounded(run: Run) -> None:
    async def test(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(3)]
        for _ in range(40):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b"x" * 50_000)
            await bench.turn()
            assert bench.server.held <= 1_600_000
        assert len(bench.server) < 3

    run(test)


@pytest.fixture
def stale_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALE_S", 0.0)


def test_a_line_that_is_never_finished_closes_its_connection(run: Run, stale_at_once: None) -> None:
    async def test(bench: Bench) -> None:
        slow, idle = await bench.connect(), await bench.connect()
        slow.send(b"half a li")
        await bench.turn()
        assert is_closed(slow)
        assert not is_closed(idle)

    run(test)


def test_a_peer_that_does_not_read_is_not_served(run: Run) -> None:
    async def test(bench: Bench) -> None:
        deaf, other = await bench.connect(), await bench.connect()
        deaf.send(line("a"))
        await bench.turn()
        await bench.answer({"line": "x" * 5_000_000})
        deaf.send(line("b"))
        other.send(line("c"))
        await bench.turn()
        assert bench.taken == ["c"]
        assert len(bench.server) == 2

    run(test)


def test_a_peer_that_does_not_read_is_closed_in_the_end(run: Run, stale_at_once: None) -> None:
    async def test(bench: Bench) -> None:
        deaf, _ = await bench.connect(), await bench.connect()
        deaf.send(line("a"))
        await bench.turn()
        await bench.answer({"line": "x" * 5_000_000})
        assert len(bench.server) == 1

    run(test)


def test_a_slow_reader_gets_its_whole_answer(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.send(line("a"))
        await bench.turn()
        await bench.answer({"line": "x" * 3_000_000})
        flushed = asyncio.ensure_future(bench.server.flushed())
        await bench.turn()
        assert not flushed.done()
        found = b""
        while not found.endswith(b"\n"):
            with contextlib.suppress(BlockingIOError):
                found += client.recv(100_000)
            await bench.turn()
        assert json.loads(found) == {"line": "x" * 3_000_000}
        await flushed

    run(test)


def test_progress_is_skipped_while_a_peer_does_not_read(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.send(line("a"))
        await bench.turn()
        request = bench.groups[0][0]
        for _ in range(1000):
            request.show({"line": "x" * 10_000})
        await bench.answer()
        shown = 0
        while not shown or client in bench.clients:
            some = received_bytes(client)
            shown += some
            await bench.turn()
            if not some:
                break
        assert shown < 1_000_000

    run(test)


def received_bytes(client: socket.socket) -> int:
    try:
        return len(client.recv(1 << 20))
    except BlockingIOError:
        return 0


def test_beyond_the_limit_the_connection_idle_longest_is_closed(run: Run) -> None:
    async def test(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(4)]
        clients[0].send(line("again"))
        await bench.turn()
        await bench.answer()
        newest = await bench.connect()
        assert is_closed(clients[1])
        assert [is_closed(each) for each in (clients[0], clients[2], clients[3], newest)] == [False] * 4

    run(test)


def test_beyond_the_limit_a_connection_is_refused_while_all_are_busy(run: Run) -> None:
    async def test(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(4)]
        for client in clients:
            client.send(line("work"))
        await bench.turn()
        assert is_closed(await bench.connect())
        assert bench.taken == ["work"] * 4
        clients[0].close()
        await bench.answer()
        assert not is_closed(await bench.connect())

    run(test)


def test_a_user_has_only_part_of_the_connections(tmp_path: Path) -> None:
    async def test() -> None:
        limits = {"peers": 8, "user_peers": 2, "line_bytes": 1000, "held_bytes": 1000}
        async with serving(tmp_path / "agent.sock", **limits) as bench:
            busy, idle = await bench.connect(), await bench.connect()
            busy.send(line("sync"))
            await bench.turn()
            third = await bench.connect()
            assert [is_closed(each) for each in (busy, idle, third)] == [False, True, False]
            third.send(line("sync"))
            await bench.turn()
            assert is_closed(await bench.connect()), "all of this user's are busy"
            assert bench.taken == ["sync"] * 2

    asyncio.run(test())


def test_lines_that_are_served_count_too(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.send(line("x" * 5000))
        await bench.turn()
        assert bench.server.held > 5000
        await bench.answer()
        assert bench.server.held == 0

    run(test)


def test_a_peer_that_has_gone_needs_no_answer(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.send(line("a") + line("b"))
        await bench.turn()
        client.close()
        await bench.turn()
        await bench.answer()
        await bench.answer()
        assert len(bench.server) == 0

    run(test)


def test_existing_connections_are_served_after_listening_has_stopped(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        bench.server.stop_listening()
        client.send(line("late"))
        await bench.turn()
        await bench.answer()
        assert not bench.path.exists()
        assert received(client) == ["late"]

    run(test)


# Recording for many at once


def recording(*types: str) -> tuple[Request, "Future[Any]"]:
    """A request to record events, as its peer would send it, and its answer."""
    events = [NewEvent.create(type, stamp=STAMP).fields() for type in types]
    answer: Future[Any] = Future()
    line = json.dumps({"do": "record", "events": events}).encode()
    return Request(None, decode_line(line, lambda: STAMP), answer), answer  # type: ignore[arg-type]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = open_outbox(tmp_path / "home")
    yield made
    made.close()


def test_all_requests_are_recorded_in_one_commit(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    append = outbox.append

    def counted(events: list[NewEvent]) -> list[object]:
        calls.append(len(events))
        return list(append(events))

    monkeypatch.setattr(outbox, "append", counted)
    one, two = recording("a.b"), recording("a.b", "a.c")
    record(outbox, [one[0], two[0]])

    assert (one[1].result(), two[1].result()) == ({"seqs": [1]}, {"seqs": [2, 3]})
    assert calls == [3]


def test_a_request_that_has_expired_is_refused(outbox: Outbox) -> None:
    line = json.dumps(protocol.record_request([NewEvent.create("a.b", stamp=STAMP).fields()], 500)).encode()
    answers: list[Future[Any]] = [Future(), Future(), Future()]
    noted: list[object] = []
    for boottime_ms, answer in zip((500, 10**9, 499), answers, strict=True):
        request = Request(None, decode_line(line, lambda: STAMP), answer)  # type: ignore[arg-type]
        record(outbox, [request], boottime_ms=boottime_ms, note=noted.append)
    late, later, in_time = (answer.result() for answer in answers)

    assert "nothing was recorded" in late["error"]["detail"] == later["error"]["detail"]
    assert in_time == {"seqs": [1]}
    assert noted == [None], "a refusal proves nothing about the disk"


def test_the_largest_messages_of_a_recorder_fit(tmp_path: Path) -> None:
    """A thousand events, and events of the largest data, in the form that takes the most room."""
    worst = NewEvent.create(
        "a.b",
        stamp=STAMP,
        id="😀" * 128,
        learner_id="😀" * 256,
        object_id="😀" * 512,
        data={"text": '"é\\' * 10_000, "list": [[]] * 200},
    )
    small = NewEvent.create("a.b", stamp=STAMP, learner_id="s-17", object_id="math", data={"list": list(range(10))})
    for event, number in ((worst, 20), (small, 3000)):
        for message in _messages([_Entry(event)] * number):
            fields = [dataclasses.replace(entry.event, attempt=2**62, retried=True).fields() for entry in message]
            line = json.dumps(protocol.record_request(fields, 2**53), separators=(",", ":")).encode()
            assert len(line) < unix_socket.LINE_BYTES
            assert [type(event) for event in decode_line(line, lambda: STAMP).events or ()] == [NewEvent] * len(message)


def test_a_line_that_was_read_before_the_end_is_not_served_after_it(run: Run) -> None:
    async def test(bench: Bench) -> None:
        client = await bench.connect()
        client.sendall(line("late"))
        for _ in range(10):
            if not bench.server.held:  # until the line is read
                await asyncio.sleep(0)
        bench.server.close()  # the outbox is closed next
        await bench.turn()
        assert bench.taken == []

    run(test)


def test_each_request_is_answered_when_the_outbox_is_full(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(events: object) -> list[int]:
        raise OutboxFull("no room")

    monkeypatch.setattr(outbox, "append", full)
    both = recording("a.b"), recording("a.c")
    record(outbox, [request for request, _ in both])

    assert [answer.result() for _, answer in both] == [{"error": {"code": "outbox_full", "detail": "no room"}}] * 2


def test_an_unexpected_error_fails_one_request_alone(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = outbox.append

    def picky(events: list[NewEvent]) -> list[object]:
        if any(event.type == "bad.event" for event in events):
            raise ZeroDivisionError("what a learner did")
        return list(append(events))

    monkeypatch.setattr(outbox, "append", picky)
    three = recording("a.b"), recording("bad.event"), recording("a.c")
    record(outbox, [request for request, _ in three])
    first, bad, last = (answer.result() for _, answer in three)

    assert (first, last) == ({"seqs": [1]}, {"seqs": [2]})
    assert bad["error"]["code"] == "store_unusable"
    assert caplog.text.count("a request failed unexpectedly: ZeroDivisionError at ") == 1
    assert "learner" not in caplog.text, "an error's text may quote an event"
