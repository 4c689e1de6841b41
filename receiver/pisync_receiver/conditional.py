"""GET with ETags: whoever asks again is told 304 where nothing changed, and then no query was made if the cache knows.

An ETag is made of the answer's content, so that it holds on every receiver and after every restart. Where the cache no
longer knows, the query is made and only the bytes are saved. RFC 9110, sections 8.8.3, 13.1.2 and 15.4.5.
"""

import hashlib
from typing import Final

from pisync_receiver.answers import Answer, NotModified, Reply
from pisync_receiver.caching import Cache, Kept, Question
from pisync_receiver.marks import Mark
from pisync_receiver.metrics import Metrics
from pisync_receiver.routing import Request

_POLICY: Final = (b"cache-control", b"private, no-cache")
"""A browser may keep an answer, and asks each time whether it still holds."""


class Answers:
    """Answers GETs, out of the cache where that knows. Used on the event loop."""

    def __init__(self, cache: Cache | None, metrics: Metrics) -> None:
        """Without a cache every question is a query."""
        self._cache = cache
        self._metrics = metrics

    async def give(self, request: Request) -> Reply:
        """The answer to a GET whose caller was let in. Raises what the row's handler raises."""
        route = request.route
        if route.depends is None:
            return await route.handler(request)
        mark = route.depends(request.query())
        if mark is None or self._cache is None:
            return _conditional(request, await route.handler(request))
        return await self._remembered(request, mark, self._cache)

    async def _remembered(self, request: Request, mark: Mark, cache: Cache) -> Reply:
        question = _question(request, mark)
        known = await cache.recall(question)
        if known.kept is not None:
            if _has(request, known.kept.etag):
                self._metrics.answer("unchanged")
                return _unchanged(known.kept)
            if known.kept.body is not None:
                self._metrics.answer("kept")
                return _whole(known.kept, known.kept.body)
        self._metrics.answer("queried")
        found = await request.route.handler(request)
        if isinstance(found, Answer) and found.status == 200:
            await cache.keep(question, known, _kept(found))
        return _conditional(request, found)


def _question(request: Request, mark: Mark) -> Question:
    text: bytes = request.scope["query_string"]
    parts = (request.scope["path"].encode(), text, request.headers.get(b"accept", b""))
    key = hashlib.blake2b(b"\0".join(parts), digest_size=20)
    return Question(key=key.digest(), mark=mark, moves=request.route.query.moves(text))


def _conditional(request: Request, found: Reply) -> Reply:
    """A whole answer with its ETag, or 304 for a caller that has it. Streams and problems stay as they are."""
    if not isinstance(found, Answer) or found.status != 200:
        return found
    kept = _kept(found)
    return _unchanged(kept) if _has(request, kept.etag) else _whole(kept, found.body)


def _kept(answer: Answer) -> Kept:
    content = hashlib.blake2b(answer.body, digest_size=16)
    for name, value in answer.headers:
        content.update(b"\0%b\0%b" % (name, value))
    etag = b'"%b"' % content.hexdigest().encode()
    return Kept(etag=etag, content_type=answer.content_type, headers=answer.headers, body=answer.body)


def _whole(kept: Kept, body: bytes) -> Answer:
    headers = (*kept.headers, (b"etag", kept.etag), _POLICY)
    return Answer(status=200, body=body, content_type=kept.content_type, headers=headers)


def _unchanged(kept: Kept) -> NotModified:
    return NotModified(headers=(*kept.headers, (b"etag", kept.etag), _POLICY))


def _has(request: Request, etag: bytes) -> bool:
    """Whether the caller has the answer with this ETag. Compared weakly, as gateways that compress weaken ETags."""
    given = request.headers.get(b"if-none-match")
    if given is None:
        return False
    return given.strip() == b"*" or any(one.strip().removeprefix(b"W/") == etag for one in given.split(b","))
