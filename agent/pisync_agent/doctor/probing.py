"""Harmless questions to the receiver: its certificate, whether it is ready, and a sign-in page in its place.

By sockets of its own, and not by the client that delivers, for it must see what the client only reports as a failure.
Each socket has a time-out, and the examination as a whole ends whatever a server does.
"""

import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pisync_agent.answers as answers
from pisync_agent.answers import Answer
from pisync_agent.doctor.deadlines import Deadline
from pisync_agent.doctor.network import Way, connect
from pisync_agent.errors import Unreachable
from pisync_agent.network.authorities import private_trust, public_trust
from pisync_agent.network.certificates import Certificate, read_certificate
from pisync_common import __version__
from pisync_common.limits import KIB
from pisync_common.wire import NONCE_HEADER

STEP_S: Final = 3.0
READY: Final = "/readyz"

_BODY_BYTES: Final = 64 * KIB
_PLAIN_PORT: Final = 80
_HEAD_BYTES: Final = 16 * KIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer over HTTP; or the error, where none came."""

    answer: Answer | None = None
    error: Exception | None = None

    @property
    def own(self) -> bool:
        """Whether the receiver itself made it, for this request."""
        return self.answer is not None and self.answer.own and self.document is not None

    @property
    def document(self) -> Mapping[str, Any] | None:
        """The JSON object in it."""
        if self.answer is None or not self.answer.content_type.endswith("json"):
            return None
        try:
            found = json.loads(self.answer.body)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a TLS handshake showed."""

    version: str = ""
    certificate: Certificate | None = None
    """The server's certificate; unverified where there is an error."""
    error: Exception | None = None

    @property
    def verify_code(self) -> int:
        """OpenSSL's code of a rejected certificate; 0 for none."""
        return self.error.verify_code if isinstance(self.error, ssl.SSLCertVerificationError) else 0


class Unsupported(Exception):
    """This way cannot be probed here; the client can use it."""


class ProxyRefused(OSError):
    """The proxy refused to connect."""


def trust_of(ca_file: str | None) -> ssl.SSLContext:
    """Return what the client trusts. Raises Unreachable where that cannot be used."""
    return public_trust() if ca_file is None else private_trust(ca_file)


def open_stream(way: Way, address: str, deadline: Deadline) -> socket.socket:
    """Connect to the receiver, through the proxy if there is one. Raises OSError, Unsupported."""
    if way.proxy is not None and way.proxy.scheme == "https":
        raise Unsupported("the way leads through a proxy with TLS; the next lines check it")
    link = connect(address, way.target[1], deadline.left(STEP_S))
    try:
        if way.proxy is not None and way.secure:
            _tunnel(link, way)
    except BaseException:
        link.close()
        raise
    return link


def _tunnel(link: socket.socket, way: Way) -> None:
    """Have the proxy connect to the receiver. Raises OSError."""
    host = f"[{way.host}]" if ":" in way.host else way.host
    lines = [f"CONNECT {host}:{way.port} HTTP/1.1", f"Host: {host}:{way.port}", f"User-Agent: pisync/{__version__}"]
    if way.proxy is not None and way.proxy.login is not None:
        import base64

        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(':'.join(way.proxy.login).encode()).decode()}")
    link.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        part = link.recv(1024)
        if not part or len(head) > _HEAD_BYTES:
            raise ProxyRefused("the proxy gives no answer")
        head += part
    status = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    if len(status) < 2 or not status[1].startswith("2"):
        login = ": it asks for a user name and a password" if status[1:2] == ["407"] else ""
        raise ProxyRefused(f"the proxy refuses ({answers.printable(' '.join(status[1:]))}){login}")


def shake_hands(way: Way, address: str, trust: ssl.SSLContext, deadline: Deadline) -> Tls:
    """Do a TLS handshake and end the connection; where the certificate is rejected, read it all the same."""
    try:
        return _handshake(way, address, trust, deadline)
    except ssl.SSLCertVerificationError as error:
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        try:
            return Tls(certificate=_handshake(way, address, blind, deadline).certificate, error=error)
        except OSError:
            return Tls(error=error)
    except OSError as error:
        return Tls(error=error)


def _handshake(way: Way, address: str, trust: ssl.SSLContext, deadline: Deadline) -> Tls:
    with (
        open_stream(way, address, deadline) as link,
        trust.wrap_socket(link, server_hostname=way.host.partition("%")[0]) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
        return Tls(version=secure.version() or "", certificate=None if der is None else read_certificate(der))


def ask_ready(way: Way, address: str, trust: ssl.SSLContext | None, deadline: Deadline) -> Reply:
    """Ask the receiver whether it is ready."""

    def opened() -> socket.socket:
        link = open_stream(way, address, deadline)
        return link if trust is None else trust.wrap_socket(link, server_hostname=way.host.partition("%")[0])

    path = way.url.partition("://")[2].partition("/")[2]
    place = f"/{path}{READY}" if path else READY
    return _get(opened, way.host, way.port, place if way.proxy is None or way.secure else f"{way.url}{READY}")


def ask_plainly(way: Way, address: str, deadline: Deadline) -> Reply:
    """Ask the receiver's host over plain HTTP, where a sign-in page would answer."""
    return _get(lambda: connect(address, _PLAIN_PORT, deadline.left(STEP_S / 2)), way.host, _PLAIN_PORT, "/healthz")


def _get(opened: Callable[[], socket.socket], host: str, port: int, target: str) -> Reply:
    connection = http.client.HTTPConnection(host, port)
    nonce = secrets.token_hex(8)
    try:
        connection.sock = opened()
        headers = {"User-Agent": f"pisync/{__version__}", "Accept": "application/json", NONCE_HEADER: nonce}
        connection.request("GET", target, headers=headers | {"Connection": "close"})
        response = connection.getresponse()
        head = {name.lower(): value for name, value in response.getheaders()}
        body = response.read(_BODY_BYTES)
        return Reply(answer=answers.read(response.status, head, body, nonce=nonce, most=_BODY_BYTES))
    except (OSError, http.client.HTTPException, ValueError, Unreachable) as error:
        return Reply(error=error)
    finally:
        connection.close()
