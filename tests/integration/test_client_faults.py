"""The client over real sockets and real TLS, against everything that answers in a receiver's place."""

import gzip
import json
import os
import socket
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from pisync_agent import client as clients
from pisync_agent.client import ReceiverClient, enroll
from pisync_agent.clock import SystemClock
from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.network import sign_in
from pisync_agent.network.bodies import Transfer
from pisync_common.models import Stamp
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_common.times import parse_ms
from tests.support.certificates import Authority
from tests.support.outboxes import StillClock
from tests.support.processes import wait_until
from tests.support.raw_server import Peer, RawServer, Talk, answering, http
from tests.unit.made_up_receiver import DEVICE, TOKEN

STREAM = "9f3c1a7be2d04c55"
RECEIPT: dict[str, Any] = {
    "device_id": DEVICE,
    "stream": STREAM,
    "stored": 1,
    "duplicates": 0,
    "rejected": [],
    "watermark": 1,
    "server_time": "2026-11-23T10:00:00.480Z",
}
PAGE = "<html><h1>Welcome to the school's network</h1></html>"
HTML = "text/html; charset=utf-8"


def client(url: str, *, clock: SystemClock | None = None, ca_file: Path | None = None) -> ReceiverClient:
    identity = Identity(
        url=url, device_id=DEVICE, token=TOKEN, insecure_http=True, ca_file=str(ca_file) if ca_file else None
    )
    return ReceiverClient(identity, clock=clock or SystemClock())


def failure(url: str, *, body: bytes = b"batch", **given: Any) -> DeliveryError:
    with client(url, **given) as one, pytest.raises(DeliveryError) as caught:
        one.post_batch(body, stream=STREAM)
    assert TOKEN not in str(caught.value)
    assert "Everything is kept" in str(caught.value)
    return caught.value


