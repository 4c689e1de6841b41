"""What goes out and how it is counted, with httpx's transport in memory."""

import json
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from pisync_agent.client import ANSWER_BYTES, ANSWER_S, ReceiverClient, enroll
from pisync_agent.errors import BadAnswer, DeliveryError, Refused, Unreachable
from pisync_agent.identity import Identity
from pisync_common.errors import RuleError
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_common.wire import NONCE_HEADER
from tests.support.outboxes import StillClock
from tests.unit.made_up_receiver import DEVICE, TOKEN, URL

RECEIPT = {
    "device_id": DEVICE,
    "stream": "s1",
    "stored": 0,
    "duplicates": 0,
    "rejected": [],
    "watermark": 0,
    "server_time": "2026-11-23T10:00:00Z",
}
Handler = Callable[[httpx.Request], httpx.Response]


def echoing(handler: Handler) -> httpx.MockTransport:
    """Answer as `handler` does, with the request's nonce unless the answer has one."""

    def handle(request: httpx.Request) -> httpx.Response:
        answer = handler(request)
        answer.headers.setdefault(NONCE_HEADER, request.headers[NONCE_HEADER])
        return answer

    return httpx.MockTransport(handle)


def client(handler: Handler, *, url: str = URL, **identity: object) -> ReceiverClient:
    fields = {"url": url, "device_id": DEVICE, "token": TOKEN} | identity
    return ReceiverClient(
        Identity(**fields),  # type: ignore[arg-type]
        clock=StillClock(),
        transport=echoing(handler),
    )


def fails(handler: Handler) -> DeliveryError:
    with client(handler) as one, pytest.raises(DeliveryError) as caught:
        one.post_batch(b"body", stream="s1")
    return caught.value


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"PiSync-Sync": "now"}, True),
        ({"PiSync-Sync": "later"}, False),
        ({}, False),
        ({"PiSync-Sync": "now", NONCE_HEADER: "another"}, False),
    ],
)
def test_only_an_answer_to_this_request_asks_for_a_sync(headers: dict[str, str], asked: bool) -> None:
    with client(lambda _: httpx.Response(200, json=RECEIPT, headers=headers)) as one:
        with suppress(DeliveryError):
            one.post_batch(b"body", stream="s1")
        assert one.sync_asked is asked


def test_a_batch_request_has_the_wire_format() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=RECEIPT)

    with client(handler, url="https://example.org/pisync") as one:
        one.post_batch(b"body", stream="s1")

    (request,) = seen
    assert (request.method, str(request.url), request.content) == (
        "POST",
        "https://example.org/pisync/api/events",
        b"body",
    )
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == "4"
    assert request.headers["user-agent"].startswith("pisync/")
    assert "transfer-encoding" not in request.headers


def test_a_cached_answer_to_another_request_is_not_believed() -> None:
    """A proxy that keeps answers would make the device believe that a batch arrived."""
    kept: list[httpx.Response] = []

    def handler(request: httpx.Request) -> httpx.Response:
        headers = {NONCE_HEADER: request.headers[NONCE_HEADER]}
        kept.append(httpx.Response(200, headers=headers, json=RECEIPT))
        first = kept[0]
        return httpx.Response(200, headers=first.headers, content=first.content)

    with client(handler) as one:
        one.post_batch(b"body", stream="s1")
        with pytest.raises(Unreachable) as caught:
            one.post_batch(b"body", stream="s1")
    assert caught.value.kind == "portal"


@pytest.mark.parametrize("nonce", ["", "0000000000000000"])
@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [(200, "application/json", Unreachable), (401, CONTENT_TYPE, BadAnswer), (400, CONTENT_TYPE, BadAnswer)],
)
def test_an_answer_without_the_requests_nonce_is_not_the_receivers_own(
    nonce: str, status: int, kind: str, expected: type[DeliveryError]
) -> None:
    content = json.dumps(RECEIPT | {"type": problem_type("unauthorized"), "detail": "made up"})

    def handler(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": kind, NONCE_HEADER: nonce, "X-Request-Id": request.headers.get(NONCE_HEADER, "")}
        return httpx.Response(status, headers=headers, content=content)

    error = fails(handler)
    assert type(error) is expected
    assert "made up" not in str(error)


def test_each_request_has_a_nonce_of_its_own() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers[NONCE_HEADER])
        return httpx.Response(200, json=RECEIPT)

    with client(handler) as one:
        for _ in range(3):
            one.post_batch(b"body", stream="s1")
    assert len(set(seen)) == 3
    assert min(map(len, seen)) >= 16


