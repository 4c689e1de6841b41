"""What an answer means, from a table: the receiver's own words, and those of any other server."""

import gzip
import json
import tracemalloc
import zlib
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.answers import (
    Answer,
    check_receipt,
    check_sync_event,
    enrolled_from,
    fault,
    read,
    receipt_from,
)
from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_common.problems import CONTENT_TYPE, problem_type

DEVICE, STREAM = "pibook-1", "9f3c1a7be2d04c55"
RECEIPT: dict[str, Any] = {
    "device_id": DEVICE,
    "stream": STREAM,
    "stored": 2,
    "duplicates": 1,
    "rejected": [{"seq": 3, "code": "invalid_event", "detail": "because"}],
    "watermark": 4,
    "server_time": "2026-11-23T10:00:00.480Z",
}
RECORD = {"id": 1, "device_id": DEVICE, "received_at": "2026-11-23T10:00:00.480Z"}


def answer(status: int, body: object = None, *, kind: str = "application/json", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status=status, headers={"content-type": kind} | named, body=raw)


def ours(status: int, code: str = "some_code", detail: str = "do this", **headers: str) -> Answer:
    body = {"type": problem_type(code), "title": "T", "status": status, "detail": detail, "request_id": "r-1"}
    return answer(status, body, kind=CONTENT_TYPE, **headers)


def page(status: int, **headers: str) -> Answer:
    return answer(status, b"<html><h1>Hello</h1>", kind="text/html; charset=utf-8", **headers)


TABLE: list[tuple[str, Answer, type[DeliveryError], str, float | None]] = [
    ("redirect", page(302, location="http://login.example/?user=x"), Unreachable, "portal", None),
    ("redirect of a POST", page(307), Unreachable, "portal", None),
    ("not modified", answer(304, b""), Unreachable, "portal", None),
    ("sign-in wanted", page(511), Unreachable, "portal", None),
    ("our 401", ours(401, "unauthorized"), Refused, "auth", None),
    ("our 403", ours(403, "forbidden"), Refused, "auth", None),
    ("a portal's 401", page(401), Unreachable, "portal", None),
    ("a filter's 403", page(403), Unreachable, "portal", None),
    ("a gateway's 401", answer(401, {"message": "no"}), BadAnswer, "http_4xx", None),
    (
        "a foreign problem",
        answer(403, {"type": "about:blank"}, kind=CONTENT_TYPE),
        BadAnswer,
        "http_4xx",
        None,
    ),
    ("a problem that is none", answer(401, b"[", kind=CONTENT_TYPE), BadAnswer, "http_4xx", None),
    ("a problem that is a list", answer(401, [], kind=CONTENT_TYPE), BadAnswer, "http_4xx", None),
    ("407", page(407), BadAnswer, "http_4xx", None),
    ("our 413", ours(413, "body_too_large"), TooLarge, "http_4xx", None),
    ("a gateway's 413", page(413), TooLarge, "http_4xx", None),
    ("our 408", ours(408, "body_too_slow"), Unreachable, "timeout", None),
    ("our 429", ours(429, "slow_down", retry_after="7"), Overloaded, "http_4xx", 7.0),
    ("a gateway's 429", page(429), Overloaded, "http_4xx", None),
    ("our 503", ours(503, "overloaded", retry_after="30"), Overloaded, "http_5xx", 30.0),
    ("a gateway's 503", page(503), Overloaded, "http_5xx", None),
    ("503 with nonsense", page(503, retry_after="later"), Overloaded, "http_5xx", None),
    ("503 for a week", page(503, retry_after="604800"), Overloaded, "http_5xx", 86400.0),
    ("our 400", ours(400, "invalid_batch"), Declined, "http_4xx", None),
    ("our 404", ours(404, "not_found"), Declined, "http_4xx", None),
    ("a gateway's 404", page(404), BadAnswer, "http_4xx", None),
    ("our 500", ours(500, "internal_error"), BadAnswer, "http_5xx", None),
    ("a gateway's 502", page(502), BadAnswer, "http_5xx", None),
    ("502 with a time", page(502, retry_after="9"), BadAnswer, "http_5xx", 9.0),
    ("a status of no kind", page(799), BadAnswer, "http_5xx", None),
]


