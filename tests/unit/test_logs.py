"""Log lines: one JSON object each, with the request's id, and never the text of somebody else's exception."""

import io
import json
import logging

import pytest

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.logs import REQUEST_ID, JsonFormatter, fields


@pytest.fixture
def written() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("a.name")
    logger.addHandler(handler)
    return logger, stream


def line(stream: io.StringIO) -> dict[str, object]:
    text = stream.getvalue()
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def test_a_line_holds_what_it_says(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    logger.warning("%d things\nhappened", 3, extra=fields(device_id="pi-1", odd=object))
    found = line(stream)
    assert found["message"] == "3 things\nhappened"
    assert (found["level"], found["logger"], found["device_id"]) == ("WARNING", "a.name", "pi-1")
    assert "request_id" not in found


def test_a_line_carries_the_id_of_its_request(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    before = REQUEST_ID.set("r-1")
    try:
        logger.info("x")
    finally:
        REQUEST_ID.reset(before)
    assert line(stream)["request_id"] == "r-1"


def test_an_unexpected_exceptions_text_stays_out_but_its_place_is_told(
    written: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = written
    try:
        raise ValueError("learner s-17 watched something")
    except ValueError:
        logger.exception("failed")
    found = line(stream)
    assert found["error"] == "ValueError"
    assert "s-17" not in stream.getvalue()
    assert "test_an_unexpected_exceptions_text" in str(found["trace"])


def test_an_exception_of_our_own_is_told_in_full(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    try:
        raise StoreUnusable("the disk is full")
    except StoreUnusable:
        logger.exception("failed")
    assert line(stream)["error"] == "StoreUnusable: the disk is full"
