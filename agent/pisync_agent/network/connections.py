"""Connections to the receiver, directly or through a proxy, that end at a deadline. Each thread has its own exchange.

httpx limits each read and each write; a server that sends a byte now and then, or `100 Continue` for ever, would hold
a request for ever. Here every operation on the network also ends with the deadline of the whole exchange, and what is
read of an answer, head included, is bounded.

A connection is kept for the next request as long as a gateway keeps it, unless this device's own address has changed. A
request that meets a kept connection just being closed is sent once more. TLS resumes the session before.

What goes wrong between this device and its proxy, a refused CONNECT included, is an httpx.ProxyError.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

import httpcore
import httpx

from pisync_agent.network.authorities import public_trust
from pisync_agent.network.proxies import Proxy
from pisync_agent.network.throttle import Throttle
from pisync_common.limits import KIB, MIB

MOST_CONNECTIONS: Final = 2
MOST_READ: Final = 2 * MIB
"""The most bytes that are read in one exchange."""

_PIECE: Final = 4 * KIB
"""Bytes written before the deadline is looked at again."""
_KEPT_S: Final = 110.0
"""Shorter than the gateways' limit (`receiver/deploy`: 120 s), so that a request rarely meets a closing connection."""
_UNSENT_BYTES: Final = 16 * KIB
"""How much of a body the system takes that it cannot send yet. More would count as sent, and be lost with the link."""
_LOST_MS: Final = 20_000
"""Without an acknowledgement for so long, the connection is lost."""
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST_MS),
)

OnSecured = Callable[[bytes | None], None]
"""Called with the server's certificate after its TLS handshake, before anything else is sent."""


class Deadline(threading.local):
    """When this thread's exchange must be over, how much it has read, and how fast it may send."""

    def __init__(self, monotonic: Callable[[], float], throttle: Throttle | None = None) -> None:
        self.monotonic = monotonic
        self.throttle = throttle
        self.before_proxy = False
        """Whether the exchange's connection has got no further than the proxy."""
        self.connected = False
        """Whether the exchange made a connection, and did not use a kept one."""
        self._until = float("inf")
        self._read = 0

    def begin(self, seconds: float) -> None:
        """Begin an exchange."""
        self._until, self._read = self.monotonic() + seconds, 0
        self.before_proxy = self.connected = False

    def shorten(self, seconds: float) -> None:
        """End no later than `seconds` from now."""
        self._until = min(self._until, self.monotonic() + seconds)

    @property
    def over(self) -> bool:
        return self.monotonic() >= self._until

    def within(self, timeout: float | None = None) -> float:
        """Return how long an operation may take, `timeout` at most. Raises httpcore.ReadTimeout at the deadline."""
        left = self._until - self.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the exchange took too long") from TimeoutError()
        return left if timeout is None else min(left, timeout)

    @property
    def nothing_read(self) -> bool:
        return self._read == 0

    def count_read(self, size: int) -> None:
        self._read += size
        if self._read > MOST_READ:
            raise httpcore.RemoteProtocolError("the answer does not end")


class Connections(httpx.BaseTransport):
    """A connection, kept for the next request, and another for a request at the same time.

    `round_trip_s` is what the quickest of them took to be made.
    """

    def __init__(
        self, *, trust: ssl.SSLContext, proxy: Proxy | None, deadline: Deadline, on_secured: OnSecured | None = None
    ) -> None:
        self._backend = _Backend(proxy, deadline, on_secured)
        options: dict[str, Any] = {
            "ssl_context": trust,
            "max_connections": MOST_CONNECTIONS,
            "max_keepalive_connections": MOST_CONNECTIONS,
            "keepalive_expiry": _KEPT_S,
            "network_backend": self._backend,
        }
        self._pool = httpcore.ConnectionPool(**options) if proxy is None else _through(proxy, options)

    @property
    def round_trip_s(self) -> float:
        return self._backend.round_trip_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        url = request.url
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        self._backend.tunnels = url.scheme == "https"
        for each in filter(_has_moved, self._backend.sockets):
            _break(each)
        with _errors_of_httpx():
            try:
                answer = self._answer(sent)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
                if not self._backend.deadline.before_proxy:
                    raise
                # httpcore's pool takes the cause from an error that it passes on.
                late = TimeoutError(str(error)) if isinstance(error, httpcore.TimeoutException) else error
                raise httpcore.ProxyError(str(error)) from late
        assert isinstance(answer.stream, Iterable)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer, self._backend))

    def abort(self) -> None:
        """Break the connections, and with them requests in progress. May be called from any thread."""
        for each in self._backend.sockets:
            _break(each)

    def close(self) -> None:
        self._pool.close()

    def _answer(self, request: httpcore.Request) -> httpcore.Response:
        exchange = self._backend.deadline
        try:
            return self._pool.handle_request(request)
        except (httpcore.NetworkError, httpcore.ProtocolError):
            if exchange.connected or not exchange.nothing_read:
                raise
            return self._pool.handle_request(request)  # the server was just closing the kept connection


