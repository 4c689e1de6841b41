"""HTTP to the receiver: one connection, kept alive through a run. The only module that knows httpx.

- HTTP/1.1; redirects are not followed, cookies are not kept.
- Proxies are taken from the environment (`HTTPS_PROXY`, `NO_PROXY`, …), as schools set them; never for this machine
  itself. Nothing else of the environment is used.
- A named CA file is the only authority trusted; without one it is those of the system, or else httpx's own.
- Sent bytes are counted as they are handed to the connection, request line and headers included (TLS adds about 1%).
- Each request has a random nonce in its head, which the receiver echoes: no other answer is believed, such as an old
  one from a proxy's cache.
- An answer is read up to `ANSWER_BYTES` and for `ANSWER_S` seconds. `answers` says what it means.

Errors are DeliveryErrors; no message, and no log line, contains the token.
"""

import json
import secrets
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import httpx

import pisync_agent.answers as answers
from pisync_agent.answers import Answer
from pisync_agent.clock import Clock
from pisync_agent.errors import DeliveryError
from pisync_agent.identity import Identity, checked_url, is_loopback
from pisync_common import __version__
from pisync_common.errors import RuleError
from pisync_common.limits import KIB, MIB
from pisync_common.models import Receipt
from pisync_common.wire import NONCE_HEADER

AGENT: Final = f"pisync/{__version__}"

CONNECT_S: Final = 10.0
SILENCE_S: Final = 30.0
"""How long the connection may stand still while sending or waiting for an answer."""
ANSWER_S: Final = 60.0
ANSWER_BYTES: Final = 1 * MIB

_CHUNK_BYTES: Final = 16 * KIB
_TIMEOUTS: Final = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
# Shorter than a server's idle time-out (uvicorn: 5 s), so that a request rarely meets a connection being closed.
_LIMITS: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=4.0)

OnSent = Callable[[int], None]


class Wire:
    """POST to one receiver. The first request opens the connection; after `close` it may be used again."""

    def __init__(
        self, url: str, *, ca_file: str | None, clock: Clock, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = httpx.URL(url)
        self._ca_file = ca_file
        self._clock = clock
        self._transport = transport
        self._http: httpx.Client | None = None
        self.bytes_sent = 0

    def post(self, path: str, body: bytes, headers: Mapping[str, str], on_sent: OnSent | None = None) -> Answer:
        """Return the answer, whatever its status. Raises Unreachable without an answer, or if it is too long."""
        try:
            http = self._opened()
            counted = _Counted(self, body, on_sent)
            nonce = secrets.token_hex(8)
            sized = {"Content-Type": "application/json", "Content-Length": str(len(body)), NONCE_HEADER: nonce}
            request = http.build_request("POST", f"{self._url}{path}", headers={**sized, **headers}, content=counted)
            counted.head = head_size(request)
            response = http.send(request, stream=True)
            try:
                return self._read(response, nonce)
            finally:
                response.close()
                http.cookies.clear()
        except httpx.TimeoutException as error:
            raise answers.timed_out(self._url.host) from error
        except (httpx.TransportError, OSError, UnicodeError) as error:
            raise answers.no_answer(error, self._url.host, clock_synced=self._clock.stamp().clock_synced) from error

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def _opened(self) -> httpx.Client:
        if self._http is None:
            try:
                self._http = httpx.Client(
                    verify=self._trust(),
                    transport=self._transport,
                    trust_env=not is_loopback(self._url.host),
                    timeout=_TIMEOUTS,
                    limits=_LIMITS,
                    headers={"User-Agent": AGENT, "Accept": "application/json", "Accept-Encoding": "identity"},
                )
            except (httpx.InvalidURL, ImportError, ValueError) as error:
                raise answers.bad_proxy(error) from error
        return self._http

    def _trust(self) -> ssl.SSLContext:
        if self._url.scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loads no authorities: that would cost time for nothing
        if self._ca_file is not None:
            return private_trust(self._ca_file)
        return ssl.create_default_context() if _system_has_authorities() else httpx.create_ssl_context(trust_env=False)

    def _read(self, response: httpx.Response, nonce: str) -> Answer:
        until = self._clock.monotonic() + ANSWER_S
        body = bytearray()
        assert isinstance(response.stream, httpx.SyncByteStream)
        for part in response.stream:  # raw: nothing is decompressed
            body += part
            if len(body) > ANSWER_BYTES:
                raise answers.portal(f"it ({response.status_code}) is larger than any answer of the receiver")
            if self._clock.monotonic() > until:
                raise answers.timed_out(self._url.host)
        headers = {name.lower(): value for name, value in response.headers.items()}
        own = headers.get(NONCE_HEADER.lower()) == nonce
        return Answer(status=response.status_code, headers=headers, body=bytes(body), own=own)


class ReceiverClient:
    """What the agent asks of its receiver. Not thread-safe."""

    def __init__(self, identity: Identity, *, clock: Clock, transport: httpx.BaseTransport | None = None) -> None:
        self.identity = identity
        self._wire = Wire(identity.url, ca_file=identity.ca_file, clock=clock, transport=transport)

    @property
    def device_id(self) -> str:
        return self.identity.device_id

    @property
    def bytes_sent(self) -> int:
        """Bytes of requests handed to connections so far, headers included."""
        return self._wire.bytes_sent

    def post_batch(self, packed: bytes, *, stream: str, on_sent: OnSent | None = None) -> Receipt:
        """Deliver a gzipped batch and return its receipt. `on_sent` is called with the bytes of each chunk sent."""
        answer = self._post("/api/events", packed, {"Content-Encoding": "gzip"}, on_sent)
        with _masked(self.identity.token):
            return answers.receipt_from(answer, device_id=self.device_id, stream=stream)

    def post_sync_event(self, body: bytes, *, key: str) -> None:
        """Deliver a sync event; repeated with the same `key` it is stored once."""
        answer = self._post("/api/sync-event", body, {"Idempotency-Key": key})
        with _masked(self.identity.token):
            answers.check_sync_event(answer, device_id=self.device_id)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: bytes, headers: Mapping[str, str], on_sent: OnSent | None = None) -> Answer:
        return self._wire.post(path, body, {"Authorization": f"Bearer {self.identity.token}", **headers}, on_sent)


