"""HTTP on loopback: who may ask, what is answered, and what a slow or hostile client cannot do."""

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.errors import AgentError, OutboxFull, StoreUnusable
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.service import protocol
from pisync_agent.service.decoding import Events
from pisync_agent.service.http.access import Access, load_token
from pisync_agent.service.http.api import Api
from pisync_agent.service.http.server import HttpServer
from pisync_agent.service.server import LocalServer, record
from tests.support.outboxes import STAMP
from tests.support.processes import free_port

TOKEN = "t" * 40
PAGE = "http://kolibri.example:8080"
EVENT = {"type": "note.taken", "data": {"n": 1}}


class Client:
    """A connection that sends what a test says, byte for byte."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.port = port
        self.reader = reader
        self.writer = writer

    def send(self, text: bytes) -> None:
        self.writer.write(text)

    async def receive(self) -> tuple[int, dict[str, str], Any]:
        """Return an answer's status, headers and content."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, json.loads(body) if body else None

    async def ask(
        self, method: str = "POST", path: str = "/v1/events", content: object = EVENT, **headers: Any
    ) -> tuple[int, dict[str, str], Any]:
        """Send a request that is allowed, but for the headers given; None leaves one out."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        merged: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {TOKEN}",
            "Content-Length": str(len(body)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{name}: {value}" for name, value in merged.items() if value is not None]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body)
        return await self.receive()

    async def is_closed(self) -> bool:
        """Wait until the server closes the connection."""
        try:
            while await self.reader.read(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.writer.transport.abort()


class Device:
    """A server of HTTP over a real outbox. `failure` is raised instead of recording."""

    def __init__(self, home: Path, **limits: Any) -> None:
        self.outbox = open_outbox(home)
        self.local = LocalServer(path=home / "agent.sock", serve=partial(record, self.outbox))
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = free_port()
        token = limits.pop("token", TOKEN)
        access = Access(port=self.port, origins=frozenset({PAGE, "null"}), token=token)
        api = Api(access=access, record=self._record, status=lambda: {"waiting": 3}, stamp=lambda: STAMP)
        self.http = HttpServer(api=api, port=self.port, **limits)
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(self.port, *await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    def recorded(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.outbox.read(0, max_events=10**4, max_bytes=10**8)]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.http.close()
        self.outbox.close()

    async def _record(self, events: Events) -> list[int | AgentError]:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return await self.local.record(events)


Test = Callable[[Device], Awaitable[None]]
Serve = Callable[..., None]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs a test's coroutine with a server."""

    def run(test: Test, **limits: Any) -> None:
        async def main() -> None:
            device = Device(tmp_path / "home", **limits)
            await device.http.start()
            try:
                async with asyncio.timeout(60):
                    await test(device)
            finally:
                device.close()
                await asyncio.sleep(0)

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a state of the server, which has no event
        await asyncio.sleep(0)


# Recording


@pytest.mark.parametrize(
    ("content", "seqs"),
    [(EVENT, [1]), ([EVENT, EVENT], [1, 2]), ({"events": [EVENT] * 3}, [1, 2, 3]), ([], []), ({"events": []}, [])],
)
def test_events_are_durable_when_their_numbers_are_answered(serve: Serve, content: object, seqs: list[int]) -> None:
    async def test(device: Device) -> None:
        status, headers, answer = await (await device.connect()).ask(content=content)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert [result["seq"] for result in answer["results"]] == seqs == [row["seq"] for row in device.recorded()]

    serve(test)


def test_an_event_keeps_its_time_its_id_and_its_text(serve: Serve) -> None:
    sent = {
        "type": "note.taken", "id": "ناز/1", "learner_id": "अनिता", "object_id": "数学", "data": {"text": "😀"},
        "occurred_at": "2026-11-20T09:30:00.125Z",
    }  # fmt: skip

    async def test(device: Device) -> None:
        client = await device.connect()
        answers = [await client.ask(content=sent) for _ in range(2)]
        assert [answer["results"] for _, _, answer in answers] == [[{"seq": 1}]] * 2, "a repeat is stored once"
        (found,) = device.recorded()
        assert {name: found[name] for name in sent} == sent

    serve(test)