def peer_certificate(url: httpx.URL, *, proxy: Proxy | None, deadline: Deadline) -> bytes | None:
    """Return the certificate that the server of `url` presents (DER), unverified; None if there is none.

    Only for a message about a certificate that was rejected: no request is sent to the server.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    found: list[bytes | None] = []

    def stop(certificate: bytes | None) -> None:
        found.append(certificate)
        raise httpcore.ConnectError("the certificate was read")

    connections = Connections(trust=context, proxy=proxy, deadline=deadline, on_secured=stop)
    with contextlib.closing(connections), contextlib.suppress(httpx.TransportError, OSError):
        connections.handle_request(httpx.Request("GET", url))
    return found[0] if found else None


def _through(proxy: Proxy, options: dict[str, Any]) -> httpcore.HTTPProxy:
    login = None if proxy.login is None else (proxy.login[0].encode(), proxy.login[1].encode())
    trust = public_trust() if proxy.scheme == "https" else None
    url = httpcore.URL(scheme=proxy.scheme.encode(), host=proxy.host.encode(), port=proxy.port, target="/")
    return httpcore.HTTPProxy(url, proxy_auth=login, proxy_ssl_context=trust, **options)


class _Backend(httpcore.NetworkBackend):
    """Connects by TCP, within the deadline."""

    def __init__(self, proxy: Proxy | None, deadline: Deadline, on_secured: OnSecured | None) -> None:
        self.deadline = deadline
        self.round_trip_s = 0.0
        self.tunnels = False
        """Whether a connection through the proxy is a tunnel to the server: it is for https."""
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._proxy = proxy
        self._on_secured = on_secured
        self._system = httpcore.SyncBackend()
        self._session: ssl.SSLSession | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self.deadline.before_proxy = self._proxy is not None
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in _addresses(host, port):
            began = self.deadline.monotonic()
            try:
                stream = self._system.connect_tcp(
                    address, port, timeout=self.deadline.within(timeout), socket_options=_OPTIONS
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            took = self.deadline.monotonic() - began
            self.round_trip_s = min(took, self.round_trip_s or took)
            self.deadline.connected = True
            secures_proxy = self._proxy is not None and self._proxy.scheme == "https"
            self.deadline.before_proxy &= secures_proxy or self.tunnels
            return _Stream(stream, self, secures_proxy=secures_proxy)
        raise failed

    def secure(
        self, stream: httpcore.NetworkStream, context: ssl.SSLContext, name: str | None, timeout: float | None
    ) -> httpcore.NetworkStream:
        """Do the server's TLS handshake."""
        self.deadline.before_proxy = False
        if (session := self._session) is not None:
            context = cast(ssl.SSLContext, _Resuming(context, session))
            self._session = None  # a session that fails is not tried again
        secure = stream.start_tls(context, name, self.deadline.within(timeout))
        if self._on_secured is not None:
            try:
                self._on_secured(secure.get_extra_info("ssl_object").getpeercert(True))
            except BaseException:
                secure.close()
                raise
        return _Stream(secure, self)

    def secure_proxy(
        self, stream: httpcore.NetworkStream, context: ssl.SSLContext, name: str | None, timeout: float | None
    ) -> httpcore.NetworkStream:
        """Do the proxy's TLS handshake."""
        secure = stream.start_tls(context, name, self.deadline.within(timeout))
        self.deadline.before_proxy = self.tunnels
        return _Stream(secure, self)

    @property
    def sockets(self) -> list[socket.socket]:
        """Return those of open connections."""
        return [each for each in self._sockets if each.fileno() >= 0]

    def add(self, used: socket.socket) -> None:
        with self._lock:
            self._sockets = [*self.sockets, used]

    def remember_session(self, used: object) -> None:
        """Keep the TLS session for the next handshake; TLS within the TLS of a proxy cannot resume."""
        if isinstance(used, ssl.SSLSocket) and (self._proxy is None or self._proxy.scheme != "https"):
            self._session = used.session


def _has_moved(used: socket.socket) -> bool:
    """Return whether this device would reach the other side from another address than it did."""
    try:
        with socket.socket(used.family, socket.SOCK_DGRAM) as probe:
            probe.connect(used.getpeername())
            return bool(probe.getsockname()[0] != used.getsockname()[0])
    except OSError:
        return True


def _break(used: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not SSLSocket's own shutdown, which would end TLS under a thread that uses it.
        socket.socket.shutdown(used, socket.SHUT_RDWR)


class _Resuming:
    """As much of a TLS context as a client's handshake needs, which resumes a session."""

    def __init__(self, context: ssl.SSLContext, session: ssl.SSLSession) -> None:
        self._context = context
        self._session = session

    def wrap_socket(self, sock: socket.socket, server_hostname: str | None = None) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_hostname=server_hostname, session=self._session)


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends with the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, backend: _Backend, *, secures_proxy: bool = False) -> None:
        self._stream = stream
        self._deadline = backend.deadline
        backend.add(stream.get_extra_info("socket"))
        self._secure = backend.secure_proxy if secures_proxy else backend.secure

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._deadline.within(timeout))
        self._deadline.count_read(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _PIECE):
            if (throttle := self._deadline.throttle) is not None:
                throttle.take(len(buffer[at : at + _PIECE]))
            self._stream.write(buffer[at : at + _PIECE], self._deadline.within(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return self._secure(self._stream, ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Body(httpx.SyncByteStream):
    """An answer's body, its errors those of httpx."""

    def __init__(self, answer: httpcore.Response, backend: _Backend) -> None:
        self._answer = answer
        self._backend = backend

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._answer.stream, Iterable)
        with _errors_of_httpx():
            yield from self._answer.stream

    def close(self) -> None:
        self._backend.remember_session(self._answer.extensions["network_stream"].get_extra_info("socket"))
        self._answer.close()


@contextlib.contextmanager
def _errors_of_httpx() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException(str(error)) from error
    except httpcore.ProxyError as error:
        raise httpx.ProxyError(str(error)) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise httpx.TransportError(str(error)) from error


def _addresses(host: str, port: int) -> Iterator[str]:
    """Yield the addresses of a name, with their zone where they have one. Raises httpcore.ConnectError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    for family, _, _, _, place in found:
        zone = f"%{place[-1]!r}" if family == socket.AF_INET6 and place[-1] else ""
        yield f"{place[0]!s}{zone}"
