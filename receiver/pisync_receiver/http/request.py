"""One request as a handler sees it, the parts of the receiver it works with, and its body.

Bodies are bounded before and after decompression, in bytes and in time. However slowly or cleverly callers send, the
receiver holds at most `BodyLimits.encoded` bytes for each request, `share` bytes for each device and `held` bytes for
all together. Callers without a token share one share.
"""

import asyncio
import importlib
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.types import Receive, Scope

from pisync_common.limits import BODY_BYTES, DECODED_BYTES, MIB
from pisync_common.wire import RECEIVER_HEADER, SYNC_HEADER
from pisync_receiver.cache import Cache
from pisync_receiver.domain.fleet import Criteria
from pisync_receiver.domain.records import Page
from pisync_receiver.domain.submissions import SyncAsked
from pisync_receiver.erasing import Eraser
from pisync_receiver.errors import Overloaded, Problem
from pisync_receiver.http import params
from pisync_receiver.http.auth import NO_CALLER, Caller, TokenDirectory
from pisync_receiver.http.forwarded import Networks, client_address, is_loopback_host, says_https
from pisync_receiver.http.oidc import IdentityProvider
from pisync_receiver.http.responses import Answer, Disconnected, Headers, json_answer
from pisync_receiver.http.sessions import Session, Sessions
from pisync_receiver.intake import Intake
from pisync_receiver.metrics import Metrics
from pisync_receiver.store import Store

T = TypeVar("T")

_JSON: Final = b"application/json"
_FORM: Final = b"application/x-www-form-urlencoded"
_FORM_FIELDS: Final = 1_000
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_ROOM_AFTER_S: Final = 10
"""Seconds a caller is asked to wait until other bodies, or its own, have arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyLimits:
    """Bytes and seconds one body may take, and bytes that unfinished bodies may hold: a device's, and all together."""

    encoded: int = BODY_BYTES
    decoded: int = DECODED_BYTES
    seconds: float = 120.0
    share: int = 8 * MIB
    held: int = 64 * MIB


