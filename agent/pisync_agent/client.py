"""HTTP to the receiver: a connection, kept from one request and one run to the next.

Two threads may each make a request at the same time.

- HTTP/1.1; redirects are not followed, cookies are not kept.
- Proxies are taken from the environment (see `network.proxies`). Nothing else of the environment is used.
- A named CA file is the only authority trusted; without one it is those of the system (see `network.authorities`).
- Sent bytes are counted as they are handed to the connection, request line and headers included (TLS adds about 1%).
- Each request has a random nonce in its head, which the receiver echoes: no other answer is believed, such as an old
  one from a proxy's cache.
- A request ends within `ANSWER_S`, connecting and the whole answer included; a large body has more time to be sent,
  and its answer `ANSWER_S` from then on. An answer is read up to `ANSWER_BYTES`.
- `answers` says what an answer means, and `network.failures` what its absence means.

Errors are DeliveryErrors; no message, and no log line, contains the token.
"""

import json
import os
import secrets
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Final, Self

import httpx

import pisync_agent.answers as answers
import pisync_agent.network.failures as failures
from pisync_agent.answers import Answer
from pisync_agent.clock import RELEASED_MS, Clock
from pisync_agent.errors import DeliveryError, NotEnrolled
from pisync_agent.identity import Identity, bad_url, checked_url
from pisync_agent.network.authorities import no_trust, private_trust, public_trust
from pisync_agent.network.bodies import Body, OnSent, Transfer, head_size
from pisync_agent.network.certificates import read_certificate
from pisync_agent.network.connections import Connections, Deadline, peer_certificate
from pisync_agent.network.failures import Evidence
from pisync_agent.network.proxies import Proxy, proxy_for
from pisync_agent.network.sign_in import PROBE_S, sign_in_page
from pisync_agent.network.throttle import Throttle
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
SHORT_S: Final = 30.0
"""The same for a small request that is not worth waiting for long."""
SLOWEST_BYTES: Final = 2 * KIB
"""A body has a second more for each of these: the slowest link that is worth using."""
ANSWER_BYTES: Final = 1 * MIB

_PORTS: Final = {"http": 80, "https": 443}
_TIMEOUTS: Final = httpx.Timeout(SILENCE_S, connect=CONNECT_S)