@pytest.mark.parametrize(
    ("given_answer", "kind", "code", "retry_after"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_each_answer_maps_to_its_error(
    given_answer: Answer, kind: type[DeliveryError], code: str, retry_after: float | None
) -> None:
    error = fault(given_answer)

    assert type(error) is kind
    assert (error.kind, error.retry_after) == (code, retry_after)


@pytest.mark.parametrize("given_answer", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_message_says_that_everything_is_kept_and_what_comes_next(given_answer: Answer) -> None:
    text = str(fault(given_answer))

    assert "Everything is kept" in text
    assert any(words in text for words in ("retries", "administrator", "The next batch is smaller"))
    assert "\n" not in text


def test_problem_details_reach_the_user() -> None:
    assert "do this" in str(fault(ours(400)))
    assert "do this" in str(fault(ours(401)))


def test_foreign_text_is_bounded_and_printable() -> None:
    text = str(fault(ours(400, detail="a\x1b[31m\r\nb\u202e" + "x" * 100_000)))

    assert text.isprintable()
    assert len(text) < 1000


def test_a_redirect_names_only_its_host() -> None:
    text = str(fault(page(302, location="http://login.example/s-17?session=abc")))

    assert "login.example" in text
    assert "session" not in text
    assert "s-17" not in text
    assert "redirects" in str(fault(page(302, location="http://[bad")))


def test_a_date_in_retry_after_is_measured_by_the_answers_own_clock() -> None:
    years_off = page(
        503, retry_after=formatdate(1_000_000_042, usegmt=True), date=formatdate(1_000_000_000, usegmt=True)
    )

    assert fault(years_off).retry_after == 42.0


def test_a_receipt_is_believed_if_it_is_for_this_device_and_stream() -> None:
    receipt = receipt_from(answer(200, RECEIPT), device_id=DEVICE, stream=STREAM)

    assert (receipt.stored, receipt.duplicates, receipt.watermark) == (2, 1, 4)
    assert receipt.rejected[0].seq == 3


@pytest.mark.parametrize(
    "given_answer",
    [
        page(200),
        answer(200, RECEIPT, kind="text/html"),
        answer(200, RECEIPT, kind="text/plain"),
        answer(200, RECEIPT, kind=""),
        answer(200, RECEIPT | {"device_id": "pibook-2"}),
        answer(200, RECEIPT | {"stream": "0000000000000000"}),
        answer(204, b"", kind=""),
    ],
)
def test_other_answers_with_a_good_status_are_a_portal(given_answer: Answer) -> None:
    with pytest.raises(Unreachable) as caught:
        receipt_from(given_answer, device_id=DEVICE, stream=STREAM)

    assert caught.value.kind == "portal"


RANGES: list[Any] = [
    *(None, 3, {}, [3], [[1]], [[1, 2, 3]], [[9, 1]], [[0, 1]]),
    *([[1, 2**70]], [[2**60, 3]], [[1, True]], [[1, 1]] * 101),
]
REJECTION = {"seq": 3, "code": "invalid_event", "detail": "because"}
REJECTIONS: list[Any] = [3, {}, "x", [3], [[]], [REJECTION] * 1_001]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        b"",
        b"\xff\xfe",
        json.dumps(RECEIPT).encode()[:-10],
        b"[" * 200_000,
        b'{"watermark":' + b"1" * 5_000 + b"}",
        *(RECEIPT | {"watermark": value} for value in (-1, 2**53, 2**70, True, 1.0, 1e300, float("nan"), "4", None)),
        *(RECEIPT | {"stored": value} for value in (-1, 1_001, 2**70, True, 1.5)),
        *(RECEIPT | {"duplicates": value} for value in (-1, 1_001, 2**70, True)),
        *(RECEIPT | {"rejected": rows} for rows in REJECTIONS),
        *(RECEIPT | {"rejected": [REJECTION | {"seq": value}]} for value in (0, -1, 2**70, True, 3.0)),
        *(RECEIPT | {"rejected": [REJECTION | {"code": value}]} for value in ("", "\ud800", "a\0b", "x" * 65, 7)),
        *(RECEIPT | {"rejected": [REJECTION | {"detail": value}]} for value in ("\ud800", 7, None)),
        *(RECEIPT | {"server_time": value} for value in ("", "\ud800", "yesterday", 7, "9999-12-31T23:59:59-23:59")),
        *(RECEIPT | {"missing": ranges} for ranges in RANGES),
    ],
)
def test_a_receipt_that_cannot_be_right_is_a_bad_answer(body: object) -> None:
    with pytest.raises(BadAnswer, match="Everything is kept") as caught:
        receipt_from(answer(200, body), device_id=DEVICE, stream=STREAM)

    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_a_rejections_text_is_made_fit_for_a_terminal() -> None:
    body = RECEIPT | {"rejected": [REJECTION | {"detail": "\x1b[31m\x1b]0;x\x07\nline\0" + "z" * 500_000}]}
    (rejection,) = receipt_from(answer(200, body), device_id=DEVICE, stream=STREAM).rejected

    assert rejection.detail.isprintable()
    assert len(rejection.detail) <= 300


@pytest.mark.parametrize(
    ("stored", "duplicates", "rejected", "valid"),
    [
        (3, 0, [], True),
        (1, 1, [5], True),
        (0, 0, [4, 5, 6], True),
        (2, 0, [], False),
        (4, 0, [], False),
        (3, 3, [], False),
        (3, 0, [5], False),
        (2, 0, [7], False),
        (1, 0, [5, 5], False),
    ],
)
def test_a_receipt_accounts_for_each_event_of_its_batch(
    stored: int, duplicates: int, rejected: list[int], valid: bool
) -> None:
    rows = [REJECTION | {"seq": seq} for seq in rejected]
    body = RECEIPT | {"stored": stored, "duplicates": duplicates, "rejected": rows, "watermark": 10**12}
    receipt = receipt_from(answer(200, body), device_id=DEVICE, stream=STREAM)

    if valid:
        check_receipt(receipt, [4, 5, 6])
    else:
        with pytest.raises(BadAnswer):
            check_receipt(receipt, [4, 5, 6])


@pytest.mark.parametrize("body", [[RECORD], b"{", b"", b"[" * 200_000, b'{"id":' + b"1" * 5_000 + b"}"])
def test_a_sync_event_that_cannot_be_read_is_a_bad_answer(body: object) -> None:
    with pytest.raises(BadAnswer):
        check_sync_event(answer(201, body), device_id=DEVICE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"token":"psd_secret',
        {},
        [],
        {"device_id": 1, "token": "psd_secret"},
        {"device_id": "..", "token": "psd_secret"},
        {"device_id": "a b", "token": "psd_secret"},
        {"device_id": "x" * 129, "token": "psd_secret"},
        {"device_id": "\ud800", "token": "psd_secret"},
        {"device_id": "a", "token": "psd_secret\n"},
        {"device_id": "a", "token": "psd_\ud800secret"},
        {"device_id": "a", "token": "psd_secret" * 100},
        {"device_id": "a", "token": 2**70},
    ],
)
def test_an_identity_that_cannot_be_right_is_a_bad_answer(body: object) -> None:
    with pytest.raises(BadAnswer) as caught:
        enrolled_from(answer(201, body))

    assert "psd_secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def read_with(raw: bytes, *, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()} | {"content-type": "application/json"}
    return read(status, named, raw, nonce="n1", most=10_000)