class _Decompressor(Protocol):
    """What zlib's and zstd's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class BodyReader:
    """Reads bodies within `limits`; one for the whole app, because it counts what all requests hold."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self.codings = {b"gzip": _gzip, **_zstd()}
        self._held = 0
        self._shares: dict[str | None, int] = {}

    async def json(
        self, headers: Mapping[bytes, bytes], receive: Receive, device_id: str | None = None, *, kind: bytes = _JSON
    ) -> bytes:
        """Return the decoded body of a JSON request that `device_id` sends, or of another `kind`. Raises Problem 400,
        408, 413, 415 or 429, or Overloaded."""
        coding = self._check_headers(headers, kind)
        # A body that has arrived needs no timer: setting one takes 5% of a small request.
        message = await receive() if _has_arrived(receive) else await self._first(receive)
        if message["type"] == "http.disconnect":
            raise Disconnected
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(receive, body, device_id)
        if len(body) > self.limits.encoded:
            raise self._too_large()
        return decompress(body, coding, self.limits.decoded) if coding else body

    def _check_headers(self, headers: Mapping[bytes, bytes], kind: bytes) -> Callable[[], _Decompressor] | None:
        given = headers.get(b"content-type", b"")
        if given != kind and given.partition(b";")[0].strip().lower() != kind:
            what = "JSON" if kind == _JSON else "a form"
            raise Problem(415, "unsupported_media_type", f"send {what}, with Content-Type: {kind.decode()}")
        if int(headers.get(b"content-length", b"0")) > self.limits.encoded:
            raise self._too_large()
        name = headers.get(b"content-encoding")
        if name is None or (name := name.strip().lower()) == b"identity":
            return None
        if name not in self.codings:
            known = ", ".join(coding.decode() for coding in self.codings)
            detail = f"unknown Content-Encoding; send the body as it is, or as: {known}"
            raise Problem(415, "unsupported_encoding", detail, headers={"Accept-Encoding": known})
        return self.codings[name]

    async def _first(self, receive: Receive) -> Any:
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await receive()
        except TimeoutError:
            raise self._too_slow() from None

    async def _rest(self, receive: Receive, first: bytes, device_id: str | None) -> bytes:
        parts, size = [first], len(first)
        self._hold(device_id, size)
        try:
            async with asyncio.timeout(self.limits.seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    part = message.get("body", b"")
                    more = message.get("more_body", False)
                    parts.append(part)
                    size += len(part)
                    self._hold(device_id, len(part))
                    self._check_room(device_id, size)
        except TimeoutError:
            raise self._too_slow() from None
        finally:
            self._hold(device_id, -size)
        return b"".join(parts)

    def _hold(self, device_id: str | None, size: int) -> None:
        self._held += size
        self._shares[device_id] = self._shares.get(device_id, 0) + size
        if not self._shares[device_id]:
            del self._shares[device_id]

    def _check_room(self, device_id: str | None, size: int) -> None:
        if size > self.limits.encoded:
            raise self._too_large()
        if self._shares[device_id] > self.limits.share:
            detail = "too many bodies of one caller are being received at once; nothing was stored; send one at a time"
            raise Problem(429, "rate_limited", detail, headers={"Retry-After": str(_ROOM_AFTER_S)})
        if self._held > self.limits.held:
            detail = "too many bodies are being received at once; nothing was stored"
            raise Overloaded(detail, retry_after=_ROOM_AFTER_S)

    def _too_large(self) -> Problem:
        limit = f"{self.limits.encoded:,} bytes (compressed)"
        detail = f"request body too large: the limit is {limit}; send fewer events at once"
        return Problem(413, "body_too_large", detail)

    def _too_slow(self) -> Problem:
        detail = f"the body did not arrive within {self.limits.seconds:g} s; send fewer events at once"
        return Problem(408, "body_too_slow", detail, headers={"Connection": "close"})


def decompress(body: bytes, start: Callable[[], _Decompressor], limit: int) -> bytes:
    """`body` decoded; never holds more than `limit` + 1 bytes of it. Raises Problem 400 or 413."""
    machine = start()
    try:
        plain = machine.decompress(body, limit + 1)
    except Exception as error:  # each library has its own error
        raise Problem(400, "bad_encoding", "the body is not what its Content-Encoding says") from error
    if len(plain) > limit:
        raise Problem(
            413,
            "body_too_large",
            f"request body too large: the limit is {limit:,} bytes (decompressed); send fewer events at once",
        )
    if not machine.eof:
        raise Problem(400, "bad_encoding", "the compressed body is cut short")
    if machine.unused_data:
        # Following members one by one would let one body ask for 50,000 decompressors.
        raise Problem(400, "bad_encoding", "there is more after the end of the compressed body; send one member")
    return plain


def _has_arrived(receive: Receive) -> bool:
    """Whether uvicorn holds the whole body already."""
    return getattr(getattr(receive, "__self__", None), "more_body", True) is False


def _gzip() -> _Decompressor:
    return zlib.decompressobj(_GZIP_WINDOW)


def _zstd() -> dict[bytes, Callable[[], _Decompressor]]:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return {b"zstd": importlib.import_module(name).ZstdDecompressor}
        except ImportError:
            continue
    return {}


PAGE_ROWS: Final = 100
LIMIT: Final = params.whole(
    "limit", "Rows of one page, or of an export (all unless given)", default=PAGE_ROWS, low=1, high=1000
)
LOCAL: Final = "pisync.local"
"""The key in an ASGI scope that marks a request of the receiver's owner; callers cannot set it."""
CURSOR: Final = params.text("cursor", "Where the page begins, as the Link header of the page before says")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Answer).decode


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of one receiver. Times are milliseconds since 1970."""

    store: Store
    intake: Intake
    tokens: TokenDirectory
    sessions: Sessions
    identity_provider: IdentityProvider | None
    """Signs people in with an organisation's own accounts."""
    bodies: BodyReader
    cache: Cache
    metrics: Metrics
    documents: tuple[Answer, Answer]
    """The OpenAPI document, and the page that shows it."""
    ready: Callable[[], Awaitable[None]]
    """Returns after a durable write. Raises StoreUnusable or Overloaded."""
    census: Callable[[], Awaitable[None]]
    """Brings the gauges of the fleet up to date."""
    eraser: Eraser
    exports: asyncio.Semaphore
    """Bounds the exports under way."""
    now_ms: Callable[[], int]
    silent_after_ms: int
    """When a device counts as silent, where its site has no time of its own."""
    announcement: Headers = ()
    """In answers to devices: the receiver's new address, if it has one."""
    trusted_proxies: Networks = ()
    """Gateways that may name the caller's address and say that it came by HTTPS."""
    public_url: str | None = None
    """The address at which people and devices reach this receiver, if it is known."""

    def criteria(self) -> Criteria:
        """Return what states are judged by now."""
        return Criteria(now_ms=self.now_ms(), silent_after_ms=self.silent_after_ms)

    def for_device(self, outcome: T | SyncAsked[T]) -> tuple[T, Headers]:
        """Return what became of a device's submission, and the headers of the answer to the device."""
        if isinstance(outcome, SyncAsked):
            return outcome.outcome, (*self.announcement, (SYNC_HEADER.lower().encode(), b"now"))
        return outcome, self.announcement


def announcement(url: str | None) -> Headers:
    """Return the header that asks devices to use another address."""
    return () if url is None else ((RECEIVER_HEADER.lower().encode(), url.encode()),)