def test_an_invalid_event_is_answered_with_its_problem_and_its_neighbours_are_recorded(serve: Serve) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        status, headers, answer = await client.ask(content=[EVENT, {"type": "A"}, 7, EVENT])
        assert (status, headers["content-type"]) == (422, "application/problem+json")
        assert answer["type"] == "urn:pisync:problem:invalid_event"
        first, wrong, number, last = answer["results"]
        assert (first, last) == ({"seq": 1}, {"seq": 2})
        assert (wrong["type"], wrong["status"]) == ("urn:pisync:problem:invalid_event", 422)
        assert "noun.verb" in wrong["detail"]
        assert "object" in number["detail"]

    serve(test)


@pytest.mark.parametrize(("failure", "status"), [(OutboxFull("no room"), 507), (StoreUnusable("the disk failed"), 503)])
def test_a_disk_that_takes_nothing_is_a_reason_to_repeat(serve: Serve, failure: AgentError, status: int) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        device.failure = failure
        found, headers, answer = await client.ask()
        assert (found, answer["type"], answer["detail"]) == (status, f"urn:pisync:problem:{failure.code}", str(failure))
        assert int(headers["retry-after"]) > 0
        device.failure = None
        assert (await client.ask())[0] == 200

    serve(test)


def test_a_fault_of_the_program_is_answered_and_its_text_is_not_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        device.failure = RuntimeError("s-17 wrote a note")
        found, _, answer = await client.ask()
        assert (found, answer["type"]) == (503, "urn:pisync:problem:store_unusable")
        assert "RuntimeError" in caplog.text
        assert "s-17" not in caplog.text + answer["detail"]

    serve(test)


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[" * 60_000, 400, "nested"),
        (b"[" + b"0," * 500_000 + b"0]", 400, "values"),
        ([EVENT] * (protocol.RECORD_EVENTS + 1), 413, "at most 1,000"),
    ],
)
def test_a_body_that_is_no_events_says_what_is_wrong(serve: Serve, content: object, status: int, detail: str) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        found, _, answer = await client.ask(content=content)
        assert found == status
        assert detail in answer["detail"]
        assert device.recorded() == []
        assert (await client.ask())[0] == 200, "the connection goes on"

    serve(test)