class Wire:
    """POST to one receiver. The first request opens the connection; after `close` it may be used again."""

    def __init__(
        self,
        url: str,
        *,
        ca_file: str | None,
        clock: Clock,
        transport: httpx.BaseTransport | None = None,
        environ: Mapping[str, str] = os.environ,
        throttle: Throttle | None = None,
    ) -> None:
        self._address = url
        self._url = parsed_url(url)
        self._ca_file = ca_file
        self._clock = clock
        self._transport = transport
        self._environ = environ
        self._deadline = Deadline(clock.monotonic, throttle)
        self._http: httpx.Client | None = None
        self._connections: Connections | None = None
        self._proxy: Proxy | None = None
        self.known_ms = RELEASED_MS
        """A time that has passed for certain: a clock before it is wrong."""
        self.bytes_sent = 0
        self.transfer = Transfer()
        self._lock = threading.Lock()
        self._measured_until = 0.0
        self._under_way = 0
        """Requests being made."""

    def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        on_sent: OnSent | None = None,
        *,
        seconds: float | None = None,
    ) -> Answer:
        """Return the answer, whatever its status. Raises Unreachable without an answer, or if it is too long."""
        limit = ANSWER_S if seconds is None else seconds
        self._deadline.begin(limit + len(body) / SLOWEST_BYTES)

        def count(sent: int) -> None:
            self._count(sent)
            if on_sent is not None:
                on_sent(sent)

        sending = Body(body, count=count, at_end=lambda: self._deadline.shorten(limit), monotonic=self._clock.monotonic)
        with self._lock:
            self._under_way += 1
        try:
            http = self._opened()
            nonce = secrets.token_hex(8)
            sized = {"Content-Type": "application/json", "Content-Length": str(len(body)), NONCE_HEADER: nonce}
            request = http.build_request("POST", f"{self._url}{path}", headers={**sized, **headers}, content=sending)
            sending.head = head_size(request)
            response = http.send(request, stream=True)
            if on_sent is not None and sending.complete and response.is_success:  # a batch
                self._measure(sending)
            try:
                return self._read(response, nonce)
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise failures.timed_out(self._url.host) from error
        except httpx.ProxyError as error:
            raise failures.proxy_failed(error, str(self._proxy or "the proxy")) from error
        except (httpx.TransportError, OSError, UnicodeError) as error:
            port = self._url.port or _PORTS[self._url.scheme]
            raise failures.no_answer(error, self._url.host, port, self._evidence(error)) from error
        finally:
            with self._lock:
                self._under_way -= 1

    def abort(self) -> None:
        """Break the connection, and with it a request in progress. May be called from any thread."""
        if (connections := self._connections) is not None:
            connections.abort()

    def close(self) -> None:
        """Close the connection; TLS is resumed when the next request opens another."""
        if self._connections is not None:
            self._connections.close()

    def _count(self, sent: int) -> None:
        with self._lock:
            self.bytes_sent += sent

    def _opened(self) -> httpx.Client:
        with self._lock:
            if self._http is None:
                transport = self._transport
                if transport is None:
                    transport = self._connections = self._connected()
                self._http = httpx.Client(
                    transport=transport,
                    trust_env=False,
                    timeout=_TIMEOUTS,
                    headers={"User-Agent": AGENT, "Accept": "application/json", "Accept-Encoding": "identity"},
                )
                del self._http.headers["Connection"]  # HTTP/1.1 keeps it without being asked, and each byte counts
                self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
            return self._http

    def _connected(self) -> Connections:
        try:
            self._proxy = proxy_for(self._address, self._environ)
        except RuleError as error:
            raise failures.bad_proxy(error) from error
        return Connections(trust=self._trust(), proxy=self._proxy, deadline=self._deadline)

    def _trust(self) -> ssl.SSLContext:
        if self._url.scheme == "http":
            return no_trust()
        return public_trust() if self._ca_file is None else private_trust(self._ca_file)

    def _read(self, response: httpx.Response, nonce: str) -> Answer:
        body = bytearray()
        assert isinstance(response.stream, httpx.SyncByteStream)
        for part in response.stream:  # raw: httpx would decompress without a bound
            body += part
            if len(body) > ANSWER_BYTES:
                raise answers.too_large(response.status_code)
            if self._deadline.over:
                raise failures.timed_out(self._url.host)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return answers.read(response.status_code, headers, bytes(body), nonce=nonce, most=ANSWER_BYTES)

    def _measure(self, sending: Body) -> None:
        round_trip = self._connections.round_trip_s if self._connections is not None else 0.0
        with self._lock:
            now, before = self._clock.monotonic(), self._measured_until
            began = sending.began + round_trip if sending.began >= before else before
            self.transfer, self._measured_until = self.transfer.plus(sending.size, now - began), now

    def _evidence(self, error: BaseException) -> Evidence:
        """Return what helps to explain a failure of https. Sends nothing over the connection that failed."""
        facts = Evidence(now=self._clock.stamp(), known_ms=self.known_ms)
        if self._transport is not None or self._url.scheme == "http" or not failures.is_suspicious(error):
            return facts
        failed = failures.tls_failure(error)
        if failed is not None:
            self._forget_trust()
        if isinstance(failed, ssl.SSLCertVerificationError):
            self._deadline.begin(PROBE_S)
            der = peer_certificate(self._url, proxy=self._proxy, deadline=self._deadline)
            facts = replace(facts, certificate=None if der is None else read_certificate(der))
        if self._proxy is None:
            facts = replace(facts, sign_in=sign_in_page(self._url, agent=AGENT, deadline=self._deadline))
        return facts

    def _forget_trust(self) -> None:
        """Load the authorities again for the next request: they may have been renewed since.

        Not under another thread's request: the number of a socket that is closed may be another file's at once.
        """
        with self._lock:
            if self._under_way == 1:
                self.close()
                self._http = self._connections = None


def parsed_url(url: str) -> httpx.URL:
    """Return a receiver's address as it is used; raise RuleError if it cannot be."""
    try:
        parsed = httpx.URL(url)
        httpx.Request("POST", parsed)
    except (httpx.InvalidURL, ValueError) as error:
        raise bad_url(url) from error
    return parsed