class Request:
    """One call. The edge makes it, the router says which route and caller it has, the handler answers it."""

    __slots__ = (
        "_address",
        "_form",
        "_receive",
        "caller",
        "csrf",
        "exporting",
        "following",
        "headers",
        "id",
        "local",
        "path",
        "query",
        "route",
        "scope",
        "services",
        "session",
        "takes_body",
        "trace",
    )

    def __init__(self, scope: Scope, receive: Receive, request_id: str, services: Services) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id
        self.local: bool = LOCAL in scope
        """Whether it came through the receiver's own Unix socket, which only its owner can open."""
        self.trace: str | None = None
        """The trace it belongs to, if its sender names one."""
        self.services = services
        self.caller: Caller = NO_CALLER
        self.route: str | None = None
        """The template of its path; None where no route fits."""
        self.path: dict[str, str] = {}
        """The parameters in its path."""
        self.query: dict[str, Any] = {}
        """The value of each of the route's query parameters."""
        self.exporting = False
        """Whether its answer is a page of an export."""
        self.following: str | None = None
        """The cursor behind the page that was answered; None at the end."""
        self.takes_body = False
        """Whether its route takes a body."""
        self.session: Session | None = None
        """Of a page: the session that its cookie names."""
        self.csrf = ""
        """Of a page: the value of the field `csrf` in its forms."""
        self._receive = receive
        self._address: str | None = None
        self._form: dict[str, str] | None = None

    @property
    def address(self) -> str | None:
        """The caller's address, as a trusted gateway names it; None through the receiver's own Unix socket."""
        if self._address is None and (client := self.scope["client"]) is not None:
            trusted = self.services.trusted_proxies
            self._address = client_address(client[0], self.headers, trusted) if trusted else client[0]
        return self._address

    @property
    def host(self) -> str:
        """The host, and the port if one is named, that the caller asked."""
        return self.headers.get(b"host", b"").decode("latin-1")

    @property
    def secure(self) -> bool:
        """Whether the caller's browser uses HTTPS: a trusted gateway says so, or the receiver's public address does."""
        client = self.scope["client"]
        if client is not None and says_https(client[0], self.headers, self.services.trusted_proxies):
            return True
        return (self.services.public_url or "").startswith("https:") and not is_loopback_host(self.host)

    async def form(self) -> dict[str, str]:
        """Return the fields of a page's form, the last of equal names. Raises as `body`."""
        if self._form is None:
            body = await self.services.bodies.json(self.headers, self._receive, kind=_FORM)
            try:
                pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FORM_FIELDS)
            except ValueError as error:
                raise Problem(400, "invalid_request", "the form is not UTF-8, or has too many fields") from error
            self._form = dict(pairs)
        return self._form

    async def body(self) -> bytes:
        """Return the decoded JSON body. Raises Problem 400, 408, 413, 415 or 429, or Overloaded."""
        return await self.services.bodies.json(self.headers, self._receive, self.caller.device_id)

    def gives(self, name: str) -> bool:
        """Return whether a query parameter was given."""
        return any(given == name for given, _ in parse_qsl(self.scope["query_string"].decode()))

    def public_url(self) -> str | None:
        """Return the address at which people and devices reach this receiver, if it is known."""
        if self.services.public_url is not None or self.local or not self.host:
            return self.services.public_url
        return f"{'https' if self.secure else self.scope['scheme']}://{self.host}"

    async def gone(self) -> None:
        """Return when the caller has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def cached(self, make: Callable[["Request"], Awaitable[Answer]], *variant: str) -> Answer:
        """Return a fleet-wide answer, which many ask for, from the cache for a few seconds.

        `variant` says what it depends on beside the address and the caller's sites. `Cache-Control: no-cache` asks for
        the newest, as `pisync-receiver` does.
        """

        if self.exporting:
            return await make(self)

        async def packed() -> bytes:
            return _pack(await make(self))

        address = (self.scope["path"], self.scope["query_string"].decode("latin-1"))
        key = "\0".join((*variant, *address, *(self.caller.sites or ())))
        fresh = b"no-cache" in self.headers.get(b"cache-control", b"")
        return _unpack(await self.services.cache.answer(key, packed, fresh=fresh))

    def page(self, page: Page[Any]) -> Answer:
        """Return the page's rows as JSON, with a Link header to the next page unless it is the last, and the number of
        all rows where that is known."""
        self.following = page.next
        headers: Headers = () if page.next is None else ((b"link", self._next_link(page.next).encode()),)
        if page.total is not None:
            headers = (*headers, (b"pisync-total", b"%d" % page.total))
        return json_answer(page.rows, headers=headers)

    def _next_link(self, cursor: str) -> str:
        """Return a link relative to the host, which a gateway may have renamed."""
        given = parse_qsl(self.scope["query_string"].decode(), keep_blank_values=True)
        query = urlencode([pair for pair in given if pair[0] != "cursor"] + [("cursor", cursor)])
        return f'<{self.scope["raw_path"].decode("latin-1")}?{query}>; rel="next"'