def test_a_sync_event_request_has_its_idempotency_key() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"device_id": DEVICE, "received_at": "now"})

    with client(handler) as one:
        one.post_sync_event(b"{}", key="k-1")

    assert seen[0].url.path == "/api/sync-event"
    assert seen[0].headers["idempotency-key"] == "k-1"
    assert "content-encoding" not in seen[0].headers


def test_cookies_are_not_kept() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=RECEIPT, headers={"Set-Cookie": "portal=1; Path=/"})

    with client(handler) as one:
        one.post_batch(b"1", stream="s1")
        one.post_batch(b"2", stream="s1")

    assert ["cookie" in request.headers for request in seen] == [False, False]


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 100_000])
def test_sent_bytes_are_counted_chunk_by_chunk_with_headers(size: int) -> None:
    pieces: list[int] = []

    with client(lambda request: httpx.Response(200, json=RECEIPT)) as one:
        one.post_batch(b"x" * size, stream="s1", on_sent=pieces.append)

        assert one.bytes_sent == sum(pieces)
        assert pieces[0] + size == one.bytes_sent
        assert 250 < pieces[0] < 400
        assert len(pieces) == 1 + -(-size // (16 * 1024))


def test_unsent_bytes_are_not_counted() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError  # the transport below never gets so far

    class Cut(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.SyncByteStream)
            pieces = iter(request.stream)
            next(pieces)
            next(pieces)  # the first is on its way now, the second is not
            raise httpx.WriteError("cut")

    one = client(handler)
    cut = ReceiverClient(one.identity, clock=StillClock(), transport=Cut())
    pieces: list[int] = []

    with cut, pytest.raises(Unreachable) as caught:
        cut.post_batch(b"x" * 100_000, stream="s1", on_sent=pieces.append)

    assert caught.value.kind == "connect"
    assert pieces[1:] == [16 * 1024]
    assert cut.bytes_sent == sum(pieces)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (httpx.ConnectTimeout, "timeout"),
        (httpx.ReadTimeout, "timeout"),
        (httpx.WriteTimeout, "timeout"),
        (httpx.PoolTimeout, "timeout"),
        (httpx.ConnectError, "connect"),
        (httpx.ReadError, "connect"),
        (httpx.WriteError, "connect"),
        (httpx.RemoteProtocolError, "connect"),
        (httpx.ProxyError, "connect"),
    ],
)
def test_errors_of_httpx_become_unreachable(kind: type[httpx.TransportError], code: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise kind("made up", request=request)

    error = fails(handler)

    assert type(error) is Unreachable
    assert error.kind == code
    assert "Everything is kept" in str(error)


def verification(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "made up")
    error.verify_code, error.verify_message = code, "made up"
    return error


@pytest.mark.parametrize(
    ("cause", "synced", "code"),
    [
        (socket.gaierror(-2, "Name or service not known"), False, "dns"),
        (UnicodeError("label too long"), False, "dns"),
        (ConnectionRefusedError(111, "Connection refused"), False, "connect"),
        (OSError(101, "Network is unreachable"), False, "connect"),
        (TimeoutError(), False, "timeout"),
        (verification(9), False, "clock"),
        (verification(9), True, "tls"),
        (verification(10), False, "tls"),
        (verification(10), True, "tls"),
        (verification(18), False, "tls"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), True, "tls"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True, "connect"),
        (ssl.SSLZeroReturnError(6, "closed"), True, "connect"),
    ],
)
def test_the_cause_behind_a_failed_connection_decides(cause: Exception, synced: bool, code: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        try:
            raise cause
        except Exception as error:
            raise httpx.ConnectError("made up", request=request) from error

    clock = StillClock()
    clock.now = type(clock.now)(
        at_ms=clock.now.at_ms, boot_id=clock.now.boot_id, boottime_ms=clock.now.boottime_ms, clock_synced=synced
    )
    one = ReceiverClient(client(handler).identity, clock=clock, transport=echoing(handler))

    with one, pytest.raises(Unreachable) as caught:
        one.post_batch(b"", stream="s1")

    assert caught.value.kind == code


class Endless(httpx.SyncByteStream):
    def __init__(self, each: Callable[[], None]) -> None:
        self.given = 0
        self._each = each

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self._each()
            self.given += 65536
            yield b" " * 65536


def test_a_huge_answer_is_not_read_completely() -> None:
    stream = Endless(lambda: None)

    error = fails(lambda request: httpx.Response(200, stream=stream, headers={"Content-Type": "application/json"}))

    assert error.kind == "portal"
    assert stream.given <= ANSWER_BYTES + 65536


def test_a_dripping_answer_times_out() -> None:
    clock = StillClock()

    def drip() -> None:
        now = clock.now
        clock.now = type(now)(
            at_ms=now.at_ms, boot_id=now.boot_id, boottime_ms=now.boottime_ms + 20_000, clock_synced=True
        )

    stream = Endless(drip)
    transport = echoing(lambda request: httpx.Response(200, stream=stream))

    one = ReceiverClient(client(lambda request: httpx.Response(200)).identity, clock=clock, transport=transport)
    with one, pytest.raises(Unreachable) as caught:
        one.post_batch(b"", stream="s1")

    assert caught.value.kind == "timeout"
    assert stream.given == 65536 * (ANSWER_S // 20)


def test_the_token_is_masked_in_messages_even_if_the_answer_repeats_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"type": problem_type("unauthorized"), "status": 401, "detail": f"unknown token {TOKEN}"}

    error = fails(lambda request: httpx.Response(401, content=json.dumps(body), headers={"Content-Type": CONTENT_TYPE}))

    assert isinstance(error, Refused)
    assert "unknown token" in str(error)
    assert TOKEN not in str(error)
    assert TOKEN not in repr(error)
    assert TOKEN not in caplog.text


def test_enrolling_gives_an_identity() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"device_id": "pi-1", "token": TOKEN})

    identity = enroll("https://example.org/", "K7QP", device_id="pi-1", clock=StillClock(), transport=echoing(handler))

    assert identity == Identity(url="https://example.org", device_id="pi-1", token=TOKEN)
    assert json.loads(seen[0].content) == {"code": "K7QP", "device_id": "pi-1"}
    assert "authorization" not in seen[0].headers