def test_status_has_counts(serve: Serve) -> None:
    async def test(device: Device) -> None:
        answer = await (await device.connect()).ask("GET", "/v1/status", b"")
        assert (answer[0], answer[2]) == (200, {"waiting": 3})

    serve(test)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/events", 404), ("GET", "/v1/events", 405), ("POST", "/v1/status", 405)]
)
def test_other_paths_and_methods_are_named(serve: Serve, method: str, path: str, status: int) -> None:
    async def test(device: Device) -> None:
        found, headers, answer = await (await device.connect()).ask(method, path)
        assert (found, answer["status"]) == (status, status)
        assert ("allow" in headers) == (status == 405)

    serve(test)


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer " + "u" * 40}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://kolibri.example"}, 403),
        ({"Origin": "null.example"}, 403),
        ({"Host": "evil.example:8747"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": PAGE}, 200),
        ({"Origin": "null"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Authorization": f"bearer  {TOKEN} "}, 200),
    ],
)
def test_token_origin_and_host_decide(serve: Serve, headers: Mapping[str, str | None], status: int) -> None:
    async def test(device: Device) -> None:
        given: dict[str, Any] = {
            name: value and value.replace("{port}", str(device.port)) for name, value in headers.items()
        }
        found, answered, _ = await (await device.connect()).ask(**given)
        assert found == status
        assert len(device.recorded()) == (status == 200)
        allowed = headers.get("Origin") if status == 200 else None
        assert answered.get("access-control-allow-origin") == allowed
        assert answered["vary"] == "Origin"

    serve(test)


def test_a_page_reads_the_reason_of_a_refusal(serve: Serve) -> None:
    async def test(device: Device) -> None:
        _, headers, _ = await (await device.connect()).ask(Origin=PAGE, Authorization=None)
        assert headers["access-control-allow-origin"] == PAGE

    serve(test)


def test_without_a_token_origin_and_host_still_decide(serve: Serve) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        assert (await client.ask(Authorization=None))[0] == 200
        assert (await client.ask(Authorization=None, Origin="http://evil.example"))[0] == 403
        assert (await client.ask(Authorization=None, Host="evil.example"))[0] == 421

    serve(test, token=None)


def test_a_preflight_is_answered_for_listed_pages_alone(serve: Serve) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Private_Network": "true"}
        status, headers, _ = await client.ask("OPTIONS", content=b"", Origin=PAGE, Authorization=None, **asked)
        assert status == 204
        assert headers["access-control-allow-origin"] == PAGE
        assert headers["access-control-allow-headers"] == "Authorization, Content-Type"
        assert headers["access-control-allow-private-network"] == "true"
        status, headers, _ = await client.ask("OPTIONS", content=b"", Origin="http://evil.example", **asked)
        assert status == 403
        assert not [name for name in headers if name.startswith("access-control")]

    serve(test)


def test_the_token_is_made_once_for_the_group_to_read(tmp_path: Path) -> None:
    token = load_token(tmp_path)

    assert load_token(tmp_path) == token
    assert len(token) == 64
    assert stat.S_IMODE((tmp_path / "http-token").stat().st_mode) == 0o640
    assert token not in repr(Access(port=1, origins=frozenset(), token=token))
    (tmp_path / "http-token").write_text("short\n")
    with pytest.raises(StoreUnusable, match="delete it"):
        load_token(tmp_path)


# Bounds


def test_only_loopback_is_served(serve: Serve) -> None:
    async def test(device: Device) -> None:
        assert device.http._server is not None
        assert [each.getsockname()[0] for each in device.http._server.sockets] == ["127.0.0.1"]

    serve(test)


def test_a_client_that_is_slow_is_closed(serve: Serve) -> None:
    async def test(device: Device) -> None:
        silent, slow = await device.connect(), await device.connect()
        slow.send(b"POST /v1/events HTTP/1.1\r\nHost:")
        assert await silent.is_closed()
        assert await slow.is_closed()

    serve(test, request_s=0.1)


def test_a_body_that_is_too_large_is_answered(serve: Serve) -> None:
    async def test(device: Device) -> None:
        client = await device.connect()
        status, headers, answer = await client.ask(content=b"x" * 300_000)
        assert (status, headers["connection"]) == (413, "close")
        assert "1,048,576" in answer["detail"]
        assert await client.is_closed()

    serve(test, body_bytes=100_000)


def test_a_head_that_is_too_large_or_is_no_http_is_answered(serve: Serve) -> None:
    async def test(device: Device) -> None:
        for sent, status in ((b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 431), (b"\x16\x03\x01\r\n\r\n", 400)):
            client = await device.connect()
            client.send(sent)
            assert (await client.receive())[0] == status
            assert await client.is_closed()

    serve(test)


def test_bodies_of_the_refused_take_no_memory(serve: Serve) -> None:
    async def test(device: Device) -> None:
        clients = [await device.connect() for _ in range(3)]
        for client in clients:
            client.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + b"x" * 89_999)
        assert (await (await device.connect()).ask())[0] == 200
        for client in clients:
            client.send(b"x")
            assert (await client.receive())[0] == 421

    serve(test, held_bytes=1000)


def test_all_bodies_together_are_bounded(serve: Serve) -> None:
    async def test(device: Device) -> None:
        first, second = await device.connect(), await device.connect()
        head = f"Host: 127.0.0.1:{device.port}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 90000\r\n\r\n"
        first.send(b"POST /v1/events HTTP/1.1\r\n" + head.encode() + b"x" * 80_000)
        await until(lambda: sum(len(each.body) for each in device.http._open) == 80_000)
        status, headers, _ = await second.ask(content=b"x" * 30_000)
        assert (status, headers["retry-after"]) == (503, "1")

    serve(test, held_bytes=100_000)


def test_a_new_client_takes_the_place_of_the_oldest_that_is_not_being_answered(serve: Serve) -> None:
    async def test(device: Device) -> None:
        device.gate.clear()
        busy = await device.connect()
        waiting = asyncio.ensure_future(busy.ask())
        await until(lambda: any(each.answering for each in device.http._open))
        silent = await device.connect()
        await until(lambda: len(device.http._open) == 2)
        asked = asyncio.ensure_future((await device.connect()).ask())
        assert await silent.is_closed()
        device.gate.set()
        assert (await waiting)[0] == (await asked)[0] == 200

    serve(test, connections=2)


def test_clients_that_do_not_close_take_no_place(serve: Serve) -> None:
    """Without a token: each was refused, and keeps its connection."""

    async def test(device: Device) -> None:
        for _ in range(2):
            client = await device.connect()
            assert (await client.ask(Authorization=None, Connection="close"))[0] == 401
        for _ in range(2):
            assert (await (await device.connect()).ask())[0] == 200

    serve(test, connections=2)
