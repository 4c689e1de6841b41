"""Streams end when their reader has gone; an ETag is made of an answer's content."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from pisync_receiver.http.responses import Disconnected, Stream, json_answer, with_etag


class Endless:
    """Chunks without end; after `until` of them the caller has gone."""

    def __init__(self, until: int) -> None:
        self.made = 0
        self.closed = False
        self.sent: list[Any] = []
        self._until = until
        self._gone = asyncio.Event()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                self.made += 1
                yield b"x"
        finally:
            self.closed = True

    async def gone(self) -> None:
        await self._gone.wait()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.made == self._until:
            self._gone.set()
        await asyncio.sleep(0)


def test_a_caller_that_has_gone_ends_the_work() -> None:
    async def scene() -> Endless:
        endless = Endless(until=3)
        stream = Stream(chunks=endless.chunks(), gone=endless.gone, content_type="text/csv")
        with pytest.raises(Disconnected):
            await asyncio.wait_for(stream.send(endless.send, (), with_body=True), timeout=60)
        return endless

    endless = asyncio.run(scene())
    assert endless.closed
    assert 3 <= endless.made <= 5


def test_a_caller_that_stays_gets_everything() -> None:
    async def three() -> AsyncGenerator[bytes, None]:
        for chunk in (b"a", b"b", b"c"):
            yield chunk

    async def scene() -> list[Any]:
        endless = Endless(until=-1)
        stream = Stream(chunks=three(), gone=endless.gone, content_type="text/csv")
        await stream.send(endless.send, (), with_body=True)
        return endless.sent

    sent = asyncio.run(scene())
    assert [message.get("body") for message in sent] == [None, b"a", b"b", b"c", b""]


def test_an_etag_is_of_the_content_alone_and_spares_a_caller_that_has_it() -> None:
    whole = with_etag(json_answer([1]), None)
    etag = dict(whole.headers)[b"etag"]
    assert (whole.status, whole.body) == (200, b"[1]")
    for given in (etag, b"W/" + etag, b'"x", ' + etag, b"*"):
        unchanged = with_etag(json_answer([1]), given)
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert dict(unchanged.headers)[b"etag"] == etag
    assert with_etag(json_answer([2]), etag).status == 200
    assert with_etag(json_answer([1], headers=((b"link", b"<x>"),)), etag).status == 200
