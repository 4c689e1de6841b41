"""Reading a request's body: bounded before and after decompression, in bytes and in time.

However slowly or cleverly callers send, the receiver holds at most `BodyLimits.encoded` bytes for each request, `share`
bytes for each device and `held` bytes for all together. Those who have shown no token have one share between them.
"""

import asyncio
import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from starlette.types import Receive

from pisync_common.limits import BODY_BYTES, DECODED_BYTES, MIB
from pisync_receiver.errors import Overloaded, Problem

_JSON: Final = b"application/json"
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_ROOM_AFTER_S: Final = 10
"""What a caller is asked to wait until others' bodies, or its own, have arrived."""


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

    async def json(self, headers: Mapping[bytes, bytes], receive: Receive, device_id: str | None = None) -> bytes:
        """The decoded body of a JSON request that `device_id` sends. Raises Problem 400, 408, 413, 415 or 429, or
        Overloaded."""
        coding = self._check_headers(headers)
        message = await self._receive(receive)
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(receive, body, device_id)
        if len(body) > self.limits.encoded:
            raise self._too_large()
        return decompress(body, coding, self.limits.decoded) if coding else body

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> Callable[[], _Decompressor] | None:
        kind = headers.get(b"content-type", b"")
        if kind != _JSON and kind.partition(b";")[0].strip().lower() != _JSON:
            raise Problem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        if int(headers.get(b"content-length", b"0")) > self.limits.encoded:
            raise self._too_large()
        name = headers.get(b"content-encoding")
        if name is None or (name := name.strip().lower()) == b"identity":
            return None
        if name not in self.codings:
            known = ", ".join(coding.decode() for coding in self.codings)
            detail = f"this Content-Encoding is not understood; send the body as it is, or as: {known}"
            raise Problem(415, "unsupported_encoding", detail, headers={"Accept-Encoding": known})
        return self.codings[name]

    async def _receive(self, receive: Receive) -> Any:
        try:
            async with asyncio.timeout(self.limits.seconds):
                return _connected(await receive())
        except TimeoutError:
            raise self._too_slow() from None

    async def _rest(self, receive: Receive, first: bytes, device_id: str | None) -> bytes:
        parts, size = [first], len(first)
        self._hold(device_id, size)
        try:
            async with asyncio.timeout(self.limits.seconds):
                more = True
                while more:
                    message = _connected(await receive())
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
        detail = f"a body may have {self.limits.encoded:,} bytes as it travels; send fewer events at once"
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
        raise Problem(413, "body_too_large", f"the body decodes to more than {limit:,} bytes; send fewer events")
    if not machine.eof:
        raise Problem(400, "bad_encoding", "the compressed body is cut short")
    if machine.unused_data:
        # Following members one by one would let one body ask for 50,000 decompressors.
        raise Problem(400, "bad_encoding", "there is more after the end of the compressed body; send one member")
    return plain


class Disconnected(Exception):
    """The caller went away while it was sending; there is nobody to answer."""


def _connected(message: Any) -> Any:
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message


def _gzip() -> _Decompressor:
    return zlib.decompressobj(_GZIP_WINDOW)


def _zstd() -> dict[bytes, Callable[[], _Decompressor]]:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return {b"zstd": importlib.import_module(name).ZstdDecompressor}
        except ImportError:
            continue
    return {}