def test_without_an_id_the_receiver_names_the_device() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"code": "K7QP"}
        return httpx.Response(201, json={"device_id": "pi-9", "token": TOKEN})

    identity = enroll(URL, "K7QP", clock=StillClock(), transport=echoing(handler))

    assert identity.device_id == "pi-9"


def test_the_code_is_masked_in_messages() -> None:
    body = {"type": problem_type("enrollment_code"), "status": 403, "detail": "the code K7QP-2M4X is used up"}
    transport = echoing(
        lambda request: httpx.Response(403, content=json.dumps(body), headers={"Content-Type": CONTENT_TYPE})
    )

    with pytest.raises(Refused) as caught:
        enroll(URL, "K7QP-2M4X", clock=StillClock(), transport=transport)

    assert "used up" in str(caught.value)
    assert "K7QP" not in str(caught.value)


def test_an_invalid_token_is_rejected() -> None:
    transport = echoing(lambda request: httpx.Response(201, json={"device_id": "a", "token": "a b\n"}))

    with pytest.raises(DeliveryError):
        enroll(URL, "K7QP", clock=StillClock(), transport=transport)


def test_plain_http_to_another_machine_is_rejected_before_a_request() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    with pytest.raises(RuleError, match="--insecure-http"):
        enroll("http://10.0.0.5", "K7QP", clock=StillClock(), transport=echoing(handler))


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_an_unusable_ca_file_is_a_delivery_error(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)

    identity = Identity(url="https://example.org", device_id=DEVICE, token=TOKEN, ca_file=str(ca_file))

    with ReceiverClient(identity, clock=StillClock()) as one, pytest.raises(Unreachable, match=r"ca\.pem") as caught:
        one.post_batch(b"", stream="s1")
    assert caught.value.kind == "tls"


@pytest.mark.parametrize(
    "value", ["socks5://127.0.0.1:1", "http://", "http://127.0.0.1:99999", "ftp://user:secret@proxy"]
)
def test_an_unusable_proxy_is_a_delivery_error(value: str) -> None:
    identity = Identity(url="https://example.invalid", device_id=DEVICE, token=TOKEN)
    one = ReceiverClient(identity, clock=StillClock(), environ={"HTTPS_PROXY": value})

    with one, pytest.raises(Unreachable, match="HTTPS_PROXY") as caught:
        one.post_batch(b"", stream="s1")

    assert caught.value.kind == "connect"
    assert "secret" not in str(caught.value)


def test_a_closed_client_opens_again() -> None:
    one = client(lambda request: httpx.Response(200, json=RECEIPT))

    for _ in range(2):
        one.post_batch(b"", stream="s1")
        one.close()
        one.close()
