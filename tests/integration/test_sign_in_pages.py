"""Sign-in pages of each kind are recognized, and named where they say where they are."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pisync_agent.client import ReceiverClient
from pisync_agent.clock import SystemClock
from pisync_agent.errors import DeliveryError
from pisync_agent.identity import Identity
from pisync_agent.network import connections, sign_in
from tests.integration.test_client_faults import HTML, PAGE, RECEIPT, STREAM, failure
from tests.support.certificates import Authority
from tests.support.raw_server import Peer, RawServer, answering, http
from tests.unit.made_up_receiver import DEVICE, TOKEN

LOGIN = "http://login.example/hotspot?user=s-17"
REDIRECT = http(302, PAGE, kind=HTML, location=LOGIN)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def plain_http(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> Iterator[RawServer]:
    """What the network answers at port 80 of any host."""
    with RawServer(answering(answer)) as server:
        monkeypatch.setattr(sign_in, "PLAIN_PORT", server.port)
        yield server


def check_named(error: DeliveryError) -> None:
    assert error.kind == "portal"
    assert "Open a browser and sign in at login.example:" in str(error)
    assert "s-17" not in str(error)


@pytest.mark.parametrize("status", [302, 303, 307])
def test_a_redirect_in_place_of_the_receiver(status: int) -> None:
    with RawServer(answering(http(status, PAGE, kind=HTML, location=LOGIN))) as server:
        check_named(failure(server.url))


@pytest.mark.parametrize("answer", [http(200, PAGE, kind=HTML), http(511, PAGE, kind=HTML)])
def test_a_page_that_does_not_say_where_it_is(answer: bytes) -> None:
    with RawServer(answering(answer)) as server:
        error = failure(server.url)

    assert error.kind == "portal"
    assert "Open any web page on this network" in str(error)


def test_tls_intercepted_with_a_certificate_of_its_own(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        plain_http(monkeypatch, REDIRECT),
        RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server,
    ):
        error = failure(server.url)

    check_named(error)
    assert "issued by A school" in str(error)


def test_a_name_that_leads_to_the_sign_in_page(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS lies: the page's own certificate is good, and for another name."""
    with (
        plain_http(monkeypatch, REDIRECT),
        RawServer(answering(http(200, PAGE)), tls=authority.server(), host="127.0.0.2") as server,
    ):
        monkeypatch.setattr(socket, "getaddrinfo", _always(server.port))
        error = failure(f"https://receiver.example:{server.port}", ca_file=authority.certificate)

    check_named(error)


def _always(port: int):  # type: ignore[no-untyped-def]
    """Resolve every name to the server at `port`, and at any other port to this machine."""

    def resolve(host: str, asked: int, *_: object, **__: object) -> list[object]:
        address = "127.0.0.2" if asked == port else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, asked))]

    return resolve


def test_a_network_that_closes_the_port_until_the_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with plain_http(monkeypatch, REDIRECT), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(f"https://127.0.0.1:{taken.getsockname()[1]}")

    check_named(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_closed_port_without_a_sign_in_page_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with plain_http(monkeypatch, http(404, PAGE, kind=HTML)) as plain, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = failure(f"{scheme}://127.0.0.1:{port}")

    assert error.kind == "connect"
    assert f"127.0.0.1 refused the connection to port {port} " in str(error)
    assert plain.connections == (1 if scheme == "https" else 0)


def test_the_probe_has_no_token_and_asks_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        plain_http(monkeypatch, REDIRECT) as plain,
        RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server,
    ):
        failure(server.url)

    (request,) = plain.requests
    assert request.startswith(b"GET /healthz HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()


def test_a_working_receiver_is_not_probed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        plain_http(monkeypatch, REDIRECT) as plain,
        RawServer(answering(http(502, PAGE, kind=HTML)), tls=authority.server()) as server,
    ):
        failure(server.url, ca_file=authority.certificate)

    assert plain.connections == 0


def test_an_https_proxy_is_verified_with_the_public_authorities(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of the system, or of httpx where it has none; never the receiver's private authority."""
    proxys = Authority(tmp_path / "proxy")
    monkeypatch.setattr(connections, "public_trust", proxys.client)
    with RawServer(answering(http(200, RECEIPT)), tls=authority.server()) as server:

        def tunnel(peer: Peer) -> None:
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            peer.join(server.port)

        with RawServer(tunnel, tls=proxys.server()) as proxy:
            identity = Identity(
                url="https://localhost.school.example",
                device_id=DEVICE,
                token=TOKEN,
                ca_file=str(authority.certificate),
            )
            one = ReceiverClient(identity, clock=SystemClock(), environ={"HTTPS_PROXY": proxy.url})
            with one, pytest.raises(DeliveryError, match=r"certificate of localhost\.school\.example") as caught:
                one.post_batch(b"batch", stream=STREAM)

    assert caught.value.kind == "tls"
    assert proxy.requests[0].startswith(b"CONNECT localhost.school.example:443 ")