def enroll(
    url: str,
    code: str,
    *,
    device_id: str | None = None,
    insecure_http: bool = False,
    ca_file: str | None = None,
    clock: Clock,
    transport: httpx.BaseTransport | None = None,
) -> Identity:
    """Exchange a code for an identity. Raises RuleError for an unusable address, DeliveryError otherwise."""
    url = checked_url(url, insecure_http=insecure_http)
    ca_file = None if ca_file is None else str(Path(ca_file).expanduser().absolute())
    wanted = {"code": code} | ({} if device_id is None else {"device_id": device_id})
    wire = Wire(url, ca_file=ca_file, clock=clock, transport=transport)
    try:
        with _masked(code):
            given_id, token = answers.enrolled_from(wire.post("/api/enroll", json.dumps(wanted).encode(), {}))
    except DeliveryError as error:
        error.args = (str(error).replace(answers.RETRIED, "enrollment is not retried automatically: enroll again"),)
        raise
    finally:
        wire.close()
    try:
        return Identity(url=url, device_id=given_id, token=token, insecure_http=insecure_http, ca_file=ca_file)
    except RuleError:
        raise answers.portal("the answer is not an identity") from None


def private_trust(ca_file: str) -> ssl.SSLContext:
    """Trust the authorities in one PEM file and no others. Raises Unreachable (tls) if the file cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise answers.bad_ca_file(ca_file, error) from error


def head_size(request: httpx.Request) -> int:
    """Return the bytes of a request's line and headers on the wire."""
    line = len(request.method) + 1 + len(request.url.raw_path) + len(" HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + 4 for name, value in request.headers.raw) + 2


class _Counted(Iterable[bytes]):
    """A body in chunks. A chunk counts as sent when the next one is asked for."""

    def __init__(self, wire: Wire, body: bytes, on_sent: OnSent | None) -> None:
        self.head = 0
        """Bytes sent before the body."""
        self._wire = wire
        self._body = body
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        self._count(self.head)
        for at in range(0, len(self._body), _CHUNK_BYTES):
            chunk = self._body[at : at + _CHUNK_BYTES]
            yield chunk
            self._count(len(chunk))

    def _count(self, number: int) -> None:
        self._wire.bytes_sent += number
        if self._on_sent is not None:
            self._on_sent(number)


@contextmanager
def _masked(secret: str) -> Iterator[None]:
    """Remove a secret from the text of a DeliveryError that passes: the answer may have contained it."""
    try:
        yield
    except DeliveryError as error:
        error.args = tuple(str(each).replace(secret, "…") for each in error.args)
        raise


def _system_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    return any(Path(place).exists() for place in (paths.cafile, paths.capath) if place)