@pytest.mark.parametrize("nonce", ["n1", "n1, n1", "n1,n1"])
def test_a_nonce_that_a_gateway_doubles_is_believed(nonce: str) -> None:
    given_answer = read_with(json.dumps(RECEIPT).encode(), pisync_nonce=nonce)

    assert receipt_from(given_answer, device_id=DEVICE, stream=STREAM).watermark == 4


@pytest.mark.parametrize(("nonce", "said"), [("n2", "echo"), ("n1, n2", "echo"), ("n1,", "echo"), ("", "PiSync-Nonce")])
def test_another_nonce_or_none_is_not_believed_and_the_error_says_which(nonce: str, said: str) -> None:
    given_answer = read_with(json.dumps(RECEIPT).encode(), pisync_nonce=nonce)
    with pytest.raises(Unreachable, match=said) as caught:
        receipt_from(given_answer, device_id=DEVICE, stream=STREAM)

    assert caught.value.kind == "portal"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PLAIN = json.dumps(RECEIPT).encode()


@pytest.mark.parametrize(
    ("coding", "raw"),
    [
        ("gzip", gzip.compress(PLAIN, mtime=0)),
        ("GZip", gzip.compress(PLAIN[:50], mtime=0) + gzip.compress(PLAIN[50:], mtime=0)),
        ("x-gzip", gzip.compress(PLAIN, mtime=0)),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", raw_deflate(PLAIN)),
        ("deflate, gzip", gzip.compress(zlib.compress(PLAIN), mtime=0)),
        ("identity", PLAIN),
    ],
)
def test_an_answer_compressed_unasked_is_read(coding: str, raw: bytes) -> None:
    given_answer = read_with(raw, content_encoding=coding, pisync_nonce="n1")

    assert receipt_from(given_answer, device_id=DEVICE, stream=STREAM).watermark == 4


