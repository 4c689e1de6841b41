"""What a handler returns: whole bodies, streams and problems, their media types and ETags."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.types import Send

from pisync_common.errors import PiSyncError
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_receiver.errors import (
    BadCursor,
    DatabaseLost,
    DeviceIdTaken,
    EnrollmentRefused,
    ErasuresFileUnusable,
    MissingExtra,
    Overloaded,
    Problem,
    QueryTooLong,
    StoreUnusable,
    TooManyStreams,
    UnknownCode,
    UnknownDevice,
    UnknownLearner,
    UnknownToken,
)

log = logging.getLogger(__name__)

JSON: Final = "application/json"
STORE_RETRY_AFTER: Final = 30
"""Seconds a caller is asked to wait when the database cannot be written: a person has to look first."""
_REVALIDATE: Final = (b"cache-control", b"private, no-cache")
"""A browser may keep an answer, and asks each time whether it still holds."""

Headers = tuple[tuple[bytes, bytes], ...]

encode = msgspec.json.Encoder(decimal_format="number").encode


class Disconnected(Exception):
    """The caller closed the connection, so there is no one left to answer."""


class Answer(msgspec.Struct, array_like=True, kw_only=True):
    """A whole body. A msgspec struct, because each request makes one."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Headers = ()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A body of unknown length, sent a chunk at a time as fast as the caller reads it.

    `send` raises Disconnected when the caller has gone, so that no further chunk is made for it. A stream
    has to be sent: that frees what it holds.
    """

    chunks: AsyncGenerator[bytes, None]
    gone: Callable[[], Awaitable[None]]
    """Returns when the caller has gone away."""
    done: Callable[[], None] = lambda: None
    """Called at the end, however it ends."""
    content_type: str
    headers: Headers = ()
    status: int = 200

    async def send(self, send: Send, extra: Headers, *, with_body: bool) -> None:
        head = [(b"content-type", self.content_type.encode()), *extra, *self.headers]
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": head})
            if with_body:
                await self._send_chunks(send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.done()

    async def _send_chunks(self, send: Send) -> None:
        gone = asyncio.ensure_future(self.gone())
        try:
            async for chunk in self.chunks:
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if gone.done():
                    raise Disconnected
        finally:
            gone.cancel()
            await self.chunks.aclose()


Reply = Answer | Stream


def json_answer(value: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """Return `value` (a Struct, dataclass or builtin) as JSON."""
    return Answer(status=status, body=encode(value), headers=headers)


def with_etag(answer: Answer, if_none_match: bytes | None) -> Answer:
    """Add the ETag of the content; return 304 to a caller that has it (RFC 9110, sections 8.8.3 and 13.1.2).

    An ETag is made of the content alone, so it holds on every receiver and after every restart.
    """
    content = hashlib.blake2b(answer.body, digest_size=16)
    for name, value in answer.headers:
        content.update(b"\0%b\0%b" % (name, value))
    etag = b'"%b"' % content.hexdigest().encode()
    kept = any(name == b"cache-control" for name, _ in answer.headers)
    headers = (*answer.headers, (b"etag", etag), *(() if kept else (_REVALIDATE,)))
    if if_none_match is not None and _matches(if_none_match, etag):
        return Answer(status=304, headers=headers)
    return Answer(status=answer.status, body=answer.body, content_type=answer.content_type, headers=headers)


def _matches(given: bytes, etag: bytes) -> bool:
    """Compare weakly, as gateways that compress weaken ETags."""
    return given.strip() == b"*" or any(part.strip().removeprefix(b"W/") == etag for part in given.split(b","))


def choose(accept: bytes | None, offered: Sequence[str]) -> str:
    """Return the media type the caller prefers (RFC 9110, section 12.5.1), the first of equals. Raises Problem 406."""
    if accept is None:
        return offered[0]
    wanted = [_range(part) for part in accept.decode("latin-1").split(",") if part.strip()]
    best = max(offered, key=lambda offer: _quality(offer, wanted))
    if wanted and _quality(best, wanted) <= 0:
        raise Problem(406, "not_acceptable", f"not acceptable; available as: {', '.join(offered)}")
    return best


def _range(text: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return media, float(value)
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(offer: str, wanted: Sequence[tuple[str, float]]) -> float:
    """Return the weight of the most specific range that fits."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for media, weight in wanted:
            if media == pattern:
                return weight
    return 0.0


# Problems: one shape for every error on the wire, `application/problem+json` (RFC 9457).


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong (RFC 9457). `type` is stable; `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


def problem_answer(error: Exception, request_id: str) -> Answer:
    """Return the answer for anything that was raised while a request was handled."""
    problem = as_problem(error)
    body = ProblemBody(
        type=problem_type(problem.problem_code),
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        request_id=request_id,
    )
    return Answer(
        status=problem.status,
        body=encode(body),
        content_type=CONTENT_TYPE,
        headers=tuple((name.encode(), value.encode()) for name, value in problem.headers.items()),
    )


def as_problem(error: Exception) -> Problem:
    """Return the problem an exception stands for. An unexpected one becomes 500 and is logged with its trace."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem(503, error.code, str(error), headers=_retry_after(error.retry_after))
        case QueryTooLong():
            return Problem(503, error.code, str(error), headers=_retry_after(STORE_RETRY_AFTER))
        case StoreUnusable():
            if not isinstance(error, DatabaseLost):  # logged once, by the store
                log.error("the store cannot be used: %s", error)
            # The commit may have been made even though its confirmation was lost.
            detail = (
                "the receiver cannot store or read now; do not take this as stored, and send it again later; "
                "the receiver's log says why"
            )
            return Problem(503, error.code, detail, headers=_retry_after(STORE_RETRY_AFTER))
        case BadCursor():
            return Problem(400, "invalid_parameter", "cursor: not from a page of this query; follow the Link header")
        case EnrollmentRefused():
            return Problem(403, error.code, str(error))
        case MissingExtra():
            return Problem(501, error.code, str(error))
        case UnknownToken() | UnknownCode() | UnknownDevice() | UnknownLearner():
            return Problem(404, error.code, str(error))
        case ErasuresFileUnusable():
            log.error("%s", error)
            return Problem(503, error.code, str(error), headers=_retry_after(STORE_RETRY_AFTER))
        case DeviceIdTaken() | TooManyStreams():
            return Problem(409, error.code, str(error))
        case PiSyncError():
            log.error("an error without a problem of its own", exc_info=error)
        case _:
            log.error("an unexpected error", exc_info=error)
    return Problem(500, "internal_error", "the receiver failed; its log names the reason under this request_id")


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