class ReceiverClient:
    """What the agent asks of its receiver. Two threads may each make a request at the same time."""

    def __init__(
        self,
        identity: Identity,
        *,
        clock: Clock,
        transport: httpx.BaseTransport | None = None,
        environ: Mapping[str, str] = os.environ,
        throttle: Throttle | None = None,
    ) -> None:
        """Raises NotEnrolled if the identity's address cannot be used."""
        self.identity = identity
        self.announced: str | None = None
        """The address that the receiver asked this device to use, in its last answer."""
        self.sync_asked = False
        """Whether an answer asked for a sync; reset by the reader."""
        try:
            self._wire = Wire(
                identity.url,
                ca_file=identity.ca_file,
                clock=clock,
                transport=transport,
                environ=environ,
                throttle=throttle,
            )
        except RuleError as error:
            raise NotEnrolled(f"{error}; enroll this device again (everything recorded is kept)") from error

    @property
    def device_id(self) -> str:
        return self.identity.device_id

    @property
    def bytes_sent(self) -> int:
        """Bytes of requests handed to connections so far, headers included."""
        return self._wire.bytes_sent

    @property
    def transfer(self) -> Transfer:
        """What was sent so far, and the time it took."""
        return self._wire.transfer

    def learn_time(self, ms: int) -> None:
        """Take note of a time that has passed for certain: a clock before it is wrong."""
        self._wire.known_ms = max(self._wire.known_ms, ms)

    def post_batch(self, packed: bytes, *, stream: str, on_sent: OnSent | None = None) -> Receipt:
        """Deliver a gzipped batch and return its receipt. `on_sent` is called with the bytes of each chunk sent."""
        answer = self._post("/api/events", packed, {"Content-Encoding": "gzip"}, on_sent)
        with _masked(self.identity.token):
            return answers.receipt_from(answer, device_id=self.device_id, stream=stream)

    def post_sync_event(self, body: bytes, *, key: str) -> None:
        """Deliver a sync event; repeated with the same `key` it is stored once."""
        answer = self._post("/api/sync-event", body, {"Idempotency-Key": key}, seconds=min(SHORT_S, ANSWER_S))
        with _masked(self.identity.token):
            answers.check_sync_event(answer, device_id=self.device_id)

    def abort(self) -> None:
        """Break the connection, and with it a request in progress. May be called from any thread."""
        self._wire.abort()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        on_sent: OnSent | None = None,
        *,
        seconds: float | None = None,
    ) -> Answer:
        signed = {"Authorization": f"Bearer {self.identity.token}", **headers}
        answer = self._wire.post(path, body, signed, on_sent, seconds=seconds)
        self.announced = answers.announced(answer)
        self.sync_asked = self.sync_asked or answers.asks_for_sync(answer)
        return answer


def enroll(
    url: str,
    code: str,
    *,
    device_id: str | None = None,
    site: str | None = None,
    insecure_http: bool = False,
    ca_file: str | None = None,
    clock: Clock,
    transport: httpx.BaseTransport | None = None,
) -> Identity:
    """Exchange a code for an identity. Raises RuleError for an unusable address, DeliveryError otherwise."""
    url = checked_url(url, insecure_http=insecure_http)
    parsed_url(url)
    ca_file = None if ca_file is None else str(Path(ca_file).expanduser().absolute())
    wanted = {"code": code, "device_id": device_id, "site": site}
    body = json.dumps({name: value for name, value in wanted.items() if value is not None}).encode()
    wire = Wire(url, ca_file=ca_file, clock=clock, transport=transport)
    try:
        with _masked(code):
            given_id, token = answers.enrolled_from(wire.post("/api/enroll", body, {}))
    finally:
        wire.close()
    try:
        return Identity(url=url, device_id=given_id, token=token, insecure_http=insecure_http, ca_file=ca_file)
    except RuleError:
        raise answers.portal("the answer is not an identity") from None


@contextmanager
def _masked(secret: str) -> Iterator[None]:
    """Remove a secret from the text of a DeliveryError that passes: the answer may have contained it."""
    try:
        yield
    except DeliveryError as error:
        error.args = tuple(str(each).replace(secret, "…") for each in error.args)
        raise