@pytest.mark.parametrize(
    ("coding", "raw", "said"),
    [
        ("gzip", gzip.compress(bytes(10**8), mtime=0), "larger"),
        ("gzip", gzip.compress(b"x" * 6_000, mtime=0) * 2, "larger"),
        ("deflate", zlib.compress(bytes(10**8)), "larger"),
        ("gzip", PLAIN, "cannot be decompressed"),
        ("gzip", gzip.compress(PLAIN, mtime=0)[:-9], "cut off"),
        ("br", PLAIN, "not asked for"),
    ],
)
def test_a_compressed_answer_is_bounded(coding: str, raw: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Unreachable, match=said):
            read_with(raw, content_encoding=coding, pisync_nonce="n1")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()

    assert read_with(raw, status=503, content_encoding=coding).body == b""


def test_a_json_answer_may_name_its_charset() -> None:
    assert receipt_from(answer(200, RECEIPT, kind="Application/JSON; charset=utf-8"), device_id=DEVICE, stream=STREAM)


@pytest.mark.parametrize("status", [200, 201])
def test_a_stored_sync_event_is_believed(status: int) -> None:
    check_sync_event(answer(status, RECORD), device_id=DEVICE)


@pytest.mark.parametrize(
    "given_answer",
    [
        page(200),
        answer(201, RECORD, kind="text/html"),
        answer(201, RECORD | {"device_id": "pibook-2"}),
        answer(201, {"device_id": DEVICE}),
    ],
)
def test_a_sync_event_of_another_device_is_a_portal(given_answer: Answer) -> None:
    with pytest.raises(Unreachable) as caught:
        check_sync_event(given_answer, device_id=DEVICE)

    assert caught.value.kind == "portal"


def test_an_identity_is_taken_from_an_answer() -> None:
    assert enrolled_from(answer(201, {"device_id": "a", "token": "psd_x"})) == ("a", "psd_x")


@pytest.mark.parametrize(
    "given_answer",
    [
        page(200),
        answer(201, {"device_id": "a", "token": "psd_secret"}, kind="text/plain"),
    ],
)
def test_no_identity_is_taken_from_a_portal(given_answer: Answer) -> None:
    with pytest.raises(Unreachable) as caught:
        enrolled_from(given_answer)

    assert caught.value.kind == "portal"
    assert "psd_secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("status", "code"), [(403, "enrollment_code"), (409, "device_id_taken"), (400, "invalid")])
def test_an_unusable_code_is_a_refusal(status: int, code: str) -> None:
    with pytest.raises(Refused, match="do this"):
        enrolled_from(ours(status, code))


@given(
    st.integers(100, 999),
    st.sampled_from(["application/json", CONTENT_TYPE, "text/html", ""]),
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()),
)
def test_no_answer_is_mistaken_for_a_receipt(status: int, kind: str, body: bytes) -> None:
    with pytest.raises(DeliveryError):
        receipt_from(answer(status, body, kind=kind), device_id=DEVICE, stream=STREAM)