def problem(status: int, code: str, **more: str) -> bytes:
    body = {"type": problem_type(code), "title": "T", "status": status, "detail": "do this", "request_id": "r-1"}
    return http(status, body, kind=CONTENT_TYPE, **more)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's own way out is."""
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never ends."""
    monkeypatch.setattr(clients, "_TIMEOUTS", httpx.Timeout(1.0, connect=1.0))


# Answers


def test_a_receipt_comes_back_and_the_connection_is_used_again() -> None:
    with RawServer(answering(http(200, RECEIPT))) as server, client(server.url) as one:
        for _ in range(3):
            assert one.post_batch(b"batch", stream=STREAM).watermark == 1

        assert server.connections == 1
        assert one.bytes_sent == sum(len(request) for request in server.requests)


def test_every_byte_that_is_counted_was_sent() -> None:
    body = bytes(range(256)) * 1000
    with RawServer(answering(http(200, RECEIPT))) as server, client(server.url) as one:
        one.post_batch(body, stream=STREAM)

        assert one.bytes_sent == len(server.requests[0])
        assert server.requests[0].endswith(b"\r\n\r\n" + body)


def test_a_transfer_is_measured_from_its_first_byte_less_a_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StillClock()

    def wait(seconds: float) -> None:
        clock.now = replace(clock.now, boottime_ms=clock.now.boottime_ms + int(seconds * 1000))

    connect = httpcore.SyncBackend.connect_tcp

    def far_away(*arguments: Any, **named: Any) -> httpcore.NetworkStream:
        wait(0.5)
        return connect(*arguments, **named)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", far_away)
    with RawServer(answering(http(200, RECEIPT))) as server:
        identity = Identity(url=server.url, device_id=DEVICE, token=TOKEN)
        with ReceiverClient(identity, clock=clock) as one:
            for _ in range(2):  # the second uses the connection again
                one.post_batch(b"x" * 100_000, stream=STREAM, on_sent=lambda size: wait(1.0))

    chunks = -(-100_000 // (16 * 1024))
    assert one.transfer == Transfer(bytes=200_000, seconds=2 * (chunks - 0.5))


@pytest.mark.parametrize(
    ("answer", "kind", "code", "retry_after"),
    [
        (http(200, PAGE, kind=HTML), Unreachable, "portal", None),
        (http(302, PAGE, kind=HTML, location="http://login.example/"), Unreachable, "portal", None),
        (http(307, location="/api/events"), Unreachable, "portal", None),
        (http(511, PAGE, kind=HTML), Unreachable, "portal", None),
        (http(200, RECEIPT | {"device_id": "pibook-2"}), Unreachable, "portal", None),
        (http(200, RECEIPT | {"stream": "0000000000000000"}), Unreachable, "portal", None),
        (http(200, RECEIPT, kind="text/plain"), Unreachable, "portal", None),
        (http(200, b"x" * 5_000_000), Unreachable, "portal", None),
        (problem(401, "unauthorized"), Refused, "auth", None),
        (problem(403, "forbidden"), Refused, "auth", None),
        (http(401, PAGE, kind=HTML), Unreachable, "portal", None),
        (http(401, {"error": "who are you?"}), BadAnswer, "http_4xx", None),
        (problem(413, "body_too_large"), TooLarge, "http_4xx", None),
        (http(413, PAGE, kind=HTML), TooLarge, "http_4xx", None),
        (problem(400, "invalid_batch"), Declined, "http_4xx", None),
        (http(404, PAGE, kind=HTML), BadAnswer, "http_4xx", None),
        (http(502, PAGE, kind=HTML), BadAnswer, "http_5xx", None),
        (problem(429, "slow_down", retry_after="7"), Overloaded, "http_4xx", 7.0),
        (problem(503, "overloaded", retry_after="30"), Overloaded, "http_5xx", 30.0),
        (http(503, PAGE, kind=HTML), Overloaded, "http_5xx", None),
        (
            http(
                *(503, PAGE),
                kind=HTML,
                date=formatdate(1_000_000_000, usegmt=True),
                retry_after=formatdate(1_000_000_060, usegmt=True),
            ),
            *(Overloaded, "http_5xx", 60.0),
        ),
    ],
)
def test_answers(answer: bytes, kind: type[DeliveryError], code: str, retry_after: float | None) -> None:
    with RawServer(answering(answer)) as server:
        error = failure(server.url)

        assert len(server.requests) == 1

    assert type(error) is kind
    assert (error.kind, error.retry_after) == (code, retry_after)


def test_a_retry_after_date_without_a_date_of_its_own_is_measured_by_the_devices_clock() -> None:
    later = formatdate(time.time() + 600, usegmt=True)

    with RawServer(answering(http(503, PAGE, kind=HTML, retry_after=later))) as server:
        asked = failure(server.url).retry_after

    assert asked is not None
    assert 500 < asked <= 600


def test_redirects_are_not_followed() -> None:
    with RawServer(answering(http(200, RECEIPT))) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with RawServer(answering(http(status, location=elsewhere.url + "/api/events"))) as server:
                assert failure(server.url).kind == "portal"

        assert elsewhere.connections == 0


def test_an_early_413_is_read() -> None:
    def talk(peer: Peer) -> None:
        peer.send(http(413, PAGE, kind=HTML, connection="close"))
        peer.request()

    with RawServer(talk) as server:
        assert failure(server.url, body=b"x" * 2_000_000).kind == "http_4xx"


def test_an_answer_compressed_unasked_is_read() -> None:
    def talk(peer: Peer) -> None:
        peer.request()
        plain = http(200, gzip.compress(json.dumps(RECEIPT).encode()), content_encoding="gzip")
        peer.send(plain)

    with RawServer(talk) as server, client(server.url) as one:
        assert one.post_batch(b"batch", stream=STREAM).watermark == 1


# Proxies

ELSEWHERE = "receiver.invalid"


def through(proxy: str, *, scheme: str = "https", ca_file: Path | None = None) -> DeliveryError:
    """What comes of a batch for a receiver that only the proxy could reach."""
    identity = Identity(
        url=f"{scheme}://{ELSEWHERE}",
        device_id=DEVICE,
        token=TOKEN,
        insecure_http=True,
        ca_file=str(ca_file) if ca_file else None,
    )
    environ = {"ALL_PROXY": proxy}
    one = ReceiverClient(identity, clock=SystemClock(), environ=environ)
    with one, pytest.raises(DeliveryError) as caught:
        one.post_batch(b"batch", stream=STREAM)
    assert "secret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(403, PAGE, kind=HTML), "403"),
        (http(407, PAGE, kind=HTML, proxy_authenticate="Basic"), "user name and a password"),
        (http(502, PAGE, kind=HTML), "502"),
        (http(302, PAGE, kind=HTML, location="http://login.example/"), "302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "proxy"),
        (b"", "proxy"),
    ],
)
def test_a_refusal_of_the_proxy_names_the_proxy(answer: bytes, said: str) -> None:
    def talk(peer: Peer) -> None:
        peer.request()
        peer.send(answer)

    with RawServer(talk) as proxy:
        name = f"localhost:{proxy.port}"
        error = through(f"http://pi:secret@{name}")

    assert (type(error), error.kind) == (Unreachable, "connect")
    assert f"the proxy {name} (from ALL_PROXY)" in str(error)
    assert said in str(error)
    assert proxy.requests[0].startswith(b"CONNECT receiver.invalid:443 ")
    assert b"Proxy-Authorization: Basic " in proxy.requests[0]
    assert b"Bearer" not in proxy.requests[0]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_reached_is_named(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        closed = through(f"http://127.0.0.1:{port}", scheme=scheme)
    unknown = through("http://pi:secret@proxy.invalid:3128", scheme=scheme)

    assert (closed.kind, unknown.kind) == ("connect", "dns")
    assert f"the proxy 127.0.0.1:{port} (from ALL_PROXY)" in str(closed)
    assert "the proxy proxy.invalid:3128 (from ALL_PROXY)" in str(unknown)


def test_a_proxy_whose_certificate_is_not_trusted_is_named(authority: Authority) -> None:
    with RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as proxy:
        name = f"the proxy localhost:{proxy.port}"
        errors = [through(proxy.url, scheme=scheme) for scheme in ("http", "https")]

    assert [error.kind for error in errors] == ["tls", "tls"]
    assert all(name in str(error) for error in errors)
    assert proxy.requests == []


@pytest.mark.parametrize("more", [b"", b"a", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_connect_that_hangs_ends_with_the_requests_limit(monkeypatch: pytest.MonkeyPatch, more: bytes) -> None:
    monkeypatch.setattr(clients, "ANSWER_S", 0.3)

    def hang(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nX: " if more == b"a" else b"")
        while more:
            peer.send(more)
            time.sleep(0.02)
        peer.wait()

    with RawServer(hang) as proxy:
        name = f"the proxy localhost:{proxy.port}"
        error = through(proxy.url)

    assert error.kind == "timeout"
    assert name in str(error)


def test_plain_http_is_forwarded_by_the_proxy() -> None:
    with RawServer(answering(http(200, RECEIPT))) as proxy:
        identity = Identity(url=f"http://{ELSEWHERE}", device_id=DEVICE, token=TOKEN, insecure_http=True)
        with ReceiverClient(identity, clock=SystemClock(), environ={"http_proxy": proxy.url}) as one:
            assert one.post_batch(b"batch", stream=STREAM).stored == 1

    assert proxy.requests[0].startswith(b"POST http://receiver.invalid/api/events ")


def test_a_certificate_behind_a_proxy_is_read_through_it(authority: Authority) -> None:
    with RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server:

        def tunnel(peer: Peer) -> None:
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            peer.join(server.port)

        with RawServer(tunnel) as proxy:
            error = through(proxy.url, ca_file=authority.certificate)

    assert error.kind == "tls"
    assert "issued by A school" in str(error)
    assert server.requests == []
    assert proxy.connections == 2


# Connections


def cut_in_head(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Ty")


def cut_in_body(peer: Peer) -> None:
    peer.request()
    peer.send(http(200, RECEIPT)[:-10])


def cut_before_answer(peer: Peer) -> None:
    peer.request()


def reset_before_answer(peer: Peer) -> None:
    peer.request()
    peer.reset()


def reset_in_body(peer: Peer) -> None:
    peer.request()
    peer.send(http(200, RECEIPT)[:-10])
    peer.reset()


def nonsense(peer: Peer) -> None:
    peer.request()
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize(
    "talk", [cut_in_head, cut_in_body, cut_before_answer, reset_before_answer, reset_in_body, nonsense]
)
def test_a_truncated_answer_is_not_an_answer(talk: Talk) -> None:
    with RawServer(talk) as server:
        error = failure(server.url)

    assert type(error) is Unreachable
    assert error.kind == "connect"
    assert "sent again" in str(error)


def silent(peer: Peer) -> None:
    peer.request()
    peer.wait()


def stuck_in_body(peer: Peer) -> None:
    peer.request()
    peer.send(http(200, RECEIPT)[:-10])
    peer.wait()


def deaf(peer: Peer) -> None:
    peer.wait()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("talk", "size"), [(silent, 10), (stuck_in_body, 10), (deaf, 30_000_000)])
def test_a_missing_answer_is_a_time_out(talk: Talk, size: int) -> None:
    with RawServer(talk) as server:
        error = failure(server.url, body=b"x" * size)

    assert type(error) is Unreachable
    assert error.kind == "timeout"


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "102 Processing": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "103 Early Hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "a head byte by byte": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "header lines": (OK, b"X: a\r\n"),
    "a chunk's extension": (CHUNKED + b"2;", b"a"),
    "chunks": (CHUNKED, b"1\r\na\r\n"),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: a\r\n"),
    "a body": (OK + b"Content-Length: 100000000\r\n\r\n", b" "),
    "a body until the end": (OK + b"\r\n", b" "),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_without_an_end_ends_with_the_requests_limit(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, start: bytes, more: bytes, tls: bool
) -> None:
    """However often something comes: the limit is that of the whole exchange, not of one read."""
    monkeypatch.setattr(clients, "ANSWER_S", 0.3)

    def trickle(peer: Peer) -> None:
        peer.request()
        peer.send(start)
        while True:
            peer.send(more)
            time.sleep(0.02)

    with RawServer(trickle, tls=authority.server() if tls else None) as server:
        error = failure(server.url, ca_file=authority.certificate if tls else None)

    assert error.kind == "timeout"


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_read_up_to_a_bound(start: bytes, more: bytes) -> None:
    given = 0

    def flood(peer: Peer) -> None:
        nonlocal given
        peer.request()
        peer.send(start)
        while True:
            given += len(more) * 4096
            peer.send(more * 4096)

    with RawServer(flood) as server:
        error = failure(server.url)

    assert isinstance(error, Unreachable)
    assert given < 20_000_000  # what is read, and what the system's buffers hold


def test_a_tls_handshake_that_hangs_ends(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ANSWER_S", 0.3)
    with RawServer(lambda peer: peer.wait()) as server:
        error = failure(server.url.replace("http:", "https:"), ca_file=authority.certificate)

    assert error.kind == "timeout"


def test_a_large_body_has_more_time_to_be_sent_but_not_to_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ANSWER_S", 0.3)

    def slow(peer: Peer) -> None:
        time.sleep(1.0)  # longer than the limit: the body does not fit into the system's buffers
        peer.request()
        peer.wait()

    with RawServer(slow) as server, client(server.url) as one, pytest.raises(Unreachable, match="in time"):
        one.post_batch(b"x" * 12_000_000, stream=STREAM)
    assert one.bytes_sent > 12_000_000


def test_a_slow_answer_is_waited_for() -> None:
    def slow(peer: Peer) -> None:
        peer.request()
        for byte in peer.echoing(http(200, RECEIPT)):
            peer.send(bytes((byte,)))

    with RawServer(slow) as server, client(server.url) as one:
        assert one.post_batch(b"batch", stream=STREAM).stored == 1


def test_a_connection_closed_meanwhile_is_reopened() -> None:
    def once(peer: Peer) -> None:
        peer.request()
        peer.send(http(200, RECEIPT))

    with RawServer(once) as server, client(server.url) as one:
        for number in range(1, 4):
            assert one.post_batch(b"batch", stream=STREAM).stored == 1
            assert server.connections == number
            wait_until(lambda number=number: server.ended == number, "the server has closed")  # type: ignore[misc]


def test_a_closed_port_is_a_connect_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{taken.getsockname()[1]}")

    assert error.kind == "connect"
    assert "refused" in str(error)


@pytest.mark.usefixtures("impatient")
def test_an_unresponsive_host_times_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [
            socket.socket() for _ in range(8)
        ]  # never accepted: the queue is full, further connections are dropped
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))

        error = failure(f"http://127.0.0.1:{port}")

        for one in waiting:
            one.close()

    assert error.kind == "timeout"


def test_an_unknown_name_is_a_dns_error() -> None:
    error = failure("https://receiver.invalid")

    assert error.kind == "dns"
    assert "receiver.invalid" in str(error)


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


def test_a_private_authority_is_trusted_where_it_is_named(authority: Authority) -> None:
    with (
        RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server,
        client(server.url, ca_file=authority.certificate) as one,
    ):
        assert one.post_batch(b"batch", stream=STREAM).stored == 1
        assert one.post_batch(b"batch", stream=STREAM).stored == 1
        assert server.connections == 1


def test_a_private_authority_is_not_trusted_elsewhere(authority: Authority) -> None:
    with RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server:
        error = failure(server.url)

        assert error.kind == "tls"
        assert "--ca" in str(error)
        assert server.requests == []


def test_a_named_authority_is_the_only_one(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")

    with RawServer(answering(http(200, RECEIPT)), tls=other.server()) as server:
        assert failure(server.url, ca_file=authority.certificate).kind == "tls"


class DatedClock(SystemClock):
    """The real clock, with another date."""

    def __init__(self, date: str, *, synced: bool) -> None:
        super().__init__(kernel_synced=lambda: synced)
        self._at_ms = parse_ms(f"{date}T12:00:00Z")

    def stamp(self) -> Stamp:
        return replace(super().stamp(), at_ms=self._at_ms)


@pytest.mark.parametrize(
    ("start", "end", "date", "synced", "code", "said"),
    [
        ("2020", "2021", "2026-12-01", True, "tls", ("has expired", "2021-01-01", "2026-12-01", "renewed")),
        ("2020", "2021", "2026-12-01", False, "tls", ("has expired, or", "2021-01-01", "2026-12-01", "NTP", "renewed")),
        ("2020", "2021", "1970-01-02", False, "clock", ("clock is wrong", "1970-01-02", "2026-11-01", "NTP")),
        ("2020", "2021", "2099-01-01", True, "clock", ("clock is wrong", "2099-01-01")),
        ("2080", "2090", "2026-12-01", True, "tls", ("not valid yet", "2080-01-01", "2026-12-01", "renewed")),
        ("2080", "2090", "2026-12-01", False, "clock", ("not valid yet, or", "2080-01-01", "2026-12-01", "NTP")),
        ("2080", "2090", "2025-12-01", False, "clock", ("clock is wrong", "2025-12-01")),
        ("2080", "2090", "2025-12-01", True, "clock", ("clock is wrong", "2025-12-01")),
    ],
)
def test_a_clock_is_blamed_only_when_it_is_wrong(
    authority: Authority, start: str, end: str, date: str, synced: bool, code: str, said: tuple[str, ...]
) -> None:
    tls = authority.server(start=f"{start}0101000000Z", end=f"{end}0101000000Z")
    with RawServer(answering(http(200, RECEIPT)), tls=tls) as server:
        error = failure(server.url, ca_file=authority.certificate, clock=DatedClock(date, synced=synced))
        assert server.requests == []  # the second connection reads the certificate and sends nothing

    assert error.kind == code
    for words in (*said, "A school"):
        assert words in str(error)


def test_a_time_that_the_receiver_named_shows_that_the_clock_is_wrong(authority: Authority) -> None:
    clock = DatedClock("2026-12-01", synced=False)
    with (
        RawServer(answering(http(200, RECEIPT)), tls=authority.server(start="20261215000000Z")) as server,
        client(server.url, ca_file=authority.certificate, clock=clock) as one,
    ):
        one.learn_time(parse_ms("2026-12-20T00:00:00Z"))
        with pytest.raises(Unreachable, match="2026-12-20 has passed for certain") as caught:
            one.post_batch(b"batch", stream=STREAM)

    assert caught.value.kind == "clock"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (http(302, location="http://login.example/?id=s-17"), "portal", "login.example"),
        (http(511, PAGE, kind=HTML), "portal", "511"),
        (http(200, PAGE, kind=HTML), "portal", "web page"),
        (http(301, location="https://localhost/healthz"), "tls", "--ca"),
        (http(404, PAGE, kind=HTML), "tls", "--ca"),
        (http(200, {"status": "ok"}), "tls", "--ca"),
        (None, "tls", "--ca"),
    ],
)
def test_a_sign_in_page_that_intercepts_tls_is_recognized(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, code: str, said: str
) -> None:
    plain = RawServer(answering(answer or b""))
    monkeypatch.setattr(sign_in, "PLAIN_PORT", plain.port if answer else 1)
    with plain, RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server:
        error = failure(server.url)

    assert error.kind == code
    assert said in str(error)
    assert "issued by A school" in str(error)
    assert all(b"Bearer" not in request for request in plain.requests)


def test_a_sign_in_page_in_place_of_tls_is_recognized(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    def talk(peer: Peer) -> None:
        peer.send(http(302, location="http://login.example/"))
        peer.wait()

    with RawServer(talk) as port, RawServer(answering(http(302, location="http://login.example/"))) as plain:
        monkeypatch.setattr(sign_in, "PLAIN_PORT", plain.port)
        error = failure(port.url.replace("http:", "https:"), ca_file=authority.certificate)

    assert error.kind == "portal"
    assert "login.example" in str(error)


def test_a_certificate_for_another_name_is_not_trusted(authority: Authority) -> None:
    with RawServer(answering(http(200, RECEIPT)), tls=authority.server(), host="127.0.0.2") as server:
        error = failure(f"https://127.0.0.2:{server.port}", ca_file=authority.certificate)

    assert error.kind == "tls"


def test_a_port_without_tls_is_a_tls_error(authority: Authority) -> None:
    def talk(peer: Peer) -> None:
        peer.send(http(400, PAGE, kind=HTML))
        peer.wait()

    with RawServer(talk) as server:
        url = server.url.replace("http://", "https://")

        assert failure(url, ca_file=authority.certificate).kind == "tls"


# Enrollment


def test_enrolling_over_tls_keeps_the_authority(authority: Authority) -> None:
    answer = http(201, {"device_id": "pi-1", "token": TOKEN})
    with RawServer(answering(answer), tls=authority.server()) as server:
        identity = enroll(server.url, "K7QP", ca_file=str(authority.certificate), clock=SystemClock())

    assert (identity.device_id, identity.ca_file) == ("pi-1", str(authority.certificate))


def test_a_portal_gives_no_identity() -> None:
    with RawServer(answering(http(200, PAGE, kind=HTML))) as server, pytest.raises(Unreachable) as caught:
        enroll(server.url, "K7QP", clock=SystemClock())

    assert caught.value.kind == "portal"
    assert "K7QP" not in str(caught.value)
