"""Bodies: bounded before and after decompression, in bytes and in time, whatever a caller sends."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from pisync_receiver.errors import Overloaded, Problem
from pisync_receiver.http.request import BodyLimits, BodyReader
from pisync_receiver.http.responses import Disconnected

LIMITS = BodyLimits(encoded=1000, decoded=5000, seconds=60, held=1500)


def arriving(*parts: bytes, then: str = "end") -> Any:
    """A `receive` that hands out `parts`; then the end, a disconnect, or nothing ever."""
    messages = _messages(parts, then)

    async def receive() -> Any:
        return await anext(messages)

    return receive


async def _messages(parts: Iterable[bytes], then: str) -> AsyncIterator[Any]:
    queue = list(parts)
    while queue:
        part = queue.pop(0)
        yield {"type": "http.request", "body": part, "more_body": bool(queue) or then != "end"}
    if then == "disconnect":
        yield {"type": "http.disconnect"}
    await asyncio.Event().wait()


def read(receive: Any, limits: BodyLimits = LIMITS, **headers: str) -> bytes:
    raw = {b"content-type": b"application/json"}
    raw |= {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return asyncio.run(BodyReader(limits).json(raw, receive))


def refusal(receive: Any, limits: BodyLimits = LIMITS, **headers: str) -> Problem:
    with pytest.raises(Problem) as caught:
        read(receive, limits, **headers)
    return caught.value


def test_a_plain_body_comes_back_as_it_is() -> None:
    assert read(arriving(b'{"a":1}')) == b'{"a":1}'


def test_a_body_in_parts_is_put_together() -> None:
    assert read(arriving(b'{"a"', b":", b"1}")) == b'{"a":1}'


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_accepted_with_or_without_charset(kind: str) -> None:
    assert read(arriving(b"{}"), content_type=kind) == b"{}"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonlines", "multipart/form-data"])
def test_another_content_type_is_415(kind: str) -> None:
    problem = refusal(arriving(b"{}"), content_type=kind)
    assert (problem.status, problem.problem_code) == (415, "unsupported_media_type")


def test_an_unknown_content_encoding_is_415_and_says_what_is_understood() -> None:
    problem = refusal(arriving(b"{}"), content_encoding="br")
    assert (problem.status, problem.problem_code) == (415, "unsupported_encoding")
    assert "gzip" in problem.headers["Accept-Encoding"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", " gzip "])
def test_gzip_is_decoded(coding: str) -> None:
    assert read(arriving(gzip.compress(b'{"a":1}')), content_encoding=coding) == b'{"a":1}'


def test_identity_is_no_encoding() -> None:
    assert read(arriving(b"{}"), content_encoding="identity") == b"{}"


def test_a_body_over_the_limit_is_413_before_a_byte_is_read() -> None:
    async def never() -> Any:
        raise AssertionError("the body was read although its length was known")

    assert refusal(never, content_length="1001").status == 413


def test_a_body_that_turns_out_over_the_limit_is_413() -> None:
    assert refusal(arriving(b"x" * 1001)).status == 413
    assert refusal(arriving(b"x" * 600, b"x" * 401)).status == 413
    assert len(read(arriving(b"x" * 600, b"x" * 400))) == 1000


def test_a_body_that_decodes_over_the_limit_is_413() -> None:
    assert len(read(arriving(gzip.compress(b"x" * 5000)), content_encoding="gzip")) == 5000
    assert refusal(arriving(gzip.compress(b"x" * 5001)), content_encoding="gzip").status == 413


def test_a_gzip_bomb_is_stopped_without_being_held() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=9)
    limits = BodyLimits()
    assert len(bomb) < limits.encoded
    tracemalloc.start()
    try:
        assert refusal(arriving(bomb), limits, content_encoding="gzip").status == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * limits.decoded


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no gzip at all", "not what its Content-Encoding says"),
        (b"", "cut short"),
        (gzip.compress(b"x" * 500, mtime=0)[:-1], "cut short"),
        (gzip.compress(b"x" * 500, mtime=0)[:-9], "cut short"),
        (gzip.compress(b"x", mtime=0)[:-8] + bytes(8), "not what its Content-Encoding says"),
        (gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0), "one member"),
        (gzip.compress(b"a", mtime=0) + b"rubbish", "one member"),
        (zlib.compress(b"x"), "not what its Content-Encoding says"),
    ],
)
def test_a_broken_gzip_body_is_400(body: bytes, says: str) -> None:
    problem = refusal(arriving(body), content_encoding="gzip")
    assert (problem.status, problem.problem_code) == (400, "bad_encoding")
    assert says in problem.detail


@pytest.mark.parametrize("parts", [(), (b"{",), (b"{", b'"a"')])
def test_a_sender_that_never_ends_is_408(parts: tuple[bytes, ...]) -> None:
    problem = refusal(arriving(*parts, then="nothing"), BodyLimits(seconds=0))
    assert (problem.status, problem.problem_code) == (408, "body_too_slow")
    assert problem.headers["Connection"] == "close"


def test_a_sender_that_goes_away_is_no_problem_of_ours() -> None:
    with pytest.raises(Disconnected):
        read(arriving(b"{", then="disconnect"))


def test_one_device_may_hold_its_share_and_leaves_the_rest_to_others() -> None:
    reader = BodyReader(BodyLimits(encoded=1000, decoded=5000, seconds=60, share=1200, held=4000))
    headers = {b"content-type": b"application/json"}

    async def scene() -> None:
        for device in ("pibook-1", None):
            slow = asyncio.create_task(reader.json(headers, arriving(b"x" * 900, then="nothing"), device))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(Problem, match="one caller") as refused:
                await reader.json(headers, arriving(b"x" * 300, b"x" * 301), device)
            assert refused.value.status == 429
            assert await reader.json(headers, arriving(b"x" * 100, b"x" * 200), device) == b"x" * 300
            assert await reader.json(headers, arriving(b"x" * 300, b"x" * 301), "pibook-2") == b"x" * 601
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert await reader.json(headers, arriving(b"x" * 500, b"x" * 500), device) == b"x" * 1000

    asyncio.run(scene())


def test_all_unfinished_bodies_together_are_bounded_and_given_back() -> None:
    reader = BodyReader(LIMITS)
    headers = {b"content-type": b"application/json"}

    async def scene() -> None:
        slow = asyncio.create_task(reader.json(headers, arriving(b"x" * 900, then="nothing")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await reader.json(headers, arriving(b"x" * 300, b"x" * 301))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await reader.json(headers, arriving(b"x" * 500, b"x" * 500)) == b"x" * 1000

    asyncio.run(scene())


class Cycle:
    """Stands for uvicorn's, which holds a whole body before anything asks for it."""

    more_body = False

    async def receive(self) -> Any:
        await asyncio.sleep(0.05)  # longer than the limit below: no timer runs
        return {"type": "http.request", "body": b"{}", "more_body": False}


def test_a_body_that_has_arrived_is_read_without_a_timer() -> None:
    assert read(Cycle().receive, BodyLimits(seconds=0)) == b"{}"
